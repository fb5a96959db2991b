#include "decode_node/kv_intake.h"

#include <iterator>

#include "base/check.h"

namespace decode {

KvIntake::Range KvIntake::classify(uint32_t layer, uint32_t begin, uint32_t count,
                                   const base::Hash128& digest) const {
  if (layer >= layers_.size() || count == 0 || begin < begin_ || begin >= tokens_ ||
      count > tokens_ - begin) {
    return Range::kConflict;
  }
  const Layer& rows = layers_[layer];
  if (rows.committed) return Range::kDuplicate;
  const auto next = rows.ranges.lower_bound(begin);
  if (next != rows.ranges.end()) {
    if (next->first == begin) {
      const bool same = next->second.count == count && next->second.digest == digest;
      return same ? Range::kDuplicate : Range::kConflict;
    }
    if (next->first < begin + count) return Range::kConflict;
  }
  if (next != rows.ranges.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.count > begin) return Range::kConflict;
  }
  return Range::kNew;
}

void KvIntake::received(uint32_t layer, uint32_t begin, uint32_t count,
                        const base::Hash128& digest) {
  CHECK(classify(layer, begin, count, digest) == Range::kNew, "rows {}+{} of layer {} came twice",
        begin, count, layer);
  layers_[layer].ranges.emplace(begin, Rows{count, digest});
  layers_[layer].tokens += count;
}

base::Hash128 KvIntake::chain(uint32_t layer) const {
  const Layer& rows = layers_[layer];
  if (rows.committed) return rows.chain;
  base::Hash128 chain;
  for (const auto& [begin, range] : rows.ranges) chain = proto::kv_chain(chain, range.digest);
  return chain;
}

bool KvIntake::matches(uint32_t layer, const base::Hash128& expected) const {
  const Layer& rows = layers_[layer];
  return (rows.committed || rows.tokens == tokens_ - begin_) && chain(layer) == expected;
}

KvIntake::Commit KvIntake::commit(const proto::KvCommit& commit) {
  if (commit.layer_begin >= commit.layer_end || commit.layer_end > layers_.size() ||
      commit.digests.size() != commit.layer_end - commit.layer_begin || commit.tokens != tokens_) {
    return Commit::kMalformed;
  }
  for (uint32_t layer = commit.layer_begin; layer < commit.layer_end; ++layer) {
    if (!matches(layer, commit.digests[layer - commit.layer_begin])) return Commit::kMismatch;
  }
  for (uint32_t layer = commit.layer_begin; layer < commit.layer_end; ++layer) {
    Layer& rows = layers_[layer];
    if (rows.committed) continue;
    rows.chain = chain(layer);
    rows.committed = true;
    rows.ranges.clear();
    ++committed_;
  }
  return Commit::kAccepted;
}

}  // namespace decode
