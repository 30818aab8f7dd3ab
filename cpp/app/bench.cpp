#include <chrono>
#include <cmath>
#include <cstdio>
#include <densenet_deploy/densenet_deploy.hpp>
#include <iostream>
#include <optional>

#ifdef _WIN32
#include <io.h>
#define isatty _isatty
#define STDERR_FILENO 2
#else
#include <unistd.h>
#endif

#include "commands.hpp"
#include "records.hpp"
#include "select.hpp"

namespace app {
namespace dd = densenet_deploy;
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

/// Tells a person at a terminal what is measured, and how long the rest will take.
class Progress {
 public:
  explicit Progress(std::size_t total) : total_(total), shown_(isatty(STDERR_FILENO) != 0) {}
  ~Progress() { clear(); }

  void start(const std::string& what) {
    if (!shown_) return;
    clear();
    std::cerr << "[" << done_ + 1 << "/" << total_ << "] " << what;
    if (done_ > 0) {
      const double left = seconds_since(began_) / done_ * (total_ - done_);
      std::cerr << ", about " << static_cast<int>(left + 1) << " s left";
    }
    std::cerr << std::flush;
    ++done_;
  }

 private:
  void clear() const {
    if (shown_) std::cerr << "\r\x1b[K" << std::flush;
  }

  std::size_t total_, done_ = 0;
  bool shown_;
  Clock::time_point began_ = Clock::now();
};

/// Everything one run found.
struct Found {
  Json measurements = Json::array();
  std::vector<Skipped> skipped;
  std::set<std::string> devices;
};

std::string milliseconds(const Json& seconds) {
  if (seconds.is_null()) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", 1000 * seconds.get<double>());
  return text;
}

void tell(const Json& measurements) {
  std::printf("%-9s  %-12s  %5s  %8s  %8s  %8s  %9s\n", "precision", "backend", "batch", "p50 ms",
              "p90 ms", "p99 ms", "images/s");
  for (const Json& row : measurements) {
    std::printf("%-9s  %-12s  %5d  %8s  %8s  %8s  %9.0f\n",
                row["precision"].get<std::string>().c_str(),
                row["backend"].get<std::string>().c_str(), row["batch"].get<int>(),
                ((row["steady"].get<bool>() ? "" : "~") + milliseconds(row["p50_seconds"])).c_str(),
                milliseconds(row["p90_seconds"]).c_str(), milliseconds(row["p99_seconds"]).c_str(),
                row["images_per_second"].get<double>());
  }
}

/// Parity as the bundle records it: accuracy beside speed.
Json recorded_parity(const dd::Bundle& bundle) {
  const auto file = bundle.manifest().records.find("run");
  if (file == bundle.manifest().records.end()) return Json::array();
  const Json records = read_json(bundle.file(file->second));
  return records.is_object() ? records.value("parity", Json::array()) : Json::array();
}

void measure_job(const dd::Bundle& bundle, const dd::Tensor& images, const Job& job,
                 const BenchOptions& options, Progress& progress, Found& found) {
  progress.start("loading " + title(job));
  const Clock::time_point began = Clock::now();
  const dd::Engine engine = dd::Engine::load(bundle, engine_options(options.sweep, job));
  engine.run(dd::Rotation(images, bundle.manifest().batch.min).next());
  const double load_seconds = seconds_since(began);
  found.devices.insert(engine.device());
  const int threads = options.sweep.threads != 0 ? options.sweep.threads : dd::usable_cores();
  for (const std::int64_t batch : options.batch_sizes) {
    progress.start(title(job) + ", batch " + std::to_string(batch));
    const dd::Measurement measured = measure(engine, images, {batch, options.seconds});
    found.measurements.push_back(record(measured, {job, threads, load_seconds}));
  }
}

Found measure_all(const dd::Bundle& bundle, const BenchOptions& options) {
  const Selection selection = select(bundle, options.sweep);
  const dd::Tensor images = bundle.sample_input();
  Found found;
  found.skipped = selection.skipped;
  Progress progress(selection.jobs.size() * (1 + options.batch_sizes.size()));
  for (const Job& job : selection.jobs) {
    try {
      measure_job(bundle, images, job, options, progress, found);
    } catch (const dd::BackendError& error) {
      if (!options.sweep.backends.empty()) throw;  // it was asked for
      found.skipped.push_back(
          {to_string(job.backend), to_string(job.precision) + ": " + error.what()});
    }
  }
  if (found.measurements.empty()) {
    throw dd::BackendError("nothing could be measured: " + found.skipped.back().reason);
  }
  return found;
}

void check(const dd::Bundle& bundle, const BenchOptions& options) {
  const auto [low, best, high] = bundle.manifest().batch;
  for (const std::int64_t batch : options.batch_sizes) {
    if (batch >= low && batch <= high) continue;
    throw dd::BackendError("batch size " + std::to_string(batch),
                           std::to_string(low) + " to " + std::to_string(high),
                           "choose --batch within the bounds, or export again with wider ones");
  }
  if (!(options.seconds > 0) || !std::isfinite(options.seconds)) {
    throw dd::BackendError("--seconds " + std::to_string(options.seconds), "a positive number");
  }
}

}  // namespace

int bench(const BenchOptions& options) {
  const dd::Bundle bundle = dd::Bundle::open(options.sweep.bundle);
  check(bundle, options);
  std::optional<dd::OutputFile> out;  // made first, so that no measurement is lost to a name
  if (!options.out.empty()) out.emplace(options.out);
  const Found found = measure_all(bundle, options);
  const Json records = {{"bundle", identity(bundle)},
                        {"parity", recorded_parity(bundle)},
                        {"measurements", found.measurements},
                        {"skipped", record(found.skipped)},
                        {"process", {{"peak_memory_bytes", peak_memory_bytes()}}},
                        {"environment", environment(found.devices)},
                        {"environments", Json::object()}};
  if (out) out->commit(text(records) + "\n");
  if (options.sweep.json) {
    print(records);
    return 0;
  }
  std::cout << bundle.manifest().description << "\n";
  tell(found.measurements);
  for (const Skipped& item : found.skipped) {
    std::cout << "skipped " << item.backend << ": " << item.reason << "\n";
  }
  std::printf("peak memory of this process: %.0f MiB\n", peak_memory_bytes() / 1048576.0);
  return 0;
}

}  // namespace app
