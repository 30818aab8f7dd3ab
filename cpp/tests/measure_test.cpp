#include <numeric>
#include <thread>

#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::shipped;

namespace {

dd::Measurement of(std::size_t count) {
  dd::Measurement measured;
  measured.latencies.resize(count);
  std::iota(measured.latencies.begin(), measured.latencies.end(), 1.0);
  return measured;
}

}  // namespace

TEST(Measurement, HasThePercentilesItsSampleCanShow) {
  EXPECT_EQ(of(10).percentile(50), 5.0);
  EXPECT_EQ(of(9).percentile(50), std::nullopt);
  EXPECT_EQ(of(50).percentile(90), 45.0);
  EXPECT_EQ(of(499).percentile(99), std::nullopt);
  EXPECT_EQ(of(500).percentile(99), 495.0);
  EXPECT_EQ(of(4).mean(), 2.5);
}

TEST(Median, IsTheMiddle) {
  EXPECT_EQ(dd::median({3, 1, 2}), 2);
  EXPECT_EQ(dd::median({4, 1, 2, 3}), 2.5);
}

TEST(WarmUp, EndsWhenTheMedianSettles) {
  const auto warm = dd::warm_up([] { std::this_thread::sleep_for(std::chrono::milliseconds(10)); });
  EXPECT_GE(warm.median, 0.01);
}

TEST(WarmUp, GivesUpWhereTheMedianKeepsGrowing) {
  double seconds = 0.005;
  const auto warm = dd::warm_up(
      [&] { std::this_thread::sleep_for(std::chrono::duration<double>(seconds *= 1.01)); });
  EXPECT_FALSE(warm.steady);
}

TEST(Rotation, WalksThroughTheImagesEndlessly) {
  const dd::Tensor images{{3, 2}, {0, 1, 10, 11, 20, 21}};
  dd::Rotation rotation(images, 2);
  EXPECT_EQ(rotation.next().values, (std::vector<float>{0, 1, 10, 11}));
  EXPECT_EQ(rotation.next().values, (std::vector<float>{20, 21, 0, 1}));
  EXPECT_REFUSED(dd::Rotation(dd::Tensor{{0, 2}, {}}, 1), dd::BackendError, "0 images");
}

TEST(Measure, TimesRequests) {
  if (dd::compiled_backends().empty()) GTEST_SKIP() << "this build has no backend";
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  const auto measured = measure(dd::Engine::load(bundle), bundle.golden_input(), {2, 0.05});
  EXPECT_GE(measured.latencies.size(), 10U);
  EXPECT_GT(measured.mean(), 0);
  EXPECT_GT(measured.warmup_seconds, 0.2);
  EXPECT_NEAR(measured.images_per_second(), 2 / measured.mean(), 1e-9);
}
