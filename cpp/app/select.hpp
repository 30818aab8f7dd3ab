#pragma once

#include <densenet_deploy/densenet_deploy.hpp>
#include <string>
#include <vector>

#include "commands.hpp"

namespace app {

/// A backend that was not run, and why.
struct Skipped {
  std::string backend, reason;
};

/// One graph on one backend.
struct Job {
  densenet_deploy::Backend backend;
  densenet_deploy::Precision precision;
};

/// What a sweep goes through.
struct Selection {
  std::vector<Job> jobs;
  std::vector<Skipped> skipped;
};

/// Every asked backend with every asked precision.
///
/// @throws BackendError  A backend that was asked for cannot run here, or none can.
/// @throws BundleError   The bundle lacks a precision that was asked for.
Selection select(const densenet_deploy::Bundle& bundle, const SweepOptions& options);

densenet_deploy::EngineOptions engine_options(const LoadOptions& options);
densenet_deploy::EngineOptions engine_options(const SweepOptions& options, const Job& job);

}  // namespace app
