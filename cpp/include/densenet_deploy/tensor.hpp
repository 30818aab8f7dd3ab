#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "densenet_deploy/export.hpp"

namespace densenet_deploy {

/// A float32 array in host memory, row-major; the first dimension is the batch.
struct DENSENET_DEPLOY_EXPORT Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;

  /// Size of the first dimension; 0 for a tensor without dimensions.
  std::int64_t rows() const;
  /// Whether there are as many values as the shape says.
  bool complete() const;
  /// Values of one row.
  std::size_t row_size() const;
  const float* row(std::int64_t index) const { return values.data() + index * row_size(); }
  float* row(std::int64_t index) { return values.data() + index * row_size(); }
};

/// Reads a NumPy .npy file of little-endian float32 in C order.
///
/// @throws DataError  It is missing, damaged, of another type or order, or its size is not what its
///                    shape says; nothing is allocated before that is known.
DENSENET_DEPLOY_EXPORT Tensor read_npy(const std::filesystem::path& path);

/// Writes a NumPy .npy file.
///
/// @throws DataError  It cannot be written.
DENSENET_DEPLOY_EXPORT void write_npy(const std::filesystem::path& path, const Tensor& tensor);

}  // namespace densenet_deploy
