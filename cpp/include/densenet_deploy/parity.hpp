#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "densenet_deploy/bundle.hpp"
#include "densenet_deploy/export.hpp"
#include "densenet_deploy/tensor.hpp"

namespace densenet_deploy {

/// Two sets of logits of the same images.
struct Parity {
  std::int64_t images = 0;
  double agreement = 0.0;             ///< Images with the same top-1 class, in percent.
  double max_abs = 0.0;               ///< Largest absolute difference of a logit.
  double cosine = 0.0;                ///< Cosine similarity of all logits together.
  std::int64_t nonfinite = 0;         ///< Candidate logits that are NaN or infinite.
  std::vector<std::string> failures;  ///< Every term of the tolerance that does not hold.

  explicit operator bool() const { return failures.empty(); }
};

/// Compares logits (N, classes) with the reference's and judges them.
///
/// @throws DataError  The shapes differ, or there is no image.
DENSENET_DEPLOY_EXPORT Parity compare(const Tensor& reference, const Tensor& candidate,
                                      const Tolerance& tolerance);

}  // namespace densenet_deploy
