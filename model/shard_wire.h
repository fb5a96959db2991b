// The bytes of questions and answers between the owner and the holders of a sequence's shares
// (sharded_attention.h): u32 and f32 as they lie in memory. A reader returns false for bytes that
// are none; every length is compared with what is there before anything is allocated.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "model/kv_pool.h"

namespace model {

// The rows of one segment that ask: consecutive positions.
struct ShardRows {
  uint32_t position = 0;  // of the first
  uint32_t count = 0;
};

// kIndex, to a holder: [count, heads · dim] queries, [count, heads] weights.
struct IndexQuestion {
  ShardRows rows;
  std::vector<float> q, w;
};
// kIndex, back. Of each row the best positions of the share between its forced ones, ascending, as
// many as it may choose, with their scores; none where it attends all.
struct IndexCandidates {
  std::vector<uint32_t> positions;
  std::vector<float> scores;
};
// kAttend, to a holder: [count, heads · latent] queries, and of each row the positions of the share
// that it attends; nullopt: all of them.
struct AttendQuestion {
  ShardRows rows;
  std::vector<float> q;
  std::vector<std::optional<std::vector<uint32_t>>> chosen;
};
// kAttend, back: softmax partials of a subtree of spans (numerics.h, Partial), of each row and
// head.
struct ShardPartials {
  std::vector<float> m, l;  // [rows · heads]; l == 0: empty
  std::vector<float> o;     // [rows · heads, kv_lora]
  void assign(size_t rows, size_t width);
};

base::Bytes write(const IndexQuestion& question);
bool read(base::ByteView bytes, size_t heads, size_t dim, IndexQuestion& out);
base::Bytes write(std::span<const IndexCandidates> rows);
// Positions ascend inside `range`.
bool read(base::ByteView bytes, size_t rows, KvRange range, std::vector<IndexCandidates>& out);
base::Bytes write(const AttendQuestion& question);
// `width`: values of a row's queries.  Positions ascend inside `range`.
bool read(base::ByteView bytes, size_t width, KvRange range, AttendQuestion& out);
base::Bytes write(const ShardPartials& partials);
bool read(base::ByteView bytes, size_t rows, size_t width, ShardPartials& out);

}  // namespace model
