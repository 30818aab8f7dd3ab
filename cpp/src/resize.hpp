#pragma once

#include "densenet_deploy/image.hpp"

namespace densenet_deploy {

/// A part of an image, in pixels.
struct Box {
  int left = 0;
  int top = 0;
  int width = 0;
  int height = 0;
};

/// `part` of the image as it would be after a bilinear resize to width x height.
///
/// Antialiased: where the image shrinks, the triangle filter widens with the scale. To the bit what
/// Pillow 13 computes: one pass along rows and one along columns, with an 8-bit image in between
/// and weights of 22 fractional bits. Only what `part` needs is computed.
Image resize_bilinear(const Image& image, int width, int height, const Box& part);

}  // namespace densenet_deploy
