#include "prefill_node/zigzag.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace prefill {
namespace {

TEST(Zigzag, ARankHasAnEarlyPieceAndALateOne) {
  using Pieces = std::vector<Piece>;
  EXPECT_EQ(zigzag(100, 8, 2, 0), (Pieces{{100, 2}, {106, 2}}));
  EXPECT_EQ(zigzag(100, 8, 2, 1), (Pieces{{102, 2}, {104, 2}}));
  EXPECT_EQ(zigzag(100, 8, 1, 0), (Pieces{{100, 8}}));
}

TEST(Zigzag, EveryTokenIsOneRanksAndTheLastIsRankZeros) {
  for (const uint32_t ranks : {1u, 2u, 3u, 5u, 8u}) {
    for (uint32_t count = 1; count < 70; ++count) {
      std::vector<uint32_t> owners(count, 0);
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        uint32_t rows = 0, next = 0;
        for (const Piece& piece : zigzag(1000, count, ranks, rank)) {
          EXPECT_GT(piece.count, 0u);
          EXPECT_GE(piece.begin, next);
          next = piece.begin + piece.count;
          rows += piece.count;
          for (uint32_t i = 0; i < piece.count; ++i) ++owners[piece.begin + i - 1000];
        }
        EXPECT_EQ(rows, zigzag_rows(count, ranks, rank));
      }
      EXPECT_TRUE(std::ranges::all_of(owners, [](uint32_t n) { return n == 1; }));
      const Piece last = zigzag(1000, count, ranks, 0).back();
      EXPECT_EQ(last.begin + last.count, 1000 + count);
    }
  }
}

TEST(Zigzag, AllAttendAboutAsMuch) {
  for (const uint32_t ranks : {2u, 3u, 4u}) {
    std::vector<double> attended;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      double sum = 0;
      for (const Piece& piece : zigzag(0, 4096, ranks, rank))
        for (uint32_t i = 0; i < piece.count; ++i) sum += piece.begin + i + 1;
      attended.push_back(sum);
    }
    const auto [least, most] = std::ranges::minmax(attended);
    EXPECT_LT(most / least, 1.001) << ranks;
  }
}

}  // namespace
}  // namespace prefill
