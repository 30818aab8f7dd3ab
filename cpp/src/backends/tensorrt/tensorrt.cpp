/// TensorRT 10 and 11, or TensorRT-RTX where the library is built with its SDK: runs the engines of
/// a bundle on a GPU.

#include <NvInferRuntime.h>

#include "backend_engine.hpp"
#include "cuda.hpp"
#include "densenet_deploy/error.hpp"
#include "executor.hpp"
#include "files.hpp"
#include "pieces.hpp"
#include "pool.hpp"
#include "problems.hpp"
#include "select.hpp"
#include "text.hpp"

namespace densenet_deploy::detail {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr Backend this_backend = Backend::tensorrt_rtx;
constexpr bool captures = false;  // it compiles kernels when it first runs, which no capture allows
constexpr const char* product = "TensorRT-RTX ";
#else
constexpr Backend this_backend = Backend::tensorrt;
constexpr bool captures = true;
constexpr const char* product = "TensorRT ";
#endif
constexpr std::uint64_t most_plan_bytes = std::uint64_t{1} << 36;

std::string number() {
  return std::to_string(getInferLibMajorVersion()) + "." +
         std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." +
         std::to_string(getInferLibBuildVersion());
}

Site site(int device) { return {this_backend, number(), cuda::compute_capability(device)}; }

Batch read_profile(const nvinfer1::ICudaEngine& engine, const std::string& name, int index) {
  using Selector = nvinfer1::OptProfileSelector;
  const auto size = [&](Selector which) {
    return static_cast<std::int64_t>(engine.getProfileShape(name.c_str(), index, which).d[0]);
  };
  return {size(Selector::kMIN), size(Selector::kOPT), size(Selector::kMAX)};
}

/// Batch sizes of each optimization profile; those of a static batch are that one.
std::vector<Batch> read_profiles(const nvinfer1::ICudaEngine& engine, const std::string& name) {
  const std::int64_t fixed = engine.getTensorShape(name.c_str()).d[0];
  if (fixed != -1) return {{fixed, fixed, fixed}};
  std::vector<Batch> profiles;
  for (int index = 0; index < engine.getNbOptimizationProfiles(); ++index) {
    profiles.push_back(read_profile(engine, name, index));
  }
  return profiles;
}

/// What is not as the manifest promises about one tensor.
void check_tensor(const nvinfer1::ICudaEngine& engine, const TensorInfo& info,
                  nvinfer1::TensorIOMode mode, Problems& problems) {
  const char* name = info.name.c_str();
  if (engine.getTensorIOMode(name) != mode) {
    const bool is_input = mode == nvinfer1::TensorIOMode::kINPUT;
    return problems.add("it has no " + std::string(is_input ? "input" : "output") + " '" +
                        info.name + "'");
  }
  if (engine.getTensorDataType(name) != nvinfer1::DataType::kFLOAT) {
    problems.add("'" + info.name + "' is not float32");
  }
  if (engine.getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
    problems.add("'" + info.name + "' is not on the device");
  }
  const nvinfer1::Dims shape = engine.getTensorShape(name);
  const std::vector<std::int64_t> found(shape.d, shape.d + std::max(shape.nbDims, 0));
  if (found.empty() || std::vector<std::int64_t>(found.begin() + 1, found.end()) != info.shape) {
    problems.add("'" + info.name + "' has shape " + shape_text(found) +
                 ", the manifest says (N, ...) of " + shape_text(info.shape));
  }
}

/// @throws BackendError  Names every tensor and profile that is not as promised.
std::vector<Batch> read_io(const nvinfer1::ICudaEngine& engine, const Manifest& manifest,
                           const EngineFile& record) {
  Problems problems;
  if (engine.getNbIOTensors() != 2) {
    problems.add("it has " + std::to_string(engine.getNbIOTensors()) + " tensors, not 2");
  }
  check_tensor(engine, manifest.input, nvinfer1::TensorIOMode::kINPUT, problems);
  check_tensor(engine, manifest.output, nvinfer1::TensorIOMode::kOUTPUT, problems);
  std::vector<Batch> profiles;
  if (problems.empty()) {
    profiles = read_profiles(engine, manifest.input.name);
    if (profiles != record.profiles) problems.add("its profiles are not the manifest's");
  }
  if (!problems.empty()) {
    throw_collected<BackendError>(record.file + " is not the engine the manifest describes",
                                  problems);
  }
  return profiles;
}

using Executors = Pool<std::unique_ptr<Executor>>;

/// Everything that lives on the device; made and freed while that is the current one.
struct OnGpu {
  OnGpu(const Bundle& bundle, const EngineFile& record, const EngineOptions& options) {
    deserialize(bundle.file(record.file), record);
    const Manifest& manifest = bundle.manifest();
    loaded.input = manifest.input;
    loaded.output = manifest.output;
    loaded.profiles = read_io(*engine, manifest, record);
    loaded.capture = captures && options.cuda_graph;
    loaded.logger = &logger;
    loaded.engine = engine.get();
    std::vector<std::unique_ptr<Executor>> made;
    for (int index = 0; index < options.contexts; ++index) {
      made.push_back(std::make_unique<Executor>(loaded));
    }
    executors = std::make_unique<Executors>(std::move(made));
  }

  void deserialize(const std::filesystem::path& path, const EngineFile& record) {
    runtime.reset(nvinfer1::createInferRuntime(logger));
    if (!runtime) throw BackendError("createInferRuntime failed" + reason(": "));
    if (record.version_compatible) {
      runtime->setEngineHostCodeAllowed(true);  // such a plan brings its own small runtime
    }
    const std::vector<std::uint8_t> plan = read_file(path, most_plan_bytes);
    engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) {
      throw BackendError(to_string(this_backend) + " cannot load " + record.file + reason(": "));
    }
  }

  /// What TensorRT said, after `lead`; empty where it said nothing.
  std::string reason(const char* lead) const {
    const std::string said = logger.error_since(0);
    return said.empty() ? "" : lead + said;
  }

  // Freed in the reverse order.
  Logger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  LoadedEngine loaded;
  std::unique_ptr<Executors> executors;
};

class TensorRtEngine final : public BackendEngine {
 public:
  TensorRtEngine(const Bundle& bundle, const EngineOptions& options) : device_(options.device) {
    const EngineFile& record = choose_engine(bundle, options.precision, site(device_));
    if (record.weights == "stripped") {
      throw BackendError(record.file + " was built without weights, which only Python puts back",
                         "", "build it with weights = \"embedded\"");
    }
    const cuda::OnDevice on_device(device_);
    gpu_ = std::make_unique<OnGpu>(bundle, record, options);
  }

  ~TensorRtEngine() override {
    try {
      const cuda::OnDevice on_device(device_);
      gpu_.reset();
    } catch (const Error&) {  // the device is gone, and what lay on it
    }
  }

  void run(const float* images, std::int64_t rows, float* logits) override {
    const cuda::OnDevice on_device(device_);
    const LoadedEngine& loaded = gpu_->loaded;
    gpu_->executors->lend([&](const std::unique_ptr<Executor>& executor) {
      for (const Piece& piece : pieces(rows, loaded.profiles)) {
        executor->run(at(images, piece, loaded.input), at(logits, piece, loaded.output), piece);
      }
    });
  }

  void run_device(const float* images, std::int64_t rows, float* logits, void* stream) override {
    const LoadedEngine& loaded = gpu_->loaded;
    const std::vector<Piece> cut = pieces(rows, loaded.profiles);
    for (const Piece& piece : cut) {
      if (piece.rows == piece.batch) continue;
      throw BackendError("no profile holds " + std::to_string(piece.rows) + " rows");
    }
    const cuda::OnDevice on_device(device_);
    gpu_->executors->lend([&](const std::unique_ptr<Executor>& executor) {
      for (const Piece& piece : cut) {
        executor->run_device(at(images, piece, loaded.input), at(logits, piece, loaded.output),
                             piece, static_cast<cudaStream_t>(stream));
      }
    });
  }

  std::vector<Batch> profiles() const override { return gpu_->loaded.profiles; }
  bool splits() const override { return true; }
  std::string device() const override { return cuda::device_name(device_); }

 private:
  template <class Value>
  static Value* at(Value* first, const Piece& piece, const TensorInfo& info) {
    return first + static_cast<std::size_t>(piece.start) * info.row_size();
  }

  int device_;
  std::unique_ptr<OnGpu> gpu_;
};

std::string why_not(const Bundle& bundle, const EngineOptions& options) {
  try {
    choose_engine(bundle, options.precision, site(options.device));
  } catch (const BackendError& error) {
    return error.found();
  }
  return "";
}

EnginePointer load(const Bundle& bundle, const EngineOptions& options) {
  return std::make_unique<TensorRtEngine>(bundle, options);
}

}  // namespace

BackendEntry tensorrt_entry() {
  // Without a device the library hands out runtimes that crash: that is asked first, always.
  return {this_backend, cuda::why_no_device, [] { return product + number(); }, why_not, load};
}

}  // namespace densenet_deploy::detail
