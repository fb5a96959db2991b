// StageInputs: the chunks that came from the stage before and wait to be computed. They may come
// doubled and out of order; they are taken in token order. Pure.
#pragma once
#include <map>
#include <optional>

#include "base/bytes.h"
#include "proto/common.h"

namespace prefill {

class StageInputs {
 public:
  // Chunks that wait; a gap is filled beyond this bound, or nothing would ever move.
  static constexpr size_t kMost = 4;
  static constexpr uint32_t kRowsMost = 32768;  // of a chunk

  // Of each chunk come the rows of the tokens that rank `rank` of `ranks` has (zigzag.h).
  struct Share {
    uint32_t ranks = 1, rank = 0;
  };
  StageInputs(uint32_t next, uint32_t tokens, size_t row_bytes, Share share = {1, 0})
      : next_(next), tokens_(tokens), row_bytes_(row_bytes), share_(share) {}

  // kOk: kept, or here before. kNoRoom: enough wait already. kCorrupt: makes no sense here.
  // `rows`: [rows of the share, hidden] f32, its digest verified.
  proto::Outcome accept(uint32_t begin, uint32_t count, const base::Blob& rows);

  struct Chunk {
    uint32_t begin = 0, count = 0;
    base::Blob rows;
  };
  bool has_next() const { return !waiting_.empty() && waiting_.begin()->first == next_; }
  // Tokens of the chunk that is next.  REQUIRES: has_next()
  uint32_t next_count() const { return waiting_.begin()->second.count; }
  // The chunk at the position after the last taken one. REQUIRES: has_next()
  Chunk take();
  size_t waiting() const { return waiting_.size(); }

 private:
  uint32_t next_;
  const uint32_t tokens_;
  const size_t row_bytes_;
  const Share share_;
  std::map<uint32_t, Chunk> waiting_;  // by begin, all ≥ next_
};

}  // namespace prefill
