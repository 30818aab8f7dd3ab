#include "densenet_deploy/names.hpp"

#include <vector>

#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

template <class Choices>
auto parse(const Choices& choices, const std::string& name, const char* kind) {
  std::vector<std::string> known;
  for (const auto choice : choices) {
    if (to_string(choice) == name) return choice;
    known.push_back(to_string(choice));
  }
  throw BackendError(std::string("unknown ") + kind + " '" + name + "'", "one of " + joined(known));
}

}  // namespace

std::string to_string(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return "fp32";
    case Precision::fp16:
      return "fp16";
    case Precision::int8:
      return "int8";
  }
  return "?";
}

std::string to_string(Backend backend) {
  switch (backend) {
    case Backend::tensorrt:
      return "tensorrt";
    case Backend::tensorrt_rtx:
      return "tensorrt-rtx";
    case Backend::onnxruntime:
      return "onnxruntime";
    case Backend::openvino:
      return "openvino";
  }
  return "?";
}

Precision parse_precision(const std::string& name) {
  return parse(all_precisions, name, "precision");
}

Backend parse_backend(const std::string& name) { return parse(all_backends, name, "backend"); }

}  // namespace densenet_deploy
