#include "densenet_deploy/image.hpp"

#include <cstring>

#include "codecs.hpp"
#include "densenet_deploy/error.hpp"
#include "files.hpp"
#include "text.hpp"

namespace densenet_deploy {
namespace {

constexpr std::uint64_t most_bytes = std::uint64_t{1} << 30;
constexpr const char* expected = "a PNG or JPEG file";

}  // namespace

void check_pixels(std::int64_t width, std::int64_t height) {
  if (width < 1 || height < 1 || width > max_pixels / height) {
    throw DataError(std::to_string(width) + "x" + std::to_string(height) + " pixels",
                    "at most " + std::to_string(max_pixels) + " pixels");
  }
}

Image Image::decode(const void* data, std::size_t size) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  if (size >= 8 && std::memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0) return decode_png(bytes, size);
  if (size >= 3 && std::memcmp(bytes, "\xff\xd8\xff", 3) == 0) return decode_jpeg(bytes, size);
  throw DataError("neither PNG nor JPEG", expected, "convert it to PNG");
}

Image Image::read(const std::filesystem::path& path) {
  const std::vector<std::uint8_t> bytes = read_file(path, most_bytes);
  try {
    return decode(bytes.data(), bytes.size());
  } catch (const DataError& error) {
    throw DataError(shown(path) + " cannot be read as an image (" + error.found() + ")",
                    error.expected().empty() ? expected : error.expected(), error.remedy());
  }
}

}  // namespace densenet_deploy
