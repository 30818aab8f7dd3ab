#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "densenet_deploy/engine.hpp"
#include "densenet_deploy/export.hpp"
#include "densenet_deploy/tensor.hpp"

namespace densenet_deploy {

struct MeasureOptions {
  std::int64_t batch = 1;  ///< Images per request.
  double seconds = 3.0;    ///< Least duration of the timed part; at least 10 requests are made.
};

/// Latency of back-to-back requests (MLPerf's single stream), in seconds of host wall time:
/// normalised images in, logits out. Nothing is removed.
struct DENSENET_DEPLOY_EXPORT Measurement {
  std::int64_t batch = 1;
  double warmup_seconds = 0.0;  ///< Untimed running before the first sample.
  bool steady = false;          ///< Whether the median had settled when timing began.
  std::vector<double> latencies;

  /// Nearest-rank percentile; none where fewer than 5 samples lie beyond it.
  std::optional<double> percentile(double percent) const;
  double mean() const;
  double images_per_second() const { return static_cast<double>(batch) / mean(); }
};

/// Warms up until steady, then times requests that walk through `images` (N, C, H, W).
///
/// @throws BackendError  No images, a batch size that the engine refuses, or it failed.
DENSENET_DEPLOY_EXPORT Measurement measure(const Engine& engine, const Tensor& images,
                                           const MeasureOptions& options = {});

/// How a warm-up ended.
struct WarmUp {
  bool steady = false;  ///< Three successive windows of 0.1 s had the same median, within 2 %.
  double median = 0.0;  ///< Of the last window, in seconds.
};

/// Repeats `request` until its median latency settles, for 0.3 to 2 seconds.
DENSENET_DEPLOY_EXPORT WarmUp warm_up(const std::function<void()>& request);

/// Median of `values`; the mean of the middle two where their number is even.
DENSENET_DEPLOY_EXPORT double median(std::vector<double> values);

/// Batches of `batch` rows that walk through images endlessly, so that no two in a row are the
/// same.
class DENSENET_DEPLOY_EXPORT Rotation {
 public:
  Rotation(const Tensor& images, std::int64_t batch);
  const Tensor& next();

 private:
  const Tensor& images_;
  Tensor rows_;
  std::int64_t position_ = 0;
};

}  // namespace densenet_deploy
