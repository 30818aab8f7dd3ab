#include "densenet_deploy/preprocessing.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "densenet_deploy/error.hpp"
#include "resize.hpp"

namespace densenet_deploy {
namespace {

/// ITU-R 601 luma in 16-bit fixed point, as Pillow computes it.
std::uint8_t luma(const std::uint8_t* rgb) {
  return static_cast<std::uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >>
                                   16);
}

Image with_channels(const Image& image, int channels) {
  const std::size_t count = static_cast<std::size_t>(image.width) * image.height;
  Image result{image.width, image.height, channels, {}};
  result.pixels.resize(count * static_cast<std::size_t>(channels));
  for (std::size_t index = 0; index < count; ++index) {
    if (channels == 1) {
      result.pixels[index] = luma(&image.pixels[3 * index]);
    } else {
      std::fill_n(&result.pixels[3 * index], 3, image.pixels[index]);
    }
  }
  return result;
}

/// Size after the shorter side has become `side`. torchvision's rule: the longer is truncated.
std::pair<std::int64_t, std::int64_t> resized(std::int64_t width, std::int64_t height,
                                              std::int64_t side) {
  if (width <= height) return {side, std::max<std::int64_t>(side * height / width, 1)};
  return {std::max<std::int64_t>(side * width / height, 1), side};
}

/// Half of the difference, halves to the even number, as Python rounds.
int margin(int whole, int part) { return static_cast<int>(std::nearbyint((whole - part) / 2.0)); }

/// The normalised value of each of the 256 samples; with the rounding of Python's arithmetic.
std::array<float, 256> value_table(double mean, double std) {
  const float scale = 1.0F / (255.0F * static_cast<float>(std));
  const float offset = static_cast<float>(mean) / static_cast<float>(std);
  std::array<float, 256> table{};
  for (int sample = 0; sample < 256; ++sample) {
    const volatile float product =
        static_cast<float>(sample) * scale;  // never a fused multiply-add
    table[sample] = product - offset;
  }
  return table;
}

/// target[i] = table[samples[i * step]]; a plain loop over pointers, so that nothing is read twice.
void look_up(const std::uint8_t* samples, std::size_t step, const float* table, float* target,
             std::size_t count) {
  for (std::size_t index = 0; index < count; ++index) target[index] = table[samples[index * step]];
}

void check(const Preprocessing& how) {
  if (const std::string text = how.contradiction(); !text.empty()) {
    throw DataError("preprocessing: " + text);
  }
}

void check(const Image& image) {
  const auto size = static_cast<std::size_t>(std::max(image.width, 0)) *
                    static_cast<std::size_t>(std::max(image.height, 0));
  const bool known = image.channels == 1 || image.channels == 3;
  if (!known || size == 0 || image.pixels.size() != size * image.channels) {
    throw DataError("an image of " + std::to_string(image.width) + "x" +
                        std::to_string(image.height) + " pixels, " +
                        std::to_string(image.channels) + " channels and " +
                        std::to_string(image.pixels.size()) + " bytes",
                    "1 or 3 channels, and as many bytes as the three multiply to");
  }
}

Tensor prepare_all(const Preprocessing& how, const Image* images, std::size_t count) {
  check(how);
  const auto channels = static_cast<std::size_t>(how.channels());
  const std::size_t plane = static_cast<std::size_t>(how.height) * how.width;
  std::vector<std::array<float, 256>> tables;
  for (std::size_t channel = 0; channel < channels; ++channel) {
    tables.push_back(value_table(how.mean[channel], how.std[channel]));
  }
  Tensor tensor;
  tensor.shape = {static_cast<std::int64_t>(count), how.channels(), how.height, how.width};
  tensor.values.resize(count * channels * plane);
  float* target = tensor.values.data();
  for (std::size_t index = 0; index < count; ++index) {
    const Image pixels = how.geometry(images[index]);
    for (std::size_t channel = 0; channel < channels; ++channel, target += plane) {
      look_up(pixels.pixels.data() + channel, channels, tables[channel].data(), target, plane);
    }
  }
  return tensor;
}

}  // namespace

std::string Preprocessing::contradiction() const {
  if ((mean.size() != 1 && mean.size() != 3) || mean.size() != std.size()) {
    return "mean and std must both have 1 (grayscale) or 3 (RGB) values";
  }
  if (!(*std::min_element(this->std.begin(), this->std.end()) > 0)) return "std must be positive";
  if (height < 1 || width < 1) return "height and width must be positive";
  if (height > max_pixels / width || resize > max_pixels) {
    return "more than " + std::to_string(max_pixels) + " pixels";
  }
  if (resize != 0 && resize < std::max(height, width)) {
    return "resize must be 0 or at least height and width";
  }
  return "";
}

Image Preprocessing::geometry(const Image& image) const {
  check(*this);
  check(image);
  if (image.channels != channels()) return geometry(with_channels(image, channels()));
  if (resize == 0) {
    return densenet_deploy::resize(image, width, height, {0, 0, width, height}, interpolation);
  }
  const auto [wide, high] = resized(image.width, image.height, resize);
  if (wide * high > max_pixels) {
    throw DataError("image of " + std::to_string(image.width) + "x" + std::to_string(image.height) +
                        " pixels would be resized to " + std::to_string(wide) + "x" +
                        std::to_string(high),
                    "at most " + std::to_string(max_pixels) + " pixels");
  }
  const int w = static_cast<int>(wide), h = static_cast<int>(high);
  const Box centre{margin(w, width), margin(h, height), width, height};
  return densenet_deploy::resize(image, w, h, centre, interpolation);
}

Tensor Preprocessing::prepare(const Image& image) const { return prepare_all(*this, &image, 1); }

Tensor Preprocessing::prepare(const std::vector<Image>& images) const {
  if (images.empty()) throw DataError("no image", "at least one");
  return prepare_all(*this, images.data(), images.size());
}

}  // namespace densenet_deploy
