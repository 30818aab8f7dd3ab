/// TensorRT's runtime objects over the simulated GPU. A plan is text: `plan`, then min,opt,max of
/// each profile; its network maps images (N, 1, 28, 28) to logits (N, 10).

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>

#include "simulated.hpp"
#include "stubs.hpp"

namespace {

using nvinfer1::apiv::VRoot;
using Profile = std::array<std::int64_t, 3>;

constexpr std::int64_t image_size = 784, classes = 10;
constexpr std::int64_t activation_size = 4096;

bool aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 256 == 0; }

Dims images(std::int64_t batch) { return {4, {batch, 1, 28, 28}}; }
Dims logits(std::int64_t batch) { return {2, {batch, classes}}; }

/// The interface's object and its implementation in one, as TensorRT's own objects are.
struct Context : IExecutionContext, StubVExecutionContext {
  Context(std::vector<Profile> sizes, bool own_memory) : profiles(std::move(sizes)) {
    mImpl = this;
    if (own_memory) own.resize(activation_size), memory = own.data();
    simulated::count(1);
    simulated::note_context();
  }
  ~Context() override { simulated::count(-1); }

  void setDeviceMemoryV2(void* address, std::int64_t size) noexcept override {
    if (size >= activation_size) memory = static_cast<char*>(address);
  }
  bool setOptimizationProfileAsync(int32_t index, cudaStream_t) noexcept override {
    if (simulated::fails() || index < 0 || index >= static_cast<int>(profiles.size())) return false;
    profile = index;
    batch = 0;
    return true;
  }
  bool setInputShape(char const* name, Dims const& dims) noexcept override {
    const bool known = std::strcmp(name, "images") == 0 && dims.nbDims == 4 &&
                       std::memcmp(dims.d + 1, images(0).d + 1, 3 * sizeof *dims.d) == 0;
    if (simulated::fails() || !known || profile < 0) return false;
    const Profile& sizes = profiles[static_cast<std::size_t>(profile)];
    if (dims.d[0] < sizes[0] || dims.d[0] > sizes[2]) return false;
    batch = dims.d[0];
    ++shapes_set;
    return true;
  }
  int32_t inferShapes(int32_t, char const**) noexcept override {
    return simulated::fails() ? 1 : 0;
  }
  Dims getTensorShape(char const* name) const noexcept override {
    return std::strcmp(name, "images") == 0 ? images(batch) : logits(batch);
  }
  bool setInputTensorAddress(char const*, void const* address) noexcept override {
    input = static_cast<const float*>(address);
    return !simulated::fails() && aligned(address);
  }
  bool setOutputTensorAddress(char const*, void* address) noexcept override {
    output = static_cast<float*>(address);
    return !simulated::fails() && aligned(address);
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (simulated::fails() || batch == 0 || memory == nullptr) return false;
    const bool replayed = simulated::capturing(stream);
    simulated::enqueue(stream, [replayed, this_one = this, from = input, to = output, rows = batch,
                                shape = shapes_set] {
      if (replayed && shape != this_one->shapes_set) {
        unexpected("replay of a graph whose context has another shape");
      }
      std::memset(this_one->memory, 0, activation_size);
      for (std::int64_t row = 0; row < rows; ++row) {
        simulated::logits_of(from + row * image_size, image_size, to + row * classes, classes);
      }
      simulated::note_computed(rows);
    });
    return true;
  }

  std::vector<Profile> profiles;
  std::vector<char> own;
  char* memory = nullptr;
  int profile = -1, shapes_set = 0;
  std::int64_t batch = 0;
  const float* input = nullptr;
  float* output = nullptr;
};

struct Engine : ICudaEngine, StubVCudaEngine {
  explicit Engine(std::vector<Profile> sizes) : profiles(std::move(sizes)) {
    mImpl = this;
    simulated::count(1);
  }
  ~Engine() override { simulated::count(-1); }

  IExecutionContext* createExecutionContext(
      ExecutionContextAllocationStrategy strategy) noexcept override {
    if (simulated::fails()) return nullptr;
    return new Context(profiles, strategy == ExecutionContextAllocationStrategy::kSTATIC);
  }
  int32_t getNbIOTensors() const noexcept override { return 2; }
  int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<int32_t>(profiles.size());
  }
  int64_t getDeviceMemorySizeV2() const noexcept override { return activation_size; }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    if (std::strcmp(name, "images") == 0) return TensorIOMode::kINPUT;
    return std::strcmp(name, "logits") == 0 ? TensorIOMode::kOUTPUT : TensorIOMode::kNONE;
  }
  DataType getTensorDataType(char const*) const noexcept override { return DataType::kFLOAT; }
  TensorLocation getTensorLocation(char const*) const noexcept override {
    return TensorLocation::kDEVICE;
  }
  Dims getTensorShape(char const* name) const noexcept override {
    return std::strcmp(name, "images") == 0 ? images(-1) : logits(-1);
  }
  Dims getProfileShape(char const*, int32_t index,
                       OptProfileSelector select) const noexcept override {
    return images(profiles[static_cast<std::size_t>(index)][static_cast<std::size_t>(select)]);
  }

  std::vector<Profile> profiles;
};

struct Runtime : IRuntime, StubVRuntime {
  explicit Runtime(ILogger& its_logger) : logger(its_logger) {
    mImpl = this;
    simulated::count(1);
  }
  ~Runtime() override { simulated::count(-1); }

  void setEngineHostCodeAllowed(bool) noexcept override {}
  nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob,
                                               std::size_t size) noexcept override {
    std::istringstream text(std::string(static_cast<const char*>(blob), size));
    std::string word;
    std::vector<Profile> profiles;
    text >> word;
    const bool good = word == "plan";
    for (Profile sizes{}; std::sscanf((text >> word) ? word.c_str() : "", "%ld,%ld,%ld", &sizes[0],
                                      &sizes[1], &sizes[2]) == 3;) {
      profiles.push_back(sizes);
    }
    if (simulated::fails() || !good) {
      logger.log(ILogger::Severity::kWARNING, "this is not the reason");
      logger.log(ILogger::Severity::kERROR, "magic tag does not match");
      return nullptr;
    }
    return new Engine(std::move(profiles));
  }

  ILogger& logger;
};

std::atomic<int> contexts{0};
std::vector<std::int64_t> batches;  // written by what streams do, one at a time

}  // namespace

void unexpected(const char* call) {
  std::fprintf(stderr, "the simulation has no %s\n", call);
  std::abort();
}

namespace simulated {

int contexts_made() { return contexts; }
const std::vector<std::int64_t>& computed() { return batches; }
void note_context() { ++contexts; }
void note_computed(std::int64_t batch) { batches.push_back(batch); }

void logits_of(const float* image, std::int64_t size, float* target, std::int64_t count) {
  for (std::int64_t index = 0; index < count; ++index) {
    target[index] = 0;
    for (std::int64_t pixel = index; pixel < size; pixel += count) target[index] += image[pixel];
  }
}

}  // namespace simulated

extern "C" {

void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  if (simulated::fails() || version != NV_TENSORRT_VERSION) return nullptr;
  return static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(logger)));
}
int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }
int32_t getInferLibMajorVersion() noexcept { return 10; }
int32_t getInferLibMinorVersion() noexcept { return 16; }
int32_t getInferLibPatchVersion() noexcept { return 1; }
int32_t getInferLibBuildVersion() noexcept { return 11; }

}  // extern "C"
