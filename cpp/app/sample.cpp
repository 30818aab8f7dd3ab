/// One timing for each line of standard input: for programs that let several sides take turns.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <densenet_deploy/densenet_deploy.hpp>
#include <functional>
#include <iostream>

#include "commands.hpp"
#include "records.hpp"
#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;
namespace {

using Clock = std::chrono::steady_clock;

constexpr double sample_seconds = 0.05;
constexpr int least_requests = 3;  // a median of fewer is a mean

double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

/// Median seconds of `count` requests, after one that wakes threads and caches up.
double sample_once(const std::function<void()>& request, int count) {
  request();
  std::vector<double> seconds;
  for (int index = 0; index < count; ++index) {
    const Clock::time_point began = Clock::now();
    request();
    seconds.push_back(seconds_since(began));
  }
  return dd::median(std::move(seconds));
}

}  // namespace

int sample(const SampleOptions& options) {
  const Clock::time_point began = Clock::now();
  const dd::Bundle bundle = dd::Bundle::open(options.load.bundle);
  const dd::Classifier classifier(bundle, engine_options(options.load));
  const dd::Tensor input = options.images.empty()
                               ? bundle.manifest().preprocessing.prepare(bundle.samples())
                               : dd::Tensor();
  std::optional<dd::Rotation> rotation;
  if (options.images.empty()) rotation.emplace(input, options.batch);
  std::size_t next = 0;
  const std::function<void()> request = [&] {
    if (rotation) {
      classifier.engine().run(rotation->next());
    } else {
      classifier.classify(std::filesystem::path(options.images[next++ % options.images.size()]));
    }
  };
  request();
  const double load_seconds = seconds_since(began);
  const dd::WarmUp warm = dd::warm_up(request);
  const int count =
      std::max(least_requests, static_cast<int>(std::ceil(sample_seconds / warm.median)));
  const Json opening = {
      {"load_seconds", load_seconds}, {"steady", warm.steady}, {"requests", count}};
  std::cout << opening.dump() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << Json(sample_once(request, count)).dump() << std::endl;
  }
  return 0;
}

}  // namespace app
