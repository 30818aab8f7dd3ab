#include "densenet_deploy/parity.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

/// A number with as many digits as `format` says.
std::string number(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

int top1(const Tensor& logits, std::int64_t row) {
  const float* first = logits.row(row);
  return static_cast<int>(std::max_element(first, first + logits.row_size()) - first);
}

double cosine(const Tensor& a, const Tensor& b) {
  double product = 0, squares_a = 0, squares_b = 0;
  for (std::size_t index = 0; index < a.values.size(); ++index) {
    const double x = a.values[index], y = b.values[index];
    product += x * y;
    squares_a += x * x;
    squares_b += y * y;
  }
  const double norm = std::sqrt(squares_a) * std::sqrt(squares_b);
  return norm != 0 ? product / norm : a.values == b.values;
}

void judge(Parity& parity, const Tolerance& tolerance) {
  std::vector<std::string>& failures = parity.failures;
  if (parity.nonfinite != 0) {
    failures.push_back(std::to_string(parity.nonfinite) + " logits are NaN or infinite");
  }
  // Negated, so that NaN fails.
  if (!(parity.agreement >= tolerance.agreement - 1e-9)) {
    failures.push_back("agreement " + number("%.2f", parity.agreement) + " %, required " +
                       number("%g", tolerance.agreement) + " %");
  }
  if (tolerance.max_abs != 0 && !(parity.max_abs <= tolerance.max_abs)) {
    failures.push_back("max |d logit| " + number("%.3g", parity.max_abs) + ", allowed " +
                       number("%g", tolerance.max_abs));
  }
  if (!(parity.cosine >= tolerance.cosine)) {
    failures.push_back("cosine " + number("%.6f", parity.cosine) + ", required " +
                       number("%g", tolerance.cosine));
  }
}

}  // namespace

Parity compare(const Tensor& reference, const Tensor& candidate, const Tolerance& tolerance) {
  const bool fit = reference.shape == candidate.shape && reference.shape.size() == 2 &&
                   reference.complete() && candidate.complete();
  if (!fit || reference.rows() < 1 || reference.row_size() < 1) {
    throw DataError("logits of shape " + shape_text(candidate.shape) + " to compare with " +
                        shape_text(reference.shape),
                    "two equal shapes (N, classes) with at least one row");
  }
  Parity parity;
  parity.images = reference.rows();
  std::int64_t equal = 0;
  for (std::int64_t row = 0; row < parity.images; ++row) {
    equal += top1(reference, row) == top1(candidate, row);
  }
  parity.agreement = 100.0 * static_cast<double>(equal) / static_cast<double>(parity.images);
  for (std::size_t index = 0; index < reference.values.size(); ++index) {
    const double difference =
        std::abs(static_cast<double>(candidate.values[index]) - reference.values[index]);
    // A NaN is the largest difference of all and stays it, as in NumPy's max.
    if (std::isnan(difference) || difference > parity.max_abs) parity.max_abs = difference;
    if (!std::isfinite(candidate.values[index])) ++parity.nonfinite;
  }
  parity.cosine = cosine(reference, candidate);
  judge(parity, tolerance);
  return parity;
}

}  // namespace densenet_deploy
