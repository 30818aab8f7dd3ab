/// JPEG through libjpeg. Its errors jump: what must be freed lives outside the function jumped
/// into.

#include <csetjmp>
#include <cstdio>
// <jpeglib.h> needs <cstdio> first.
#include <jerror.h>
#include <jpeglib.h>

#include <array>
#include <string>
#include <vector>

#include "codecs.hpp"
#include "densenet_deploy/error.hpp"

namespace densenet_deploy {
namespace {

struct Decoding {
  jpeg_error_mgr errors{};  // first: libjpeg hands its address back
  std::jmp_buf jump{};
  std::string message;
  jpeg_decompress_struct jpeg{};
  Image image;
  std::vector<std::uint8_t> row;

  Decoding() = default;
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;
  ~Decoding() { jpeg_destroy_decompress(&jpeg); }
};

void on_error(j_common_ptr jpeg) {
  auto& decoding = *reinterpret_cast<Decoding*>(jpeg->err);
  std::array<char, JMSG_LENGTH_MAX> text{};
  jpeg->err->format_message(jpeg, text.data());
  decoding.message = text.data();
  std::longjmp(decoding.jump, 1);
}

/// Of the warnings only the end of the data is an error: libjpeg would go on with gray.
void on_message(j_common_ptr jpeg, int level) {
  if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF) on_error(jpeg);
}

/// False where libjpeg failed; `message` says why.
bool read_header(Decoding& decoding, const std::uint8_t* data, std::size_t size) {
  if (setjmp(decoding.jump)) return false;
  jpeg_create_decompress(&decoding.jpeg);
  jpeg_mem_src(&decoding.jpeg, const_cast<std::uint8_t*>(data), size);
  jpeg_read_header(&decoding.jpeg, TRUE);
  return true;
}

/// Pillow's rule for files of four channels: inverted, as Adobe writes them.
void cmyk_to_rgb(const std::uint8_t* cmyk, std::uint8_t* rgb) {
  const int black = cmyk[3];  // 255 - K
  for (int channel = 0; channel < 3; ++channel) {
    const int product = (255 - cmyk[channel]) * black + 128;
    const int value = black - (((product >> 8) + product) >> 8);
    rgb[channel] = static_cast<std::uint8_t>(value < 0 ? 0 : value);
  }
}

bool read_pixels(Decoding& decoding) {
  if (setjmp(decoding.jump)) return false;
  jpeg_decompress_struct& jpeg = decoding.jpeg;
  const bool cmyk = jpeg.num_components == 4;
  const bool gray = jpeg.num_components == 1;
  jpeg.out_color_space = cmyk ? JCS_CMYK : gray ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(&jpeg);
  Image& image = decoding.image;
  image.channels = gray ? 1 : 3;
  const std::size_t width = jpeg.output_width;
  image.pixels.resize(width * jpeg.output_height * static_cast<std::size_t>(image.channels));
  if (cmyk) decoding.row.resize(4 * width);
  while (jpeg.output_scanline < jpeg.output_height) {
    std::uint8_t* target = image.pixels.data() + jpeg.output_scanline * width * image.channels;
    JSAMPROW line = cmyk ? decoding.row.data() : target;
    jpeg_read_scanlines(&jpeg, &line, 1);
    for (std::size_t x = 0; cmyk && x < width; ++x) cmyk_to_rgb(line + 4 * x, target + 3 * x);
  }
  return true;
}

}  // namespace

Image decode_jpeg(const std::uint8_t* data, std::size_t size) {
  Decoding decoding;
  decoding.jpeg.err = jpeg_std_error(&decoding.errors);
  decoding.errors.error_exit = on_error;
  decoding.errors.emit_message = on_message;
  if (!read_header(decoding, data, size)) throw DataError(decoding.message);
  decoding.image.width = static_cast<int>(decoding.jpeg.image_width);
  decoding.image.height = static_cast<int>(decoding.jpeg.image_height);
  check_pixels(decoding.image.width, decoding.image.height);
  if (!read_pixels(decoding)) throw DataError(decoding.message);
  return std::move(decoding.image);
}

}  // namespace densenet_deploy
