#pragma once

#include <array>
#include <string>

#include "densenet_deploy/export.hpp"

namespace densenet_deploy {

/// Numeric precision, a property of the graph.
enum class Precision { fp32, fp16, int8 };

/// What runs a graph. TensorRT and TensorRT-RTX run a bundle's engines, the others its ONNX files.
enum class Backend { tensorrt, tensorrt_rtx, onnxruntime, openvino };

inline constexpr std::array<Precision, 3> all_precisions{Precision::fp32, Precision::fp16,
                                                         Precision::int8};

/// In the order in which `Engine::load` tries them where none is asked for.
inline constexpr std::array<Backend, 4> all_backends{Backend::tensorrt, Backend::tensorrt_rtx,
                                                     Backend::onnxruntime, Backend::openvino};

/// The names that bundles and command lines use, such as `fp16` and `tensorrt-rtx`.
DENSENET_DEPLOY_EXPORT std::string to_string(Precision precision);
DENSENET_DEPLOY_EXPORT std::string to_string(Backend backend);

/// @throws BackendError  There is none of that name; names those there are.
DENSENET_DEPLOY_EXPORT Precision parse_precision(const std::string& name);
DENSENET_DEPLOY_EXPORT Backend parse_backend(const std::string& name);

}  // namespace densenet_deploy
