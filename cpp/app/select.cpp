#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;
namespace {

std::vector<dd::Backend> asked_or_all(const SweepOptions& options) {
  if (options.backends.empty()) return {dd::all_backends.begin(), dd::all_backends.end()};
  std::vector<dd::Backend> asked;
  for (const std::string& name : options.backends) asked.push_back(dd::parse_backend(name));
  return asked;
}

/// What keeps a backend from running these precisions of the bundle; empty if nothing does.
std::string why_not(const dd::Bundle& bundle, const SweepOptions& options, dd::Backend backend,
                    const std::vector<dd::Precision>& precisions) {
  for (const dd::Precision precision : precisions) {
    const std::string reason =
        dd::why_unavailable(backend, bundle, engine_options(options, {backend, precision}));
    if (!reason.empty()) return reason;
  }
  return "";
}

}  // namespace

Selection select(const dd::Bundle& bundle, const SweepOptions& options) {
  std::vector<dd::Precision> precisions;
  for (const std::string& name : options.precisions) {
    precisions.push_back(dd::parse_precision(name));
  }
  if (precisions.empty()) {
    for (const auto& [precision, file] : bundle.manifest().models) precisions.push_back(precision);
  }
  for (const dd::Precision precision : precisions) bundle.model(precision, dd::Backend::openvino);
  Selection selection;
  for (const dd::Backend backend : asked_or_all(options)) {
    const std::string reason = why_not(bundle, options, backend, precisions);
    if (!reason.empty() && !options.backends.empty()) {
      throw dd::BackendError(to_string(backend) + " cannot run here: " + reason);
    }
    if (!reason.empty()) {
      selection.skipped.push_back({to_string(backend), reason});
      continue;
    }
    for (const dd::Precision precision : precisions) selection.jobs.push_back({backend, precision});
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
