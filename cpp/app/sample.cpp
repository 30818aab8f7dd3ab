/// One timing for each line of standard input: for programs that let several sides take turns.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <densenet_deploy/densenet_deploy.hpp>
#include <iostream>
#include <optional>
#include <vector>

#include "commands.hpp"
#include "records.hpp"
#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;
namespace {

using Clock = std::chrono::steady_clock;

constexpr double sample_seconds = 0.05;
constexpr int least_requests = 3;  // a median of fewer is a mean

/// What is timed again and again. Getting a batch ready is not.
class Work {
 public:
  Work(const dd::Bundle& bundle, const SampleOptions& options)
      : classifier_(bundle, engine_options(options.load)),
        images_(options.images.begin(), options.images.end()),
        input_(options.images.empty() ? bundle.sample_input() : dd::Tensor()) {
    if (images_.empty()) rotation_.emplace(input_, options.batch);
  }

  double seconds() {
    const dd::Tensor* batch = rotation_ ? &rotation_->next() : nullptr;
    const Clock::time_point began = Clock::now();
    if (batch != nullptr) {
      classifier_.engine().run(*batch);
    } else {
      classifier_.classify(images_[next_++ % images_.size()]);
    }
    return std::chrono::duration<double>(Clock::now() - began).count();
  }

 private:
  dd::Classifier classifier_;
  std::vector<std::filesystem::path> images_;
  dd::Tensor input_;
  std::optional<dd::Rotation> rotation_;
  std::size_t next_ = 0;
};

/// Median seconds of `count` requests, after one that wakes threads and caches up.
double sample_once(Work& work, int count) {
  work.seconds();
  std::vector<double> seconds;
  for (int index = 0; index < count; ++index) seconds.push_back(work.seconds());
  return dd::median(std::move(seconds));
}

}  // namespace

int sample(const SampleOptions& options) {
  const Clock::time_point began = Clock::now();
  const dd::Bundle bundle = dd::Bundle::open(options.load.bundle);
  Work work(bundle, options);
  work.seconds();
  const double load_seconds = std::chrono::duration<double>(Clock::now() - began).count();
  const dd::WarmUp warm = dd::warm_up([&] { work.seconds(); });
  const int count =
      std::max(least_requests, static_cast<int>(std::ceil(sample_seconds / warm.median)));
  const Json opening = {
      {"load_seconds", load_seconds}, {"steady", warm.steady}, {"requests", count}};
  std::cout << opening.dump() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << Json(sample_once(work, count)).dump() << std::endl;
  }
  return 0;
}

}  // namespace app
