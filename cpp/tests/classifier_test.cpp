#include <cmath>
#include <limits>

#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::shipped;

TEST(Best, IsTheSoftmaxInItsOrder) {
  const std::vector<float> logits{1.0F, 3.0F, 2.0F};
  const auto found = dd::best(logits.data(), 3, {"a", "b", "c"}, 2);
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].label, "b");
  EXPECT_EQ(found[1].index, 2);
  const double sum = std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  EXPECT_NEAR(found[0].probability, std::exp(3.0) / sum, 1e-12);
}

TEST(Best, SurvivesLargeLogitsAndOddNumbers) {
  const std::vector<float> logits{1000.0F, -1000.0F};
  EXPECT_EQ(dd::best(logits.data(), 2, {}, 99)[0].probability, 1.0);
  EXPECT_EQ(dd::best(logits.data(), 2, {}, 99)[1].label, "1");
  EXPECT_TRUE(dd::best(logits.data(), 2, {}, -3).empty());
  const std::vector<float> undefined(2, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(dd::best(undefined.data(), 2, {}, 2).size(), 2U);
}

TEST(Classifier, KnowsTheSamples) {
  if (dd::compiled_backends().empty()) GTEST_SKIP() << "this build has no backend";
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  const dd::Classifier classifier(bundle);
  int right = 0;
  for (const std::string& name : bundle.manifest().samples) {
    // Their names end in the class, such as `00-ankle-boot.png`.
    std::string label = classifier.classify(bundle.file(name), 1).front().label;
    for (char& letter : label)
      letter = letter == ' ' ? '-' : static_cast<char>(std::tolower(letter));
    right += name.find(label) != std::string::npos;
  }
  EXPECT_EQ(right, 16);
}

TEST(Predict, SplitsAndPadsToWhatTheBundleAllows) {
  if (dd::compiled_backends().empty()) GTEST_SKIP() << "this build has no backend";
  const testing_support::Damaged damaged;
  damaged.replace("\"batch\": [\n  1,\n  8,\n  64\n ]", "\"batch\": [\n  3,\n  3,\n  5\n ]");
  const dd::Bundle bundle = dd::Bundle::open(damaged.path());
  const dd::Engine engine = dd::Engine::load(bundle);
  const dd::Tensor images = bundle.sample_input();
  const dd::Tensor found = predict(bundle, engine, images);  // 5, 5, 5 and 1 padded to 3
  ASSERT_EQ(found.shape, (std::vector<std::int64_t>{16, 10}));
  const dd::Bundle whole = dd::Bundle::open(shipped());
  const dd::Tensor expected = dd::Engine::load(whole).run(images);
  for (std::size_t index = 0; index < expected.values.size(); ++index) {
    EXPECT_NEAR(found.values[index], expected.values[index], 1e-4);
  }
}
