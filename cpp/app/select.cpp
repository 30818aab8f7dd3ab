#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;

Selection select(const dd::Bundle& bundle, const SweepOptions& options) {
  std::vector<dd::Precision> precisions;
  for (const std::string& name : options.precisions)
    precisions.push_back(dd::parse_precision(name));
  if (precisions.empty()) {
    for (const auto& [precision, file] : bundle.manifest().models) precisions.push_back(precision);
  }
  Selection selection;
  std::vector<dd::Backend> backends;
  for (const std::string& name : options.backends) {
    backends.push_back(dd::parse_backend(name));
    if (const std::string reason = dd::why_unavailable(backends.back()); !reason.empty()) {
      throw dd::BackendError(name + " cannot run here: " + reason);
    }
  }
  for (const dd::Backend backend : dd::all_backends) {
    if (!options.backends.empty()) break;
    const std::string reason = dd::why_unavailable(backend);
    if (reason.empty()) {
      backends.push_back(backend);
    } else {
      selection.skipped.push_back({to_string(backend), reason});
    }
  }
  for (const dd::Backend backend : backends) {
    for (const dd::Precision precision : precisions) {
      bundle.model(precision, backend);
      selection.jobs.push_back({backend, precision});
    }
  }
  if (selection.jobs.empty()) {
    std::string reasons;
    for (const Skipped& item : selection.skipped) {
      reasons += "\n  - " + item.backend + ": " + item.reason;
    }
    throw dd::BackendError("no backend can run here:" + reasons + "\n");
  }
  return selection;
}

dd::EngineOptions engine_options(const LoadOptions& options) {
  dd::EngineOptions result;
  if (!options.backend.empty()) result.backend = dd::parse_backend(options.backend);
  result.precision = dd::parse_precision(options.precision);
  result.threads = options.threads;
  result.device = options.device;
  return result;
}

dd::EngineOptions engine_options(const SweepOptions& options, const Job& job) {
  dd::EngineOptions result;
  result.backend = job.backend;
  result.precision = job.precision;
  result.threads = options.threads;
  result.device = options.device;
  return result;
}

}  // namespace app
