#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::read;
using testing_support::shipped;

namespace {

/// A PNG's header chunk says how many pixels follow.
std::string with_size(std::string png, std::uint32_t width, std::uint32_t height) {
  for (int index = 0; index < 4; ++index) {
    png[16 + index] = static_cast<char>(width >> (24 - 8 * index));
    png[20 + index] = static_cast<char>(height >> (24 - 8 * index));
  }
  return png;
}

}  // namespace

TEST(Image, DecodesWhatTheGoldenInputWasMadeOf) {
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  const dd::Tensor golden = bundle.golden_input();
  std::vector<dd::Image> images = bundle.samples();
  images.resize(static_cast<std::size_t>(golden.rows()));
  EXPECT_EQ(bundle.manifest().preprocessing.prepare(images).values, golden.values);  // to the bit
}

TEST(Image, RefusesWhatIsNone) {
  EXPECT_REFUSED(dd::Image::read(shipped() / "manifest.json"), dd::DataError,
                 "cannot be read as an image (neither PNG nor JPEG)");
  EXPECT_REFUSED(dd::Image::read(shipped() / "nothing.png"), dd::DataError, "does not exist");
  EXPECT_REFUSED(dd::Image::read(shipped()), dd::DataError, "no regular file");
  EXPECT_REFUSED(dd::Image::decode(nullptr, 0), dd::DataError, "neither PNG nor JPEG");
}

TEST(Image, RefusesHugeSizesBeforeItAllocates) {
  const std::string png = read(shipped() / "samples" / "00-ankle-boot.png");
  for (const auto& [width, height] : {std::pair{30'000U, 30'000U}, {0x7fffffffU, 0x7fffffffU}}) {
    const std::string huge = with_size(png, width, height);
    EXPECT_REFUSED(dd::Image::decode(huge.data(), huge.size()), dd::DataError, "");
  }
}

TEST(Image, RefusesEveryFileThatIsCutShort) {
  const std::string png = read(shipped() / "samples" / "00-ankle-boot.png");
  for (std::size_t size = 0; size < png.size() - 20; size += 7) {  // what follows the pixels may go
    EXPECT_THROW(dd::Image::decode(png.data(), size), dd::DataError) << size;
  }
}
