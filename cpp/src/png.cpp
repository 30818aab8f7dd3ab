/// PNG through libpng. Its errors jump: what must be freed lives outside the function jumped into.

#include <png.h>

#include <cstring>
#include <string>
#include <utility>

#include "codecs.hpp"
#include "densenet_deploy/error.hpp"

namespace densenet_deploy {
namespace {

struct Decoding {
  const std::uint8_t* data;
  std::size_t left;
  std::string message;
  png_structp png = nullptr;
  png_infop info = nullptr;
  int passes = 1;
  Image image;

  Decoding(const std::uint8_t* bytes, std::size_t size) : data(bytes), left(size) {}
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;
  ~Decoding() { png_destroy_read_struct(&png, &info, nullptr); }
};

void on_error(png_structp png, png_const_charp message) {
  static_cast<Decoding*>(png_get_error_ptr(png))->message = message;
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void on_read(png_structp png, png_bytep target, png_size_t count) {
  auto& decoding = *static_cast<Decoding*>(png_get_io_ptr(png));
  if (count > decoding.left) png_error(png, "the file is cut short");
  std::memcpy(target, decoding.data, count);
  decoding.data += count;
  decoding.left -= count;
}

/// Asks for 8-bit grayscale or RGB, whatever the file holds.
void set_transformations(png_structp png, png_infop info) {
  const int colour = png_get_color_type(png, info);
  if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (colour == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png);
  png_set_strip_16(png);  // the high byte
  png_set_strip_alpha(png);
  png_read_update_info(png, info);
}

/// False where libpng failed or the image is too large; `message` says why in the first case.
bool read_header(Decoding& decoding) {
  if (setjmp(png_jmpbuf(decoding.png))) return false;
  png_set_read_fn(decoding.png, &decoding, on_read);
  png_set_user_limits(decoding.png, max_pixels, max_pixels);
  // Texts, profiles and the like: a small file may unpack to gigabytes of them.
  png_set_keep_unknown_chunks(decoding.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_read_info(decoding.png, decoding.info);
  return true;
}

bool read_pixels(Decoding& decoding) {
  if (setjmp(png_jmpbuf(decoding.png))) return false;
  decoding.passes = png_set_interlace_handling(decoding.png);
  set_transformations(decoding.png, decoding.info);
  Image& image = decoding.image;
  image.channels = png_get_channels(decoding.png, decoding.info);
  const std::size_t stride = png_get_rowbytes(decoding.png, decoding.info);
  image.pixels.resize(stride * static_cast<std::size_t>(image.height));
  for (; decoding.passes > 0; --decoding.passes) {  // an interlaced image fills up pass by pass
    png_bytep row = image.pixels.data();
    for (int y = 0; y < image.height; ++y, row += stride) png_read_row(decoding.png, row, nullptr);
  }
  return true;
}

}  // namespace

Image decode_png(const std::uint8_t* data, std::size_t size) {
  Decoding decoding(data, size);
  decoding.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoding, on_error, on_warning);
  if (decoding.png != nullptr) decoding.info = png_create_info_struct(decoding.png);
  if (decoding.info == nullptr) throw DataError("libpng cannot start");
  if (!read_header(decoding)) throw DataError(decoding.message);
  decoding.image.width = static_cast<int>(png_get_image_width(decoding.png, decoding.info));
  decoding.image.height = static_cast<int>(png_get_image_height(decoding.png, decoding.info));
  check_pixels(decoding.image.width, decoding.image.height);
  if (!read_pixels(decoding)) throw DataError(decoding.message);
  return std::move(decoding.image);
}

}  // namespace densenet_deploy
