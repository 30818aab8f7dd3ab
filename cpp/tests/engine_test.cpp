#include <atomic>
#include <thread>

#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::shipped;

namespace {

class OnEngine : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = dd::why_unavailable(dd::Backend::openvino); !reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }

  static dd::Engine load(dd::Precision precision = dd::Precision::fp32) {
    dd::EngineOptions options;
    options.backend = dd::Backend::openvino;
    options.precision = precision;
    options.threads = 1;
    return dd::Engine::load(bundle(), options);
  }

  static dd::Bundle bundle() { return dd::Bundle::open(shipped()); }
};

}  // namespace

TEST_F(OnEngine, MeetsTheRecipesTolerances) {
  for (const dd::Precision precision : dd::all_precisions) {
    const dd::Tensor found = load(precision).run(bundle().golden_input());
    const auto parity =
        compare(bundle().golden_output(), found, bundle().manifest().tolerances.at(precision));
    EXPECT_TRUE(parity) << to_string(precision);
  }
}

TEST_F(OnEngine, SaysWhatItIs) {
  const dd::Engine engine = load();
  EXPECT_EQ(engine.backend(), dd::Backend::openvino);
  EXPECT_EQ(engine.device(), "CPU");
  EXPECT_EQ(engine.profiles(), (std::vector<dd::Batch>{{1, 8, 64}}));
  EXPECT_EQ(dd::library_version(dd::Backend::openvino).rfind("OpenVINO 20", 0), 0U);
}

TEST_F(OnEngine, RefusesInputsThatDoNotFit) {
  const dd::Engine engine = load();
  const auto run = [&](std::vector<std::int64_t> shape, std::size_t size) {
    return engine.run(dd::Tensor{std::move(shape), std::vector<float>(size)});
  };
  EXPECT_REFUSED(run({1, 1, 28, 27}, 756), dd::BackendError, "has shape (1, 1, 28, 27)");
  EXPECT_REFUSED(run({784}, 784), dd::BackendError, "expected (N, ...) of (1, 28, 28)");
  EXPECT_REFUSED(run({2, 1, 28, 28}, 784), dd::BackendError, "784 values");
  EXPECT_REFUSED(run({0, 1, 28, 28}, 0), dd::BackendError, "batch size 0");
  EXPECT_REFUSED(run({65, 1, 28, 28}, 65 * 784), dd::BackendError,
                 "batch size 65; expected 1 to 64. Split the batch");
  std::vector<float> images(784), logits(10);
  EXPECT_REFUSED(engine.run(nullptr, 1, logits.data()), dd::BackendError, "a null pointer");
  EXPECT_REFUSED(predict(bundle(), engine, dd::Tensor{{100, 1, 28, 28}, {}}), dd::BackendError,
                 "has shape (100, 1, 28, 28) and 0 values");
  EXPECT_REFUSED(engine.run_device(images.data(), 1, logits.data(), nullptr), dd::BackendError,
                 "openvino failed on fp32: this backend runs on the CPU");
}

TEST_F(OnEngine, GivesEveryBatchSizeTheSameRows) {
  const dd::Engine engine = load();
  const dd::Tensor images = bundle().sample_input();
  const dd::Tensor whole = engine.run(images);
  for (std::int64_t row = 0; row < images.rows(); ++row) {
    std::vector<float> logits(10);
    engine.run(images.row(row), 1, logits.data());
    for (int index = 0; index < 10; ++index) {
      EXPECT_NEAR(logits[index], whole.row(row)[index], 1e-4);
    }
  }
}

TEST_F(OnEngine, AnswersSeveralThreadsAtOnce) {
  const dd::Engine engine = load();
  const dd::Tensor images = bundle().sample_input();
  const dd::Tensor expected = engine.run(images);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int worker = 0; worker < 4; ++worker) {
    threads.emplace_back([&, worker] {
      for (int round = 0; round < 40; ++round) {
        const std::int64_t row = (worker * 7 + round) % images.rows();
        std::vector<float> logits(10);
        engine.run(images.row(row), 1, logits.data());
        for (int index = 0; index < 10; ++index) {
          wrong += std::abs(logits[index] - expected.row(row)[index]) > 1e-4;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(OnEngine, RefusesADamagedGraph) {
  const testing_support::Damaged damaged;
  const dd::Bundle opened = dd::Bundle::open(damaged.path());
  const std::string graph = testing_support::read(damaged / "onnxruntime/fp32.onnx");
  testing_support::write(damaged / "onnxruntime/fp32.onnx", graph.substr(0, graph.size() / 2));
  dd::EngineOptions options;
  options.backend = dd::Backend::openvino;
  EXPECT_REFUSED(dd::Engine::load(opened, options), dd::BackendError, "openvino refuses fp32.onnx");
}

TEST(Engine, RefusesBackendsThisBuildLacks) {
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  for (const dd::Backend backend : dd::all_backends) {
    const std::string reason = dd::why_unavailable(backend);
    if (reason.empty()) continue;
    dd::EngineOptions options;
    options.backend = backend;
    EXPECT_REFUSED(dd::Engine::load(bundle, options), dd::BackendError,
                   to_string(backend) + " cannot run here: " + reason);
  }
}

TEST(Engine, RefusesOptionsThatMakeNoSense) {
  dd::EngineOptions options;
  options.contexts = 0;
  EXPECT_REFUSED(dd::Engine::load(dd::Bundle::open(shipped()), options), dd::BackendError,
                 "contexts 0");
}
