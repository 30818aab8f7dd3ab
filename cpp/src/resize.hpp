#pragma once

#include "densenet_deploy/image.hpp"
#include "densenet_deploy/preprocessing.hpp"

namespace densenet_deploy {

/// A part of an image, in pixels.
struct Box {
  int left = 0;
  int top = 0;
  int width = 0;
  int height = 0;
};

/// `part` of the image as it would be after a resize to width x height.
///
/// Antialiased: where the image shrinks, the filter widens with the scale. To the bit what Pillow
/// 13 computes: one pass along rows and one along columns, with an 8-bit image in between and
/// weights of 22 fractional bits. Only what `part` needs is computed.
Image resize(const Image& image, int width, int height, const Box& part,
             Interpolation interpolation);

}  // namespace densenet_deploy
