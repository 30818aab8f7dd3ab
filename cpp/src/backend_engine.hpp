#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "densenet_deploy/bundle.hpp"
#include "densenet_deploy/engine.hpp"

namespace densenet_deploy::detail {

/// What every backend does. Safe to call from several threads at once.
class BackendEngine {
 public:
  virtual ~BackendEngine() = default;

  /// Logits of `rows` images, both in host memory.
  virtual void run(const float* images, std::int64_t rows, float* logits) = 0;

  /// The same in device memory; see `Engine::run_device`.
  virtual void run_device(const float* images, std::int64_t rows, float* logits, void* stream);

  /// Batch sizes it is made for; those of the bundle where it has none of its own.
  virtual std::vector<Batch> profiles() const { return {}; }

  /// What it runs on.
  virtual std::string device() const { return "CPU"; }

  /// Whether it takes a batch of any size.
  virtual bool splits() const { return false; }
};

using EnginePointer = std::unique_ptr<BackendEngine>;

/// A backend, as this build has it.
struct BackendEntry {
  Backend backend;
  /// Why it cannot run here, as a clause; empty if it can.
  std::string (*why_unavailable)();
  /// Name and version of its library.
  std::string (*version)();
  /// What keeps it from running this bundle here, as a clause; empty if nothing is known to.
  std::string (*why_not)(const Bundle&, const EngineOptions&);
  EnginePointer (*load)(const Bundle&, const EngineOptions&);
};

/// In the order of `all_backends`; each backend's file defines its own entry.
const std::vector<BackendEntry>& backend_entries();

BackendEntry openvino_entry();
BackendEntry onnxruntime_entry();
BackendEntry tensorrt_entry();

/// `why_not` of backends that compile the graph when they load it.
inline std::string nothing_known(const Bundle&, const EngineOptions&) { return ""; }
}  // namespace densenet_deploy::detail
