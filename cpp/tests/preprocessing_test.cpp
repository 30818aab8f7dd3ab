/// How it agrees with Pillow is tests/cpp/test_preprocessing.py; here is what needs no oracle.

#include "support.hpp"

namespace dd = densenet_deploy;

namespace {

dd::Image plain(int width, int height, int channels, std::uint8_t value) {
  const auto size = static_cast<std::size_t>(width) * height * channels;
  return {width, height, channels, std::vector<std::uint8_t>(size, value)};
}

const dd::Preprocessing imagenet{224, 224, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}, 256};

}  // namespace

TEST(Preprocessing, KeepsAPlainImagePlain) {
  for (const auto& [width, height] : {std::pair{500, 375}, {37, 211}, {224, 224}, {256, 256}}) {
    const dd::Image pixels = imagenet.geometry(plain(width, height, 3, 200));
    EXPECT_EQ(pixels.pixels, std::vector<std::uint8_t>(224 * 224 * 3, 200));
  }
}

TEST(Preprocessing, SharpensEdgesWithBicubicAlone) {
  dd::Preprocessing how{8, 8, {0.5}, {0.5}, 0};
  const dd::Image edge{4, 1, 1, {50, 50, 200, 200}};
  const auto darkest = [&] {
    const auto pixels = how.geometry(edge).pixels;
    return *std::min_element(pixels.begin(), pixels.end());
  };
  EXPECT_EQ(darkest(), 50);
  how.interpolation = dd::Interpolation::bicubic;
  EXPECT_LT(darkest(), 50);
}

TEST(Preprocessing, ConvertsChannelsBothWays) {
  EXPECT_EQ(imagenet.geometry(plain(300, 300, 1, 7)).channels, 3);
  const dd::Preprocessing gray{4, 4, {0.5}, {0.5}, 0};
  const dd::Image green{1, 1, 3, {0, 255, 0}};
  EXPECT_EQ(gray.geometry(green).pixels, std::vector<std::uint8_t>(16, 150));  // 0.587 * 255
}

TEST(Preprocessing, NormalisesChannelByChannel) {
  const dd::Tensor tensor = imagenet.prepare(plain(224, 224, 3, 255));
  EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{1, 3, 224, 224}));
  for (int channel = 0; channel < 3; ++channel) {
    const double expected = (1 - imagenet.mean[channel]) / imagenet.std[channel];
    EXPECT_NEAR(tensor.values[channel * 224 * 224 + 5], expected, 1e-6);
  }
}

TEST(Preprocessing, RefusesImagesThatWouldBecomeHuge) {
  EXPECT_REFUSED(imagenet.geometry(plain(1, 60'000, 3, 0)), dd::DataError,
                 "would be resized to 256x15360000");
}

TEST(Preprocessing, RefusesNumbersThatContradictThemselves) {
  const auto refused = [](const dd::Preprocessing& how, const std::string& reason) {
    EXPECT_REFUSED(how.geometry(plain(8, 8, 3, 0)), dd::DataError, reason);
    EXPECT_REFUSED(how.prepare(plain(8, 8, 3, 0)), dd::DataError, reason);
  };
  refused({4, 4, {0, 0}, {1, 1}, 0}, "1 (grayscale) or 3 (RGB) values");
  refused({4, 4, {0, 0, 0}, {1}, 0}, "1 (grayscale) or 3 (RGB) values");
  refused({4, 4, {0}, {0}, 0}, "std must be positive");
  refused({0, 4, {0}, {1}, 0}, "height and width must be positive");
  refused({4, 4, {0}, {1}, 3}, "resize must be 0 or at least height and width");
  refused({60'000, 60'000, {0}, {1}, 0}, "more than 64000000 pixels");
}

TEST(Preprocessing, RefusesImagesThatContradictThemselves) {
  EXPECT_REFUSED(imagenet.geometry({2, 2, 3, {1, 2, 3}}), dd::DataError, "3 bytes");
  EXPECT_REFUSED(imagenet.geometry(plain(2, 2, 4, 0)), dd::DataError, "4 channels");
  EXPECT_REFUSED(imagenet.geometry({}), dd::DataError, "0x0");
  EXPECT_REFUSED(imagenet.prepare(std::vector<dd::Image>()), dd::DataError, "no image");
}
