#include <cmath>
#include <limits>

#include "support.hpp"

namespace dd = densenet_deploy;

namespace {

const dd::Tolerance strict{0, 100, 1e-3, 0.999999};

dd::Tensor logits(std::vector<float> values) {
  return {{static_cast<std::int64_t>(values.size() / 2), 2}, std::move(values)};
}

}  // namespace

TEST(Parity, PassesEqualLogits) {
  const auto parity = compare(logits({1, 2, 3, 1}), logits({1, 2, 3, 1}), strict);
  EXPECT_TRUE(parity);
  EXPECT_EQ(parity.agreement, 100);
  EXPECT_EQ(parity.max_abs, 0);
  EXPECT_NEAR(parity.cosine, 1, 1e-12);
}

TEST(Parity, NamesEveryTermThatFails) {
  const auto parity = compare(logits({1, 2, 3, 1}), logits({2, 1, 3, 1}), strict);
  EXPECT_FALSE(parity);
  EXPECT_EQ(parity.agreement, 50);
  EXPECT_EQ(parity.max_abs, 1);
  ASSERT_EQ(parity.failures.size(), 3U);
  EXPECT_EQ(parity.failures[0], "agreement 50.00 %, required 100 %");
  EXPECT_EQ(parity.failures[1], "max |d logit| 1, allowed 0.001");
}

TEST(Parity, FailsWhatIsNoNumber) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto parity = compare(logits({1, 2, 3, 1}), logits({1, nan, 3, 1}), {0, 0, 9, 0});
  EXPECT_FALSE(parity);
  EXPECT_EQ(parity.nonfinite, 1);
  EXPECT_TRUE(std::isnan(parity.max_abs));
}

TEST(Parity, RefusesWhatCannotBeCompared) {
  EXPECT_REFUSED(compare(logits({1, 2}), logits({1, 2, 3, 4}), strict), dd::DataError,
                 "shape (2, 2)");
  EXPECT_REFUSED(compare(logits({}), logits({}), strict), dd::DataError, "at least one row");
}
