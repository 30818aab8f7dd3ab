#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "densenet_deploy/bundle.hpp"
#include "densenet_deploy/export.hpp"
#include "densenet_deploy/names.hpp"
#include "densenet_deploy/tensor.hpp"

namespace densenet_deploy {

struct EngineOptions {
  /// What runs the graph; by default the first of `all_backends` that can run this bundle here.
  std::optional<Backend> backend;
  Precision precision = Precision::fp32;
  int threads = 0;         ///< CPU threads of one request; 0 for all cores.
  int device = 0;          ///< Index of the GPU.
  int contexts = 1;        ///< Requests that run at once on one GPU engine.
  bool cuda_graph = true;  ///< Capture each batch size once and replay it.
};

/// One graph, loaded on one backend.
///
/// Thread use: any number of threads may call the const functions of one engine at once. Requests
/// beyond what the backend runs at once wait for their turn: two on OpenVINO, `contexts` on a GPU.
/// Moving or destroying an engine while another thread uses it is the caller's error.
class DENSENET_DEPLOY_EXPORT Engine {
 public:
  /// Loads a graph or the engine that fits the device. No backend falls back to another silently.
  ///
  /// @throws BackendError  The backend is not in this build, cannot run here, or refuses the model;
  ///                       says why.
  /// @throws BundleError   The bundle has no such precision.
  static Engine load(const Bundle& bundle, const EngineOptions& options = {});

  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  /// Logits (N, classes) of normalised images (N, C, H, W).
  ///
  /// @throws BackendError  Wrong shape or batch size, or the backend failed.
  Tensor run(const Tensor& images) const;

  /// The same on memory of the caller's: `rows` images in, `rows` times classes logits out.
  void run(const float* images, std::int64_t rows, float* logits) const;

  /// Runs on arrays that lie on the GPU, where they are; only what does not start at a multiple of
  /// 256 bytes, as TensorRT requires, is copied, on the GPU.
  ///
  /// Returns at once. The logits are there for all later work on `stream`; until then neither array
  /// may be freed or changed. A profile must hold `rows`, or parts of it, as it is: nothing is
  /// padded.
  ///
  /// @param stream  The cudaStream_t on which the caller uses both arrays; null for the default
  /// one.
  /// @throws BackendError  The backend has no device memory, or failed.
  void run_device(const float* images, std::int64_t rows, float* logits, void* stream) const;

  Backend backend() const;
  Precision precision() const;
  /// Batch sizes it is made for: those of the bundle, or of each optimization profile.
  const std::vector<Batch>& profiles() const;
  /// What it runs on: `CPU`, or the GPU's name and compute capability.
  std::string device() const;
  const TensorInfo& input() const;
  const TensorInfo& output() const;

 private:
  struct Loaded;
  explicit Engine(std::unique_ptr<Loaded> loaded);
  std::unique_ptr<Loaded> loaded_;
};

/// Backends that this build of the library has.
DENSENET_DEPLOY_EXPORT std::vector<Backend> compiled_backends();

/// Why a backend cannot run here, as a clause; empty if it can.
DENSENET_DEPLOY_EXPORT std::string why_unavailable(Backend backend);

/// Why a backend cannot run a bundle here with these options, as a clause; empty if it can. Beyond
/// the above, TensorRT needs an engine that fits; the others compile the graph when they load it.
DENSENET_DEPLOY_EXPORT std::string why_unavailable(Backend backend, const Bundle& bundle,
                                                   const EngineOptions& options);

/// Name and version of the library behind a backend, such as `OpenVINO 2026.4.1`; empty where this
/// build has no such backend.
DENSENET_DEPLOY_EXPORT std::string library_version(Backend backend);

/// CPU cores this process may run on: what `EngineOptions::threads` = 0 means.
DENSENET_DEPLOY_EXPORT int usable_cores();

}  // namespace densenet_deploy
