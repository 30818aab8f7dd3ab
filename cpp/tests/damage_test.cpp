/// Random damage to everything that is read: an error or a good answer, never a crash. Of use under
/// AddressSanitizer; the seeds are fixed, so that a failure repeats.

#include <csignal>

#include "support.hpp"

namespace dd = densenet_deploy;
using testing_support::read;
using testing_support::Scratch;
using testing_support::shipped;
using testing_support::write;

namespace {

constexpr int rounds = 3000;

/// Flips, overwrites, cuts or doubles a few bytes.
std::string damaged(std::string bytes, std::mt19937& random) {
  for (std::size_t count = 1 + random() % 4; count > 0 && !bytes.empty(); --count) {
    const std::size_t place = random() % bytes.size();
    switch (random() % 5) {
      case 0:
        bytes[place] ^= static_cast<char>(1 << random() % 8);
        break;
      case 1:
        bytes[place] = static_cast<char>(random());
        break;
      case 2:
        bytes.resize(place);
        break;
      case 3:
        bytes.insert(place, bytes.substr(place, random() % 64));
        break;
      case 4:
        bytes.erase(place, random() % 64);
        break;
    }
  }
  return bytes;
}

/// How many damaged copies are refused.
template <class Use>
int survive(const std::string& bytes, const Use& use, int times = rounds) {
  std::mt19937 random(0);
  int refused = 0;
  for (int round = 0; round < times; ++round) {
    try {
      use(damaged(bytes, random));
    } catch (const dd::Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, times / 10);
  return refused;
}

void decode(const std::string& bytes) {
  const dd::Image image = dd::Image::decode(bytes.data(), bytes.size());
  const auto size = static_cast<std::size_t>(image.width) * image.height * image.channels;
  EXPECT_EQ(image.pixels.size(), size);
}

}  // namespace

TEST(Damage, Png) { survive(read(shipped() / "samples" / "07-shirt.png"), decode); }

TEST(Damage, Npy) {
  const Scratch scratch;
  survive(read(shipped() / "golden" / "output.npy"), [&](const std::string& bytes) {
    write(scratch / "a.npy", bytes);
    const dd::Tensor tensor = dd::read_npy(scratch / "a.npy");
    EXPECT_EQ(tensor.values.size(), static_cast<std::size_t>(tensor.rows()) * tensor.row_size());
  });
}

TEST(Damage, Manifest) {
  const testing_support::Damaged bundle;
  // Without the image numbers of the calibration, a third of the file, so that the rest is hit.
  std::string manifest = read(bundle / "manifest.json");
  const std::size_t rows = manifest.find("\"rows\": ["), end = manifest.find(']', rows);
  manifest.erase(rows, end + 2 - rows);
  write(bundle / "manifest.json", manifest);
  dd::Bundle::open(bundle.path());
  const int refused = survive(
      manifest,
      [&](const std::string& bytes) {
        write(bundle / "manifest.json", bytes);
        dd::Bundle::open(bundle.path());
      },
      rounds / 5);
  EXPECT_LT(refused, rounds / 5);  // a letter of a description, say
}
