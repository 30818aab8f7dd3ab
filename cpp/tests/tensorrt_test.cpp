/// The TensorRT backend over a GPU in host memory; see simulated/. The bundles are made by
/// tests/cpp/test_tensorrt.py, which says where they are.

#include <cstdlib>
#include <thread>

#include "simulated/simulated.hpp"
#include "support.hpp"

namespace dd = densenet_deploy;

namespace {

constexpr std::int64_t image_size = 784, classes = 10;
constexpr dd::Precision one_profile = dd::Precision::fp32;  // 1,8,64
constexpr dd::Precision buckets = dd::Precision::int8;      // 1,1,1 and 4,4,8
constexpr dd::Precision misfit = dd::Precision::fp16;       // built by another version

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    simulated::fail_at(0);
    before_ = simulated::alive();
  }
  void TearDown() override { EXPECT_EQ(simulated::alive(), before_); }

  static dd::Bundle bundle(const std::string& name = "good") {
    const char* folder = std::getenv("SIMULATED_BUNDLES");
    if (folder == nullptr) throw std::runtime_error("SIMULATED_BUNDLES is not set");
    return dd::Bundle::open(std::filesystem::path(folder) / name);
  }

  static dd::Engine load(dd::EngineOptions options = {}, const std::string& name = "good") {
    options.backend = dd::Backend::tensorrt;
    return dd::Engine::load(bundle(name), options);
  }

  static dd::Engine load(dd::Precision precision) {
    dd::EngineOptions options;
    options.precision = precision;
    return load(options);
  }

  static dd::Tensor images(std::int64_t rows) {
    dd::Tensor tensor{{rows, 1, 28, 28}, {}};
    for (std::int64_t index = 0; index < rows * image_size; ++index) {
      tensor.values.push_back(static_cast<float>((index * 37 + index / image_size) % 101));
    }
    return tensor;
  }

  static std::vector<float> expected(const dd::Tensor& given) {
    std::vector<float> logits(static_cast<std::size_t>(given.rows() * classes));
    for (std::int64_t row = 0; row < given.rows(); ++row) {
      simulated::logits_of(given.row(row), image_size, &logits[row * classes], classes);
    }
    return logits;
  }

  /// The batch sizes that `use` made the GPU compute.
  template <class Use>
  static std::vector<std::int64_t> computed(const Use& use) {
    const auto before = static_cast<std::ptrdiff_t>(simulated::computed().size());
    use();
    return {simulated::computed().begin() + before, simulated::computed().end()};
  }

 private:
  int before_ = 0;
};

/// Memory on the simulated GPU, which the host can see.
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    cudaMalloc(&memory_, (count + 64) * sizeof(float));
  }
  ~DeviceArray() { cudaFree(memory_); }

  float* get(std::size_t offset = 0) const { return static_cast<float*>(memory_) + offset; }
  std::vector<float> values(std::size_t offset = 0) const {
    return {get(offset), get(offset) + count_};
  }

 private:
  std::size_t count_;
  void* memory_ = nullptr;
};

}  // namespace

TEST_F(Gpu, GivesEveryBatchSizeItsRows) {
  const dd::Engine engine = load();
  for (std::int64_t rows = 1; rows <= 70; ++rows) {
    EXPECT_EQ(engine.run(images(rows)).values, expected(images(rows))) << rows;
  }
  EXPECT_EQ(engine.device(), "Simulated GPU (compute capability 8.9)");
  EXPECT_EQ(engine.profiles(), (std::vector<dd::Batch>{{1, 8, 64}}));
}

TEST_F(Gpu, CapturesEachBatchSizeOnce) {
  const dd::Engine engine = load();
  const int before = simulated::contexts_made();
  for (const std::int64_t rows : {3, 5, 3, 5, 3}) engine.run(images(rows));
  EXPECT_EQ(simulated::contexts_made() - before, 2);
}

TEST_F(Gpu, ForgetsTheGraphsItUsedLeastRecently) {
  const dd::Engine engine = load();
  const auto run_sizes = [&](std::int64_t from, std::int64_t to) {
    const int before = simulated::contexts_made();
    for (std::int64_t rows = from; rows <= to; ++rows) engine.run(images(rows));
    return simulated::contexts_made() - before;
  };
  EXPECT_EQ(run_sizes(1, 33), 33);
  EXPECT_EQ(run_sizes(33, 33), 0);
  EXPECT_EQ(run_sizes(1, 1), 1);  // 32 are kept
  EXPECT_EQ(run_sizes(4, 33), 0);
}

TEST_F(Gpu, PadsAndSplitsToTheProfiles) {
  const dd::Engine engine = load(buckets);
  const auto sizes = computed([&] {
    for (const std::int64_t rows : {1, 2, 8, 11}) {
      EXPECT_EQ(engine.run(images(rows)).values, expected(images(rows))) << rows;
    }
  });
  // Each size twice when it is new: before the capture, and as a graph.
  EXPECT_EQ(sizes, (std::vector<std::int64_t>{1, 1, 4, 4, 8, 8, 8, 4}));
  EXPECT_EQ(engine.profiles(), (std::vector<dd::Batch>{{1, 1, 1}, {4, 4, 8}}));
}

TEST_F(Gpu, RunsWithoutGraphsInOneContext) {
  dd::EngineOptions options;
  options.cuda_graph = false;
  const int before = simulated::contexts_made();
  const dd::Engine engine = load(options);
  const auto sizes = computed([&] {
    for (const std::int64_t rows : {3, 3, 64, 1}) {
      EXPECT_EQ(engine.run(images(rows)).values, expected(images(rows)));
    }
  });
  EXPECT_EQ(sizes, (std::vector<std::int64_t>{3, 3, 64, 1}));
  EXPECT_EQ(simulated::contexts_made() - before, 1);
}

TEST_F(Gpu, SaysWhatToDoWhereNothingCanBeCaptured) {
  const dd::Engine engine = load();
  simulated::set_capturable(false);
  EXPECT_REFUSED(engine.run(images(2)), dd::BackendError, "Run with cuda_graph = false.");
  simulated::set_capturable(true);
  EXPECT_EQ(engine.run(images(2)).values, expected(images(2)));
}

TEST_F(Gpu, RunsOnDeviceMemoryInTheOrderOfTheStream) {
  const dd::Engine engine = load();
  const dd::Tensor given = images(70);
  for (const std::size_t offset : {0, 1, 64}) {  // TensorRT needs multiples of 64 floats
    const DeviceArray input(given.values.size()), output(70 * classes);
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    const std::size_t size = given.values.size() * sizeof(float);
    std::fill_n(output.get(offset), 70 * classes, -1.0F);
    cudaMemcpyAsync(input.get(offset), given.values.data(), size, cudaMemcpyHostToDevice, stream);
    engine.run_device(input.get(offset), 70, output.get(offset), stream);
    EXPECT_EQ(output.values(offset)[0], -1) << "it waited";
    cudaStreamSynchronize(stream);
    EXPECT_EQ(output.values(offset), expected(given)) << offset;
    cudaStreamDestroy(stream);
  }
}

TEST_F(Gpu, FinishesItsWorkBeforeItIsDestroyed) {
  const dd::Tensor given = images(2);
  const DeviceArray input(given.values.size()), output(2 * classes);
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  {
    const dd::Engine engine = load();
    const std::size_t size = given.values.size() * sizeof(float);
    cudaMemcpyAsync(input.get(), given.values.data(), size, cudaMemcpyHostToDevice, stream);
    engine.run_device(input.get(), 2, output.get(), stream);
  }
  EXPECT_EQ(output.values(), expected(given));  // after the copy on the caller's stream
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
}

TEST_F(Gpu, WorksAgainAfterWhicheverCallFailed) {
  const dd::Engine engine = load();
  int failures = 0;
  for (std::int64_t rows = 1; rows <= 20; ++rows) {  // new sizes: each is captured
    simulated::fail_at(static_cast<int>(rows));
    try {
      engine.run(images(rows));
    } catch (const dd::BackendError&) {
      ++failures;
    }
    simulated::fail_at(0);
    EXPECT_EQ(engine.run(images(rows)).values, expected(images(rows))) << "after call " << rows;
  }
  EXPECT_GT(failures, 12);
}

TEST_F(Gpu, LeavesDeviceMemoryAloneAfterAFailure) {
  const dd::Engine engine = load();
  int failures = 0;
  for (int failing = 1; failing <= 16; ++failing) {
    {
      const DeviceArray input(image_size), output(classes);
      simulated::fail_at(failing);
      try {
        engine.run_device(input.get(1), 1, output.get(1), nullptr);
      } catch (const dd::BackendError&) {
        ++failures;
      }
      simulated::fail_at(0);
      if (failures < failing) cudaStreamSynchronize(nullptr);  // it did not fail
    }  // the arrays are gone now: AddressSanitizer sees who touches them later
    EXPECT_EQ(engine.run(images(3)).values, expected(images(3)));
  }
  EXPECT_GT(failures, 8);
}

TEST_F(Gpu, DoesNotCopyAlignedDeviceMemory) {
  const dd::Engine engine = load();
  const DeviceArray input(image_size), output(classes);
  std::fill_n(input.get(), image_size, 1.0F);
  simulated::fail_at(1'000'000);
  engine.run_device(input.get(), 1, output.get(), nullptr);
  const int plain = simulated::calls();
  engine.run_device(input.get(), 1, output.get(), nullptr);
  const int again = simulated::calls() - plain;
  engine.run_device(input.get(1), 1, output.get(1), nullptr);
  EXPECT_EQ(simulated::calls() - plain - again, again + 2);  // one copy in, one out
  cudaStreamSynchronize(nullptr);
}

TEST_F(Gpu, RefusesDeviceMemoryThatWouldNeedPadding) {
  const dd::Engine engine = load(buckets);
  const DeviceArray input(2 * image_size), output(2 * classes);
  EXPECT_REFUSED(engine.run_device(input.get(), 2, output.get(), nullptr), dd::BackendError,
                 "no profile holds 2 rows");
}

TEST_F(Gpu, ServesThreadsWithSeveralContexts) {
  dd::EngineOptions options;
  options.contexts = 2;
  const dd::Engine engine = load(options);
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 4; ++worker) {
    threads.emplace_back([&, worker] {
      for (int round = 0; round < 20; ++round) {
        const dd::Tensor given = images(1 + (worker + round) % 5);
        EXPECT_EQ(engine.run(given).values, expected(given));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(Gpu, FreesEverythingWhicheverCallFails) {
  const dd::Bundle opened = bundle();
  const dd::Tensor given = images(70);
  const int before = simulated::alive();
  const auto use = [&](const DeviceArray& input, const DeviceArray& output) {
    dd::EngineOptions options;
    options.backend = dd::Backend::tensorrt;
    options.contexts = 2;
    const dd::Engine engine = dd::Engine::load(opened, options);
    EXPECT_EQ(engine.run(given).values, expected(given));
    engine.run_device(input.get(1), 1, output.get(1), nullptr);
    cudaStreamSynchronize(nullptr);
  };
  int failing = 0, failures = 0;
  for (bool done = false; !done;) {
    const DeviceArray input(image_size), output(classes);
    simulated::fail_at(++failing);
    try {
      use(input, output);
      // The last one to fail is in a destructor, which cannot say so, or none is left.
      done = simulated::calls() < failing;
    } catch (const dd::BackendError& error) {
      EXPECT_GT(std::string(error.what()).size(), 20U);
      ++failures;
    }
    simulated::fail_at(0);
    cudaStreamSynchronize(nullptr);
    EXPECT_EQ(simulated::alive(), before + 2) << "after call " << failing;
  }
  EXPECT_GT(failures, 40);
}

TEST_F(Gpu, IsNotTouchedWithoutADevice) {
  simulated::set_devices(0);
  EXPECT_EQ(dd::why_unavailable(dd::Backend::tensorrt),
            "no CUDA device (no CUDA-capable device is detected)");
  EXPECT_REFUSED(load(), dd::BackendError, "tensorrt cannot run here: no CUDA device");
  simulated::set_devices(1);
}

TEST_F(Gpu, RefusesADeviceThatIsNotThere) {
  dd::EngineOptions options;
  options.device = 3;
  EXPECT_REFUSED(load(options), dd::BackendError, "cudaDeviceGetAttribute");
}

TEST_F(Gpu, RefusesEnginesThatDoNotFit) {
  EXPECT_REFUSED(load(misfit), dd::BackendError, "needs TensorRT 10.0.1.6, not 10.16.1.11");
  EXPECT_REFUSED(load({}, "damaged"), dd::BackendError, "magic tag does not match");
  EXPECT_REFUSED(load({}, "profiles"), dd::BackendError, "its profiles are not the manifest's");
  EXPECT_REFUSED(load({}, "stripped"), dd::BackendError, "was built without weights");
}

TEST_F(Gpu, IsTheFirstChoiceWhereItsEngineFits) {
  dd::EngineOptions options;
  EXPECT_EQ(dd::Engine::load(bundle(), options).backend(), dd::Backend::tensorrt);
  EXPECT_EQ(dd::why_unavailable(dd::Backend::tensorrt, bundle(), options), "");
  options.precision = misfit;
  EXPECT_NE(dd::why_unavailable(dd::Backend::tensorrt, bundle(), options), "");
  EXPECT_REFUSED(dd::Engine::load(bundle(), options), dd::BackendError,
                 "no backend can run");  // this build has no other
}
