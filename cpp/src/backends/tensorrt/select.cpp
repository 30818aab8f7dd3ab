#include "select.hpp"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <vector>

#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy::detail {
namespace {

constexpr const char* remedy =
    "build one on this machine with: densenet-deploy build, or run on openvino or onnxruntime";

const char* title(Backend backend) {
  return backend == Backend::tensorrt_rtx ? "TensorRT-RTX" : "TensorRT";
}

/// `10.16.1.11` as integers, which order as versions do; of at most nine digits each.
std::vector<std::int64_t> numbers(const std::string& version) {
  std::vector<std::int64_t> parts;
  bool inside = false;
  for (const char character : version) {
    const bool digit = std::isdigit(static_cast<unsigned char>(character)) != 0;
    if (digit && !inside) parts.push_back(0);
    if (digit && parts.back() < 100'000'000) parts.back() = 10 * parts.back() + (character - '0');
    inside = digit;
  }
  return parts;
}

/// A plan runs on the very version that built it; a version compatible one on later ones too.
std::string version_misfit(const EngineFile& engine, const Site& site) {
  const std::string needed = std::string(title(engine.backend)) + " " + engine.version;
  if (!engine.version_compatible) {
    return engine.version == site.version ? "" : needed + ", not " + site.version;
  }
  return numbers(site.version) < numbers(engine.version) ? needed + " or later, not " + site.version
                                                         : "";
}

bool from_ampere(const EngineFile& engine) {
  return engine.hardware_compatibility == "ampere-plus" ||
         (engine.backend == Backend::tensorrt_rtx && engine.compute_capabilities.empty());
}

/// Compiled for the listed capabilities, or portable to Ampere (8.0) and everything later.
std::string device_misfit(const EngineFile& engine, const Site& site) {
  if (from_ampere(engine)) {
    const bool fits = numbers(site.compute_capability) >= std::vector<std::int64_t>{8, 0};
    return fits ? "" : "compute capability 8.0 or later, not " + site.compute_capability;
  }
  const std::vector<std::string>& listed = engine.compute_capabilities;
  if (std::find(listed.begin(), listed.end(), site.compute_capability) != listed.end()) return "";
  const std::string known = listed.empty() ? "(not recorded)" : joined(listed, " or ");
  return "compute capability " + known + ", not " + site.compute_capability;
}

/// Portable engines may be slower than those made for one device and version.
int generality(const EngineFile& engine) {
  const bool portable =
      engine.hardware_compatibility == "ampere-plus" || engine.compute_capabilities.empty();
  return portable + engine.version_compatible;
}

}  // namespace

std::string misfit(const EngineFile& engine, const Site& site) {
  const std::string version = version_misfit(engine, site), device = device_misfit(engine, site);
  return version + (version.empty() || device.empty() ? "" : " and ") + device;
}

const EngineFile& choose_engine(const Bundle& bundle, Precision precision, const Site& site) {
  const EngineFile* chosen = nullptr;
  std::vector<std::string> others, reasons;
  for (const EngineFile& engine : bundle.manifest().engines) {
    if (engine.backend != site.backend) continue;
    if (engine.precision != precision) {
      others.push_back(to_string(engine.precision));
      continue;
    }
    const std::string reason = misfit(engine, site);
    if (!reason.empty()) {
      reasons.push_back(engine.file + " needs " + reason);
    } else if (chosen == nullptr || generality(engine) < generality(*chosen)) {
      chosen = &engine;
    }
  }
  if (chosen != nullptr) return *chosen;
  if (reasons.empty()) {
    throw BackendError(shown(bundle.path()) + " has no " + to_string(site.backend) +
                           " engine for " + to_string(precision),
                       others.empty() ? "" : "one of " + joined(others), remedy);
  }
  throw BackendError("no " + to_string(site.backend) + " " + to_string(precision) +
                         " engine fits " + title(site.backend) + " " + site.version +
                         " on compute capability " + site.compute_capability + ": " +
                         joined(reasons, "; "),
                     "", remedy);
}

}  // namespace densenet_deploy::detail
