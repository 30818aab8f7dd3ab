#include "backends/tensorrt/pieces.hpp"

#include "support.hpp"

namespace dd = densenet_deploy;
using dd::detail::Piece;
using dd::detail::pieces;

namespace {

std::string shown(const std::vector<Piece>& cut) {
  std::string text;
  for (const Piece& piece : cut) {
    text += std::to_string(piece.start) + "+" + std::to_string(piece.rows) + "@" +
            std::to_string(piece.profile) + "(" + std::to_string(piece.batch) + ") ";
  }
  return text;
}

}  // namespace

TEST(Pieces, AreAsLargeAsAnyProfileAllows) {
  EXPECT_EQ(shown(pieces(1, {{1, 8, 64}})), "0+1@0(1) ");
  EXPECT_EQ(shown(pieces(130, {{1, 8, 64}})), "0+64@0(64) 64+64@0(64) 128+2@0(2) ");
}

TEST(Pieces, RunInTheTightestProfile) {
  const std::vector<dd::Batch> buckets{{1, 1, 1}, {2, 4, 8}, {9, 16, 32}};
  EXPECT_EQ(shown(pieces(1, buckets)), "0+1@0(1) ");
  EXPECT_EQ(shown(pieces(5, buckets)), "0+5@1(5) ");
  EXPECT_EQ(shown(pieces(41, buckets)), "0+32@2(32) 32+9@2(9) ");
}

TEST(Pieces, ArePaddedWhereNoProfileIsSoSmall) {
  EXPECT_EQ(shown(pieces(3, {{8, 8, 8}, {4, 4, 4}})), "0+3@1(4) ");
}

TEST(Pieces, PreferTheProfileTunedForTheClosestSize) {
  EXPECT_EQ(shown(pieces(6, {{1, 1, 8}, {1, 8, 8}})), "0+6@1(6) ");
}

TEST(Pieces, CoverEveryRowOnceWhateverTheProfiles) {
  std::mt19937 random(0);
  for (int round = 0; round < 2000; ++round) {
    std::vector<dd::Batch> profiles;
    for (std::size_t count = 1 + random() % 4; count > 0; --count) {
      const std::int64_t low = 1 + random() % 9, best = low + random() % 9;
      profiles.push_back({low, best, best + static_cast<std::int64_t>(random() % 9)});
    }
    const std::int64_t rows = 1 + random() % 100;
    std::int64_t next = 0;
    for (const Piece& piece : pieces(rows, profiles)) {
      const dd::Batch& profile = profiles[piece.profile];
      EXPECT_EQ(piece.start, next);
      EXPECT_TRUE(profile.min <= piece.batch && piece.batch <= profile.max);
      EXPECT_TRUE(1 <= piece.rows && piece.rows <= piece.batch);
      next += piece.rows;
    }
    EXPECT_EQ(next, rows);
  }
}
