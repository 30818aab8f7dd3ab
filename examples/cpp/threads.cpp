// Several threads over one engine: threads BUNDLE
//
// Every const function of an engine may be called from any thread. One core for each request and
// several requests at once give more throughput than all cores for one.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <densenet_deploy/densenet_deploy.hpp>
#include <exception>
#include <thread>
#include <vector>

namespace dd = densenet_deploy;

constexpr int workers = 4, requests = 2000;

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "usage: threads BUNDLE\n"), 2;
  try {
    const auto bundle = dd::Bundle::open(arguments[1]);
    dd::EngineOptions options;
    options.threads = 1;
    const auto engine = dd::Engine::load(bundle, options);
    const dd::Tensor images = bundle.sample_input();

    std::atomic<int> next{0};
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
    const auto work = [&] {
      std::vector<float> logits(engine.output().row_size());
      try {
        for (int request = next++; request < requests; request = next++) {
          engine.run(images.row(request % images.rows()), 1, logits.data());
        }
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    };
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int worker = 0; worker < workers; ++worker) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);

    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    std::printf("%d images in %.1f s with %d threads: %.0f images/s\n", requests, seconds.count(),
                workers, requests / seconds.count());
  } catch (const dd::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 2;
  }
}
