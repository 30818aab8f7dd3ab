#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "densenet_deploy/export.hpp"
#include "densenet_deploy/image.hpp"
#include "densenet_deploy/tensor.hpp"

namespace densenet_deploy {

/// How a resize weighs pixels.
enum class Interpolation { bilinear, bicubic };

/// How an image becomes the network's input; the same numbers as in Python, from the bundle.
struct DENSENET_DEPLOY_EXPORT Preprocessing {
  int height = 0;            ///< Pixels of the network's input.
  int width = 0;             ///< Pixels of the network's input.
  std::vector<double> mean;  ///< Per channel, in units of the 0..1 range; 1 or 3 values.
  std::vector<double> std;   ///< Per channel, in the same units.
  /// Length of the shorter side after an antialiased resize, before the centre crop to
  /// (height, width); 0 resizes straight to (height, width) without a crop.
  int resize = 0;
  Interpolation interpolation = Interpolation::bilinear;  ///< Of that resize.

  /// What contradicts itself in these numbers, as a clause; empty if nothing does.
  std::string contradiction() const;

  int channels() const { return static_cast<int>(mean.size()); }

  /// (channels, height, width) of one normalised image.
  std::array<std::int64_t, 3> input_shape() const { return {channels(), height, width}; }

  /// 8-bit pixels (height, width, channels): channel conversion, resize and crop, as Pillow does.
  ///
  /// @throws DataError  The image is so elongated that resizing it would take too much memory, or
  ///                    is empty or of neither 1 nor 3 channels; or these numbers contradict
  ///                    themselves.
  Image geometry(const Image& image) const;

  /// Normalised images (N, channels, height, width) of one image or several, of any size.
  ///
  /// @throws DataError  See `geometry`; also where there is no image.
  Tensor prepare(const Image& image) const;
  Tensor prepare(const std::vector<Image>& images) const;
};

}  // namespace densenet_deploy
