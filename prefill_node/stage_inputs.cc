#include "prefill_node/stage_inputs.h"

#include <iterator>

#include "base/check.h"
#include "prefill_node/zigzag.h"

namespace prefill {

proto::Outcome StageInputs::accept(uint32_t begin, uint32_t count, const base::Blob& rows) {
  const bool in_range = count > 0 && count <= kRowsMost && begin < tokens_ &&
                        count <= tokens_ - begin &&
                        rows.size() == zigzag_rows(count, share_.ranks, share_.rank) * row_bytes_;
  if (!in_range) return proto::Outcome::kCorrupt;
  if (begin < next_) {
    return begin + count <= next_ ? proto::Outcome::kOk : proto::Outcome::kCorrupt;
  }
  const auto after = waiting_.lower_bound(begin);
  if (after != waiting_.end()) {
    if (after->first == begin)
      return after->second.count == count ? proto::Outcome::kOk : proto::Outcome::kCorrupt;
    if (after->first < begin + count) return proto::Outcome::kCorrupt;
  }
  if (after != waiting_.begin()) {
    const Chunk& before = std::prev(after)->second;
    if (before.begin + before.count > begin) return proto::Outcome::kCorrupt;
  }
  if (waiting_.size() >= kMost && begin != next_) return proto::Outcome::kNoRoom;
  waiting_.emplace(begin, Chunk{begin, count, rows});
  return proto::Outcome::kOk;
}

StageInputs::Chunk StageInputs::take() {
  CHECK(has_next(), "the chunk at {} is not here", next_);
  auto node = waiting_.extract(waiting_.begin());
  next_ += node.mapped().count;
  return std::move(node.mapped());
}

}  // namespace prefill
