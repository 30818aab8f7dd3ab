#pragma once

#include <cstddef>
#include <cstdint>

#include "densenet_deploy/image.hpp"

namespace densenet_deploy {

/// Decoders of one format each; see `Image::decode`.
///
/// @throws DataError  Damaged, or above `max_pixels`; says the reason only.
Image decode_png(const std::uint8_t* data, std::size_t size);
Image decode_jpeg(const std::uint8_t* data, std::size_t size);

/// @throws DataError  The size is above `max_pixels`, or nothing.
void check_pixels(std::int64_t width, std::int64_t height);

}  // namespace densenet_deploy
