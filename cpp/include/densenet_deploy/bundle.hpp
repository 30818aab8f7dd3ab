#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "densenet_deploy/export.hpp"
#include "densenet_deploy/names.hpp"
#include "densenet_deploy/preprocessing.hpp"
#include "densenet_deploy/tensor.hpp"

namespace densenet_deploy {

/// The manifest layout that this library reads.
inline constexpr int schema_version = 2;

/// Least, best and most images of a request.
struct Batch {
  std::int64_t min = 0;
  std::int64_t opt = 0;
  std::int64_t max = 0;
};

inline bool operator==(const Batch& a, const Batch& b) {
  return a.min == b.min && a.opt == b.opt && a.max == b.max;
}

/// An input or output of the network, float32.
struct TensorInfo {
  std::string name;
  std::vector<std::int64_t> shape;  ///< Without the batch: (C, H, W), or (classes).

  std::size_t row_size() const {
    std::size_t size = 1;
    for (const std::int64_t dimension : shape) size *= static_cast<std::size_t>(dimension);
    return size;
  }
};

/// A compiled engine and what it runs on.
struct EngineFile {
  std::string file;
  Backend backend = Backend::tensorrt;
  Precision precision = Precision::fp32;
  std::string version;          ///< Of the builder, such as `10.16.1.11`.
  std::vector<Batch> profiles;  ///< Of each optimization profile, in the engine's order.
  std::vector<std::string> compute_capabilities;  ///< Such as `8.6`.
  std::string hardware_compatibility = "none";
  bool version_compatible = false;
  std::string weights = "embedded";  ///< `embedded`, `refittable` or `stripped`.
};

/// What a graph may differ from the reference, by the bundle's recipe.
struct Tolerance {
  double top1_drop = 0.0;  ///< Percentage points.
  double agreement = 0.0;  ///< Least share of equal top-1 classes, in percent.
  double max_abs = 0.0;    ///< Most that a logit differs; 0 for no limit.
  double cosine = 0.0;     ///< Least cosine similarity of all logits together.
};

/// What `manifest.json` says that a program needs; the Python package documents every key.
struct Manifest {
  std::string name, description, model, target, weights, recipe_digest, created_by;
  bool speed_only = false;  ///< The weights are not trained: time it, do not trust its answers.
  Batch batch;
  TensorInfo input, output;
  Preprocessing preprocessing;
  std::vector<std::string> labels;  ///< Class names; empty where unknown.
  std::map<Precision, std::string> models;
  std::map<std::string, std::map<Precision, std::string>> lowered;  ///< By backend.
  std::vector<EngineFile> engines;
  std::map<std::string, std::string> golden;
  std::vector<std::string> samples;
  std::map<std::string, std::string> records;
  std::map<Precision, Tolerance> tolerances;
  std::map<std::string, std::string> sha256;  ///< Of every file but the manifest.
};

/// An opened, verified bundle. Copies share the manifest; all of it is safe to read from any
/// thread.
class DENSENET_DEPLOY_EXPORT Bundle {
 public:
  /// Reads and verifies a bundle: schema, consistency, that no path leaves it, size and SHA-256 of
  /// every file.
  ///
  /// @throws BundleError  Says everything that is wrong.
  static Bundle open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const Manifest& manifest() const { return *manifest_; }

  /// Path of one of the bundle's files.
  std::filesystem::path file(const std::string& name) const;

  /// The ONNX file of a precision: a backend's own, where there is one.
  ///
  /// @throws BundleError  The bundle has none.
  std::filesystem::path model(Precision precision, Backend backend) const;

  /// Normalised images, and PyTorch's fp32 logits of them.
  ///
  /// @throws BundleError  They are not what the manifest promises.
  Tensor golden_input() const;
  Tensor golden_output() const;

  /// The sample images as the network's input. They are stored after geometry, so nothing is
  /// resized or cropped again.
  ///
  /// @throws DataError  A sample is not an image, or there is none.
  Tensor sample_input() const;

  /// SHA-256 of the manifest, and so of everything it names, as 64 hexadecimal digits.
  std::string digest() const;

 private:
  Bundle(std::filesystem::path path, std::shared_ptr<const Manifest> manifest)
      : path_(std::move(path)), manifest_(std::move(manifest)) {}

  Tensor golden(const std::string& key, const TensorInfo& promised) const;

  std::filesystem::path path_;
  std::shared_ptr<const Manifest> manifest_;
};

}  // namespace densenet_deploy
