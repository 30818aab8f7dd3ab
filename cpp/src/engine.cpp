#include "densenet_deploy/engine.hpp"

#include <algorithm>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "backend_engine.hpp"
#include "densenet_deploy/error.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

const detail::BackendEntry* find_entry(Backend backend) {
  for (const detail::BackendEntry& entry : detail::backend_entries()) {
    if (entry.backend == backend) return &entry;
  }
  return nullptr;
}

std::string compiled_names() {
  std::vector<std::string> names;
  for (const Backend backend : compiled_backends()) names.push_back(to_string(backend));
  return names.empty() ? "no backend" : joined(names);
}

const detail::BackendEntry& require(Backend backend) {
  if (const std::string reason = why_unavailable(backend); !reason.empty()) {
    throw BackendError(to_string(backend) + " cannot run here: " + reason);
  }
  return *find_entry(backend);
}

/// The first backend that can run the bundle here.
const detail::BackendEntry& choose(const Bundle& bundle, const EngineOptions& options) {
  std::string reasons;
  for (const detail::BackendEntry& entry : detail::backend_entries()) {
    const std::string reason = why_unavailable(entry.backend, bundle, options);
    if (reason.empty()) return entry;
    reasons += (reasons.empty() ? "" : "; ") + to_string(entry.backend) + ": " + reason;
  }
  throw BackendError("no backend can run " + shown(bundle.path()) + " here" +
                         (reasons.empty() ? "" : " (" + reasons + ")"),
                     "one of " + compiled_names(),
                     "build the library with OpenVINO, which runs on every CPU");
}

}  // namespace

namespace detail {

void BackendEngine::run_device(const float*, std::int64_t, float*, void*) {
  throw BackendError("this backend runs on the CPU and has no device memory",
                     "tensorrt or tensorrt-rtx", "call run with host memory");
}

}  // namespace detail

struct Engine::Loaded {
  Bundle bundle;  // keeps the manifest
  Backend backend;
  Precision precision;
  std::unique_ptr<detail::BackendEngine> engine;
  std::vector<Batch> profiles;

  /// Takes what `engine.run` needs: rows within the bundle's bounds, unless it splits.
  void check(const float* images, std::int64_t rows, const float* logits) const {
    const Batch& batch = bundle.manifest().batch;
    const bool fits = engine->splits() ? rows >= 1 : batch.min <= rows && rows <= batch.max;
    if (fits && (images == nullptr || logits == nullptr)) {
      throw BackendError("a null pointer", "an array");
    }
    if (fits) return;
    throw BackendError(
        "batch size " + std::to_string(rows),
        engine->splits() ? "1 or more"
                         : std::to_string(batch.min) + " to " + std::to_string(batch.max),
        engine->splits() ? "" : "split the batch, or export again with other --batch bounds");
  }

  /// Runs `call` and names the backend in what it throws.
  template <class Call>
  void naming_failures(const Call& call) const {
    const auto prefix = [&] { return to_string(backend) + " failed on " + to_string(precision); };
    try {
      call();
    } catch (const BackendError& error) {
      throw BackendError(prefix() + ": " + error.found(), error.expected(), error.remedy());
    } catch (const std::exception& error) {
      throw BackendError(prefix() + ": " + error.what());
    }
  }
};

Engine::Engine(std::unique_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Engine Engine::load(const Bundle& bundle, const EngineOptions& options) {
  if (options.threads < 0 || options.device < 0 || options.contexts < 1) {
    throw BackendError("threads " + std::to_string(options.threads) + ", device " +
                           std::to_string(options.device) + ", contexts " +
                           std::to_string(options.contexts),
                       "none negative, and at least one context");
  }
  const detail::BackendEntry& entry =
      options.backend ? require(*options.backend) : choose(bundle, options);
  bundle.model(options.precision, entry.backend);  // says which precisions there are
  auto loaded = std::make_unique<Loaded>(
      Loaded{bundle, entry.backend, options.precision, entry.load(bundle, options), {}});
  loaded->profiles = loaded->engine->profiles();
  if (loaded->profiles.empty()) loaded->profiles = {bundle.manifest().batch};
  return Engine(std::move(loaded));
}

Tensor Engine::run(const Tensor& images) const {
  const std::vector<std::int64_t>& image = input().shape;
  const bool fits = images.shape.size() == image.size() + 1 &&
                    std::equal(image.begin(), image.end(), images.shape.begin() + 1) &&
                    images.complete();
  if (!fits) {
    throw BackendError("input '" + input().name + "' has shape " + shape_text(images.shape) +
                           " and " + std::to_string(images.values.size()) + " values",
                       "(N, ...) of " + shape_text(image));
  }
  Tensor logits;
  logits.shape = {images.rows(), output().shape.front()};
  logits.values.resize(static_cast<std::size_t>(images.rows()) * output().row_size());
  run(images.values.data(), images.rows(), logits.values.data());
  return logits;
}

void Engine::run(const float* images, std::int64_t rows, float* logits) const {
  loaded_->check(images, rows, logits);
  loaded_->naming_failures([&] { loaded_->engine->run(images, rows, logits); });
}

void Engine::run_device(const float* images, std::int64_t rows, float* logits, void* stream) const {
  loaded_->check(images, rows, logits);
  loaded_->naming_failures([&] { loaded_->engine->run_device(images, rows, logits, stream); });
}

Backend Engine::backend() const { return loaded_->backend; }
Precision Engine::precision() const { return loaded_->precision; }
const std::vector<Batch>& Engine::profiles() const { return loaded_->profiles; }
std::string Engine::device() const { return loaded_->engine->device(); }
const TensorInfo& Engine::input() const { return loaded_->bundle.manifest().input; }
const TensorInfo& Engine::output() const { return loaded_->bundle.manifest().output; }

std::vector<Backend> compiled_backends() {
  std::vector<Backend> backends;
  for (const detail::BackendEntry& entry : detail::backend_entries()) {
    backends.push_back(entry.backend);
  }
  return backends;
}

std::string why_unavailable(Backend backend) {
  const detail::BackendEntry* entry = find_entry(backend);
  if (entry != nullptr) return entry->why_unavailable();
  return "this build of the library lacks it and has " + compiled_names();
}

std::string why_unavailable(Backend backend, const Bundle& bundle, const EngineOptions& options) {
  const std::string reason = why_unavailable(backend);
  return reason.empty() ? find_entry(backend)->why_not(bundle, options) : reason;
}

std::string library_version(Backend backend) {
  const detail::BackendEntry* entry = find_entry(backend);
  return entry == nullptr ? "" : entry->version();
}

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace densenet_deploy
