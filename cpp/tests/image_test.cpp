#include <algorithm>

#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::read;
using testing_support::shipped;

TEST(Image, DecodesWhatTheGoldenInputWasMadeOf) {
  const dd::Bundle bundle = dd::Bundle::open(shipped());
  const dd::Tensor golden = bundle.golden_input(), samples = bundle.sample_input();
  for (std::int64_t row = 0; row < golden.rows(); ++row) {
    EXPECT_TRUE(std::equal(golden.row(row), golden.row(row + 1), samples.row(row)));  // to the bit
  }
}

TEST(Image, RefusesWhatIsNone) {
  EXPECT_REFUSED(dd::Image::read(shipped() / "manifest.json"), dd::DataError,
                 "cannot be read as an image (neither PNG nor JPEG)");
  EXPECT_REFUSED(dd::Image::read(shipped() / "nothing.png"), dd::DataError, "does not exist");
  EXPECT_REFUSED(dd::Image::read(shipped()), dd::DataError, "no regular file");
  EXPECT_REFUSED(dd::Image::decode(nullptr, 0), dd::DataError, "neither PNG nor JPEG");
}

TEST(Image, RefusesEveryFileThatIsCutShort) {
  const std::string png = read(shipped() / "samples" / "00-ankle-boot.png");
  for (std::size_t size = 0; size < png.size() - 20; size += 7) {  // what follows the pixels may go
    EXPECT_THROW(dd::Image::decode(png.data(), size), dd::DataError) << size;
  }
}
