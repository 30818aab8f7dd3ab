#pragma once

#include <NvInferRuntime.h>

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda.hpp"
#include "densenet_deploy/bundle.hpp"
#include "pieces.hpp"

namespace densenet_deploy::detail {

/// Keeps the last error that TensorRT reported, and how many there were; any thread may log.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;

  std::size_t errors() const;
  /// The last error if there were more than `before`; empty otherwise.
  std::string error_since(std::size_t before) const;

 private:
  mutable std::mutex mutex_;
  std::size_t errors_ = 0;
  std::string last_;
};

/// A deserialized engine, and what a caller has to know of it.
struct LoadedEngine {
  TensorInfo input, output;
  std::vector<Batch> profiles;
  bool capture = true;  ///< Whether to capture CUDA graphs.
  Logger* logger = nullptr;
  nvinfer1::ICudaEngine* engine = nullptr;
  std::mutex creating;  ///< TensorRT does not promise that threads may make contexts at once.
};

/// TensorRT's execution context with every answer checked.
class Context {
 public:
  /// @param memory  Where it may compute; null where it brings its own.
  Context(LoadedEngine& loaded, void* memory, cudaStream_t stream);

  /// Sets what `enqueue` computes: `batch` rows, within `profile`, at these device addresses.
  void prepare(std::size_t profile, std::int64_t batch, const void* images, void* logits);
  void enqueue();

 private:
  [[noreturn]] void refuse(const char* call, const std::string& details) const;
  void require(bool done, const char* call, const std::string& details = {}) const;

  LoadedEngine& loaded_;
  cudaStream_t stream_;
  std::size_t told_;  ///< Errors before the current work: those are not its reason.
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::size_t profile_;
  std::int64_t batch_ = 0;
};

/// Runs pieces of batches, one after the other, on a stream of its own.
///
/// A captured graph is valid only while its context keeps the shape it was captured with, so each
/// gets a context of its own (NVIDIA's advice). They share one block of activation memory, which
/// they may because they share the stream, too.
class Executor {
 public:
  explicit Executor(LoadedEngine& loaded);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Computes a piece of a batch in host memory; both addresses are those of its first row.
  void run(const float* images, float* logits, const Piece& piece);

  /// Enqueues a piece that is on the device, after the earlier work of `stream` and before all
  /// later work there.
  void run_device(const float* images, float* logits, const Piece& piece, cudaStream_t stream);

 private:
  struct Buffers {
    cuda::PinnedMemory images, logits;
    cuda::DeviceMemory device_images, device_logits;
  };
  struct Captured {
    std::size_t profile;
    std::int64_t batch;
    std::unique_ptr<Context> context;
    cuda::Graph graph;
  };

  void compute(const Piece& piece, const Buffers& buffers);
  const cuda::Graph& graph(const Piece& piece, const Buffers& buffers);
  void enqueue_aligned(const float* images, float* logits, const Piece& piece);
  Context& plain();

  LoadedEngine& loaded_;
  cuda::Stream stream_;
  cuda::Event ready_, done_;
  cuda::DeviceMemory memory_;
  std::vector<Buffers> buffers_;    // of each profile
  std::unique_ptr<Context> plain_;  // made when first needed
  std::list<Captured> captured_;    // most recently used first
};

}  // namespace densenet_deploy::detail
