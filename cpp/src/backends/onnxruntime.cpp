/// ONNX Runtime on the CPU, with the settings of the Python package.

#include <onnxruntime_cxx_api.h>

#include "backend_engine.hpp"
#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy::detail {
namespace {

class OnnxRuntimeEngine final : public BackendEngine {
 public:
  OnnxRuntimeEngine(const std::filesystem::path& path, int threads, const Manifest& manifest)
      : input_(manifest.input), output_(manifest.output), environment_(ORT_LOGGING_LEVEL_ERROR) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads != 0 ? threads : usable_cores());
    // It quantizes biases that a graph keeps in floating point, with a scale too small for fp16.
    options.AddConfigEntry("optimization.disable_specified_optimizers", "WeightBiasQuantization");
    session_ = Ort::Session(environment_, path.c_str(), options);
  }

  /// A session takes calls from several threads at once as it is.
  void run(const float* images, std::int64_t rows, float* logits) override {
    const Ort::Value given = tensor(const_cast<float*>(images), rows, input_);
    Ort::Value computed = tensor(logits, rows, output_);
    const char* input = input_.name.c_str();
    const char* output = output_.name.c_str();
    session_.Run(Ort::RunOptions(), &input, &given, 1, &output, &computed, 1);
  }

 private:
  Ort::Value tensor(float* data, std::int64_t rows, const TensorInfo& info) const {
    std::vector<std::int64_t> shape{rows};
    shape.insert(shape.end(), info.shape.begin(), info.shape.end());
    const auto count = static_cast<std::size_t>(rows) * info.row_size();
    return Ort::Value::CreateTensor<float>(memory_, data, count, shape.data(), shape.size());
  }

  TensorInfo input_, output_;
  Ort::Env environment_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Session session_{nullptr};
};

EnginePointer load(const Bundle& bundle, const EngineOptions& options) {
  const std::filesystem::path path = bundle.model(options.precision, Backend::onnxruntime);
  try {
    return std::make_unique<OnnxRuntimeEngine>(path, options.threads, bundle.manifest());
  } catch (const Ort::Exception& error) {
    throw BackendError("onnxruntime refuses " + shown(path.filename()) + ": " + error.what());
  }
}

std::string version() { return std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString(); }

}  // namespace

BackendEntry onnxruntime_entry() {
  return {Backend::onnxruntime, [] { return std::string(); }, version, nothing_known, load};
}

}  // namespace densenet_deploy::detail
