/// OpenVINO on the CPU, with the settings of the Python package.

#include <algorithm>
#include <openvino/openvino.hpp>

#include "backend_engine.hpp"
#include "densenet_deploy/error.hpp"
#include "pool.hpp"
#include "text.hpp"

namespace densenet_deploy::detail {
namespace {

constexpr int request_count = 2;  // one computes while another thread fills or reads the other

/// The last line of what OpenVINO says; those before name its own source files.
std::string reason(const std::exception& error) {
  std::string text = error.what();
  text.erase(text.find_last_not_of(" \n") + 1);
  text.erase(0, text.rfind('\n') + 1);
  return text.substr(0, 200);
}

class OpenVinoEngine final : public BackendEngine {
 public:
  OpenVinoEngine(ov::CompiledModel compiled, const Manifest& manifest)
      : compiled_(std::move(compiled)), requests_(make_requests(compiled_)) {
    shape_.push_back(0);
    for (const std::int64_t size : manifest.input.shape) {
      shape_.push_back(static_cast<std::size_t>(size));
    }
    classes_ = manifest.output.row_size();
  }

  void run(const float* images, std::int64_t rows, float* logits) override {
    ov::Shape shape = shape_;
    shape[0] = static_cast<std::size_t>(rows);
    requests_.lend([&](ov::InferRequest& request) {
      // Read where it lies. OpenVINO only reads it, but its tensors know no const.
      request.set_input_tensor(ov::Tensor(ov::element::f32, shape, const_cast<float*>(images)));
      request.infer();
      const ov::Tensor output = request.get_output_tensor();
      if (output.get_size() != shape[0] * classes_) {
        throw BackendError("it gave " + std::to_string(output.get_size()) + " logits",
                           std::to_string(shape[0] * classes_));
      }
      std::copy_n(std::as_const(output).data<float>(), output.get_size(), logits);
    });
  }

 private:
  static std::vector<ov::InferRequest> make_requests(ov::CompiledModel& compiled) {
    std::vector<ov::InferRequest> requests;
    for (int index = 0; index < request_count; ++index) {
      requests.push_back(compiled.create_infer_request());
    }
    return requests;
  }

  ov::CompiledModel compiled_;
  Pool<ov::InferRequest> requests_;
  ov::Shape shape_;
  std::size_t classes_ = 0;
};

EnginePointer load(const Bundle& bundle, const EngineOptions& options) {
  const std::filesystem::path path = bundle.model(options.precision, Backend::openvino);
  try {
    ov::Core core;
    return std::make_unique<OpenVinoEngine>(
        core.compile_model(
            path.string(), "CPU",
            // Its default on recent CPUs is bf16: less exact than the graph says.
            ov::hint::inference_precision(ov::element::f32),
            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
            ov::inference_num_threads(options.threads != 0 ? options.threads : usable_cores())),
        bundle.manifest());
  } catch (const ov::Exception& error) {
    throw BackendError("openvino refuses " + shown(path.filename()) + ": " + reason(error));
  }
}

std::string version() {
  const std::string build = ov::get_openvino_version().buildNumber;
  return "OpenVINO " + build.substr(0, build.find('-'));
}

}  // namespace

BackendEntry openvino_entry() {
  return {Backend::openvino, [] { return std::string(); }, version, nothing_known, load};
}

}  // namespace densenet_deploy::detail
