#include "executor.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy::detail {
namespace {

constexpr std::uintptr_t alignment = 256;  // bytes; TensorRT requires it of every tensor's address
constexpr std::size_t most_captured = 32;  // batch sizes; a server with buckets has far fewer
constexpr auto unset = static_cast<std::size_t>(-1);

std::size_t bytes(std::int64_t rows, const TensorInfo& info) {
  return static_cast<std::size_t>(rows) * info.row_size() * sizeof(float);
}

nvinfer1::Dims dims(std::int64_t batch, const TensorInfo& info) {
  nvinfer1::Dims result{};
  result.nbDims = static_cast<std::int32_t>(info.shape.size()) + 1;
  result.d[0] = batch;
  for (std::size_t index = 0; index < info.shape.size(); ++index) {
    result.d[index + 1] = info.shape[index];
  }
  return result;
}

bool equal(const nvinfer1::Dims& a, const nvinfer1::Dims& b) {
  return a.nbDims == b.nbDims && std::equal(a.d, a.d + std::max(a.nbDims, 0), b.d);
}

/// Device memory a context computes in, over all profiles.
std::size_t activation_bytes(const nvinfer1::ICudaEngine& engine) {
#if NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 1
  return engine.getDeviceMemorySize();
#else
  return static_cast<std::size_t>(engine.getDeviceMemorySizeV2());
#endif
}

void set_memory(nvinfer1::IExecutionContext& context, void* memory, std::size_t size) {
#if NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 1
  static_cast<void>(size);
  context.setDeviceMemory(memory);
#else
  context.setDeviceMemoryV2(memory, static_cast<std::int64_t>(size));
#endif
}

bool aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
}

}  // namespace

void Logger::log(Severity severity, const char* message) noexcept {
  if (severity > Severity::kERROR) return;
  const std::lock_guard lock(mutex_);
  ++errors_;
  last_ = message;
}

std::size_t Logger::errors() const {
  const std::lock_guard lock(mutex_);
  return errors_;
}

std::string Logger::error_since(std::size_t before) const {
  const std::lock_guard lock(mutex_);
  return errors_ > before ? last_ : "";
}

Context::Context(LoadedEngine& loaded, void* memory, cudaStream_t stream)
    : loaded_(loaded), stream_(stream), told_(loaded.logger->errors()), profile_(unset) {
  const std::lock_guard lock(loaded.creating);
  const auto strategy = memory == nullptr
                            ? nvinfer1::ExecutionContextAllocationStrategy::kSTATIC
                            : nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
  context_.reset(loaded.engine->createExecutionContext(strategy));
  require(context_ != nullptr, "createExecutionContext");
  if (memory != nullptr) set_memory(*context_, memory, activation_bytes(*loaded.engine));
}

void Context::prepare(std::size_t profile, std::int64_t batch, const void* images, void* logits) {
  const TensorInfo &input = loaded_.input, &output = loaded_.output;
  told_ = loaded_.logger->errors();
  if (profile != profile_) {
    profile_ = unset;  // unknown until TensorRT has accepted it
    batch_ = 0;
    require(context_->setOptimizationProfileAsync(static_cast<std::int32_t>(profile), stream_),
            "setOptimizationProfileAsync", std::to_string(profile));
    profile_ = profile;
  }
  if (batch != batch_) {
    batch_ = 0;
    require(context_->setInputShape(input.name.c_str(), dims(batch, input)), "setInputShape",
            "batch " + std::to_string(batch));
    require(context_->inferShapes(0, nullptr) == 0, "inferShapes");
    require(equal(context_->getTensorShape(output.name.c_str()), dims(batch, output)),
            "getTensorShape", "another output than " + shape_text(output.shape));
    batch_ = batch;
  }
  require(context_->setInputTensorAddress(input.name.c_str(), images), "setInputTensorAddress");
  require(context_->setOutputTensorAddress(output.name.c_str(), logits), "setOutputTensorAddress");
}

void Context::enqueue() {
  told_ = loaded_.logger->errors();
  require(context_->enqueueV3(stream_), "enqueueV3");
}

void Context::require(bool done, const char* call, const std::string& details) const {
  if (!done) refuse(call, details);
}

void Context::refuse(const char* call, const std::string& details) const {
  std::vector<std::string> reasons;
  if (!details.empty()) reasons.push_back(details);
  const std::string said = loaded_.logger->error_since(told_);
  if (!said.empty()) reasons.push_back(said);
  throw BackendError(std::string(call) + " failed" + (reasons.empty() ? "" : ": ") +
                     joined(reasons, "; "));
}

Executor::Executor(LoadedEngine& loaded)
    : loaded_(loaded),
      stream_(cuda::make_stream()),
      ready_(cuda::make_event()),
      done_(cuda::make_event()) {
  // Contexts share memory only to be able to be many; a single one brings its own.
  if (loaded.capture) memory_ = cuda::make_device_memory(activation_bytes(*loaded.engine));
  for (const Batch& profile : loaded.profiles) {
    const std::size_t images = bytes(profile.max, loaded.input);
    const std::size_t logits = bytes(profile.max, loaded.output);
    buffers_.push_back({cuda::make_pinned_memory(images), cuda::make_pinned_memory(logits),
                        cuda::make_device_memory(images), cuda::make_device_memory(logits)});
  }
  if (!loaded.capture) plain();  // better now than on a request
}

Executor::~Executor() { cudaStreamSynchronize(stream_.get()); }

void Executor::run(const float* images, float* logits, const Piece& piece) {
  const cuda::WaitOnFailure wait(stream_.get());  // copies must not meet the next request
  const Buffers& buffers = buffers_[piece.profile];
  const std::size_t row = bytes(1, loaded_.input);
  auto* given = static_cast<std::uint8_t*>(buffers.images.get());
  std::memcpy(given, images, row * piece.rows);
  for (std::int64_t padded = piece.rows; padded < piece.batch; ++padded) {
    std::memcpy(given + row * padded, given + row * (piece.rows - 1), row);
  }
  cuda::check(cudaMemcpyAsync(buffers.device_images.get(), given, row * piece.batch,
                              cudaMemcpyHostToDevice, stream_.get()),
              "cudaMemcpyAsync");
  compute(piece, buffers);
  cuda::check(
      cudaMemcpyAsync(buffers.logits.get(), buffers.device_logits.get(),
                      bytes(piece.batch, loaded_.output), cudaMemcpyDeviceToHost, stream_.get()),
      "cudaMemcpyAsync");
  cuda::check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  std::memcpy(logits, buffers.logits.get(), bytes(piece.rows, loaded_.output));
}

void Executor::run_device(const float* images, float* logits, const Piece& piece,
                          cudaStream_t stream) {
  const cuda::WaitOnFailure wait(stream_.get());  // the caller may free its arrays after an error
  cuda::check(cudaEventRecord(ready_.get(), stream), "cudaEventRecord");
  cuda::check(cudaStreamWaitEvent(stream_.get(), ready_.get(), 0), "cudaStreamWaitEvent");
  enqueue_aligned(images, logits, piece);
  cuda::check(cudaEventRecord(done_.get(), stream_.get()), "cudaEventRecord");
  cuda::check(cudaStreamWaitEvent(stream, done_.get(), 0), "cudaStreamWaitEvent");
}

void Executor::enqueue_aligned(const float* images, float* logits, const Piece& piece) {
  const Buffers& buffers = buffers_[piece.profile];
  const void* source = images;
  void* target = logits;
  if (!aligned(images)) {
    source = buffers.device_images.get();
    cuda::check(
        cudaMemcpyAsync(buffers.device_images.get(), images, bytes(piece.batch, loaded_.input),
                        cudaMemcpyDeviceToDevice, stream_.get()),
        "cudaMemcpyAsync");
  }
  if (!aligned(logits)) target = buffers.device_logits.get();
  Context& context = plain();
  context.prepare(piece.profile, piece.batch, source, target);
  context.enqueue();
  if (target != logits) {
    cuda::check(cudaMemcpyAsync(logits, target, bytes(piece.batch, loaded_.output),
                                cudaMemcpyDeviceToDevice, stream_.get()),
                "cudaMemcpyAsync");
  }
}

void Executor::compute(const Piece& piece, const Buffers& buffers) {
  if (loaded_.capture) {
    cuda::check(cudaGraphLaunch(graph(piece, buffers).get(), stream_.get()), "cudaGraphLaunch");
    return;
  }
  plain().prepare(piece.profile, piece.batch, buffers.device_images.get(),
                  buffers.device_logits.get());
  plain().enqueue();
}

/// The graph of this profile and batch, captured when first needed.
const cuda::Graph& Executor::graph(const Piece& piece, const Buffers& buffers) {
  const auto known = std::find_if(captured_.begin(), captured_.end(), [&](const Captured& item) {
    return item.profile == piece.profile && item.batch == piece.batch;
  });
  if (known != captured_.end()) {
    captured_.splice(captured_.begin(), captured_, known);
    return captured_.front().graph;
  }
  if (captured_.size() == most_captured) captured_.pop_back();
  auto context = std::make_unique<Context>(loaded_, memory_.get(), stream_.get());
  const cuda::WaitOnFailure wait(stream_.get());  // before the context is freed
  context->prepare(piece.profile, piece.batch, buffers.device_images.get(),
                   buffers.device_logits.get());
  context->enqueue();  // after a change of shape the first run does what no capture allows
  cuda::check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  try {
    cuda::Graph graph = cuda::capture(stream_.get(), [&] { context->enqueue(); });
    captured_.push_front({piece.profile, piece.batch, std::move(context), std::move(graph)});
  } catch (const BackendError& error) {
    throw BackendError(
        "no CUDA graph of batch " + std::to_string(piece.batch) + ": " + error.found(), "",
        "run with cuda_graph = false");
  }
  return captured_.front().graph;
}

Context& Executor::plain() {
  if (!plain_) plain_ = std::make_unique<Context>(loaded_, memory_.get(), stream_.get());
  return *plain_;
}

}  // namespace densenet_deploy::detail
