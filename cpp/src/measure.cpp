#include "densenet_deploy/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "densenet_deploy/error.hpp"

namespace densenet_deploy {
namespace {

constexpr double window_seconds = 0.1;
constexpr double least_warmup = 0.3, most_warmup = 2.0;  // seconds
constexpr double steady_share = 0.02;                    // medians of three windows within 2 %
constexpr std::size_t least_requests = 10;
constexpr double tail_samples = 5;  // a percentile needs this many samples beyond it

/// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  }

 private:
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

double timed(const std::function<void()>& request) {
  const Stopwatch watch;
  request();
  return watch.seconds();
}

bool settled(const std::vector<double>& medians) {
  if (medians.size() < 3) return false;
  const auto [low, high] = std::minmax_element(medians.end() - 3, medians.end());
  return *high <= (1 + steady_share) * *low;
}

}  // namespace

std::optional<double> Measurement::percentile(double percent) const {
  const auto count = static_cast<double>(latencies.size());
  if (count * (100 - percent) / 100 < tail_samples) return std::nullopt;
  std::vector<double> sorted = latencies;
  const auto rank = static_cast<std::ptrdiff_t>(std::ceil(count * percent / 100)) - 1;
  const auto place = sorted.begin() + std::max<std::ptrdiff_t>(rank, 0);
  std::nth_element(sorted.begin(), place, sorted.end());
  return *place;
}

double Measurement::mean() const {
  return std::accumulate(latencies.begin(), latencies.end(), 0.0) /
         static_cast<double>(latencies.size());
}

double median(std::vector<double> values) {
  const std::size_t middle = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

WarmUp warm_up(const std::function<void()>& request) {
  const Stopwatch watch;
  std::vector<double> medians;
  double elapsed = 0;
  while ((elapsed = watch.seconds()) < most_warmup) {
    std::vector<double> window;
    double sum = 0;
    while (sum < window_seconds) {
      window.push_back(timed(request));
      sum += window.back();
    }
    medians.push_back(median(std::move(window)));
    if (elapsed >= least_warmup && settled(medians)) return {true, medians.back()};
  }
  return {false, medians.back()};
}

Rotation::Rotation(const Tensor& images, std::int64_t batch) : images_(images) {
  if (!images.complete() || images.rows() < 1 || batch < 1) {
    throw BackendError(
        std::to_string(images.rows()) + " images in batches of " + std::to_string(batch),
        "at least one of each");
  }
  rows_.shape = images.shape;
  rows_.shape[0] = batch;
  rows_.values.resize(static_cast<std::size_t>(batch) * images.row_size());
}

const Tensor& Rotation::next() {
  for (std::int64_t row = 0; row < rows_.rows(); ++row) {
    std::copy_n(images_.row(position_), images_.row_size(), rows_.row(row));
    position_ = (position_ + 1) % images_.rows();
  }
  return rows_;
}

Measurement measure(const Engine& engine, const Tensor& images, const MeasureOptions& options) {
  Rotation rotation(images, options.batch);
  Measurement result;
  result.batch = options.batch;
  const Stopwatch warming;
  result.steady = warm_up([&] { engine.run(rotation.next()); }).steady;
  result.warmup_seconds = warming.seconds();
  const Stopwatch timing;
  while (timing.seconds() < options.seconds || result.latencies.size() < least_requests) {
    const Tensor& request = rotation.next();
    result.latencies.push_back(timed([&] { engine.run(request); }));
  }
  return result;
}

}  // namespace densenet_deploy
