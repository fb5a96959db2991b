// zigzag: which tokens of a chunk each of a stage's n ranks has. The chunk is cut in 2n pieces;
// rank r has piece r and piece 2n - 1 - r, an early one and a late one, so that all attend about as
// many positions. The last token is rank 0's. Pure.
#pragma once
#include <cstdint>
#include <vector>

namespace prefill {

struct Piece {
  uint32_t begin = 0, count = 0;  // positions
  bool operator==(const Piece&) const = default;
};
// In ascending order, none empty; none at all when the chunk is too small for this rank.
std::vector<Piece> zigzag(uint32_t begin, uint32_t count, uint32_t ranks, uint32_t rank);
// Tokens in them; the same wherever the chunk begins.
uint32_t zigzag_rows(uint32_t count, uint32_t ranks, uint32_t rank);

}  // namespace prefill
