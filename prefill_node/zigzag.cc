#include "prefill_node/zigzag.h"

namespace prefill {

namespace {

Piece piece(uint32_t begin, uint64_t count, uint64_t pieces, uint64_t index) {
  const auto from = static_cast<uint32_t>(count * index / pieces);
  const auto to = static_cast<uint32_t>(count * (index + 1) / pieces);
  return {begin + from, to - from};
}

}  // namespace

std::vector<Piece> zigzag(uint32_t begin, uint32_t count, uint32_t ranks, uint32_t rank) {
  if (ranks == 1) return {{begin, count}};
  std::vector<Piece> out;
  for (const uint32_t index : {rank, 2 * ranks - 1 - rank}) {
    const Piece it = piece(begin, count, uint64_t{2} * ranks, index);
    if (it.count > 0) out.push_back(it);
  }
  return out;
}

uint32_t zigzag_rows(uint32_t count, uint32_t ranks, uint32_t rank) {
  uint32_t rows = 0;
  for (const Piece& it : zigzag(0, count, ranks, rank)) rows += it.count;
  return rows;
}

}  // namespace prefill
