#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "densenet_deploy/export.hpp"

namespace densenet_deploy {

/// Images of more pixels are refused before they are decoded.
inline constexpr std::int64_t max_pixels = 64'000'000;

/// 8-bit pixels (height, width, channels), row-major; 1 channel is grayscale, 3 are RGB.
struct DENSENET_DEPLOY_EXPORT Image {
  int width = 0;
  int height = 0;
  int channels = 0;
  std::vector<std::uint8_t> pixels;

  /// Decodes a PNG or JPEG file.
  ///
  /// Alpha is dropped, palettes are looked up, 16-bit samples keep their high byte, CMYK becomes
  /// RGB; orientation tags and colour profiles are not applied. So does the Python package.
  ///
  /// @throws DataError  It is missing, neither PNG nor JPEG, damaged, or above `max_pixels`.
  static Image read(const std::filesystem::path& path);

  /// Decodes a PNG or JPEG file that lies in memory; see `read`.
  static Image decode(const void* data, std::size_t size);
};

}  // namespace densenet_deploy
