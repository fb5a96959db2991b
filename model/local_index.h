// The indexer of the local engine: which positions each row of a pass attends (LSA), flat or
// hierarchical (docs/NUMERICS.md, "Indexer").
//
// Index keys are scored from panels of 64 positions (a KV block), packed once when a block is full
// and kept beside its entry in the pool, with the block's mean key. Both are derived: they fall
// with the first write to the block and are made again when needed.
#pragma once
#include <vector>

#include "model/config.h"
#include "model/draft_sets.h"
#include "model/engine.h"
#include "model/kernels.h"
#include "model/multiply.h"
#include "model/shard_wire.h"

namespace model {

// What the rows ask with.
struct IndexQueries {
  const float* q = nullptr;  // [rows, heads, dim], turned
  const float* w = nullptr;  // [rows, heads], scaled
  Probe* probe = nullptr;
};

struct IndexScratch {
  // Rows of one segment that need scores: [first, segment.count).
  struct Sequence {
    const Segment* segment = nullptr;
    uint32_t first = 0;
    uint32_t end = 0;     // positions with keys: those of the segment included
    size_t means_at = 0;  // of its mean panels; hierarchical rows only
  };
  // Some rows of a sequence that go through the keys together.
  struct Group {
    uint32_t sequence = 0;
    uint32_t first = 0, count = 0;  // rows of the segment
    size_t scores_at = 0;           // [count, score_stride]
  };
  struct Chunk {                             // of a group's flat scores
    uint32_t group = 0, begin = 0, end = 0;  // blocks
  };
  std::vector<Sequence> sequences;
  std::vector<std::pair<uint32_t, uint32_t>> stale;  // sequence, block: what is to be derived
  std::vector<Group> flat, hierarchical;
  std::vector<Chunk> chunks;
  AlignedBuffer partial;  // [sequences]: panel of the last block where it is not full
  AlignedBuffer means;    // panels of 64 mean keys
  std::vector<float> scores;
};

class LocalIndex {
 public:
  // config and compute must outlive it.
  LocalIndex(const ModelConfig& config, const EngineOptions& options, const Compute& compute);

  // chosen[row] ← the positions of each row of the pass that is over the budget; others stay empty,
  // and so do those of segments of which not all positions are here.
  void choose(uint32_t layer, const Pass& pass, const IndexQueries& queries, IndexScratch& s,
              PositionSets& chosen) const;

  // out[row] ← of each row of the segment that is over the budget the best positions of the range
  // between its forced ones, as many as it may choose, with their scores.  REQUIRES: the range is
  // in the segment's view; not hierarchical
  void candidates(uint32_t layer, const Segment& segment, KvRange range,
                  const IndexQueries& queries, IndexScratch& s,
                  std::vector<IndexCandidates>& out) const;
  // The set of a row with `count` positions from candidates of disjoint ranges, in order.
  void choose_among(uint32_t count, std::span<const IndexCandidates* const> candidates,
                    std::vector<uint32_t>& chosen) const;
  bool is_hierarchical() const { return hierarchical_.on; }

 private:
  using Sequence = IndexScratch::Sequence;
  using Group = IndexScratch::Group;

  // Whether a query there chooses blocks before positions.
  bool hierarchical(uint32_t position) const {
    return hierarchical_.on && position >= hierarchical_.from && position >= config_.topk;
  }
  void collect(const Pass& pass, const Probe* probe, IndexScratch& s) const;
  void derive(uint32_t layer, IndexScratch& s) const;
  void pack_block(uint32_t layer, const Sequence& sequence, uint32_t block, std::byte* panel,
                  float* mean) const;
  void gather_means(uint32_t layer, IndexScratch& s) const;
  void score_flat(uint32_t layer, const IndexQueries& queries, IndexScratch& s,
                  PositionSets& chosen) const;
  void choose_hierarchical(uint32_t layer, const IndexQueries& queries, const Group& group,
                           const IndexScratch& s, PositionSets& chosen) const;
  void choose_among(uint32_t layer, const IndexQueries& queries, const Sequence& sequence,
                    const IndexScratch& s, uint32_t row, const float* coarse,
                    std::vector<uint32_t>& chosen) const;
  void report(uint32_t layer, const IndexQueries& queries, const Sequence& sequence,
              const IndexScratch& s, uint32_t row, uint32_t forced_from,
              const std::vector<uint32_t>& chosen) const;
  void score_block(uint32_t layer, const IndexQueries& queries, const IndexScratch& s,
                   const Sequence& sequence, uint32_t row, uint32_t block, float* out) const;
  // The panel of a block.
  const std::byte* panel(uint32_t layer, const IndexScratch& s, const Sequence& sequence,
                         uint32_t block) const;

  size_t panel_bytes() const { return static_cast<size_t>(kBlockTokens) * dim_ * value_bytes_; }
  size_t mean_bytes() const { return dim_ * sizeof(float); }
  KvPool::Derived derived(uint32_t layer, const Sequence& sequence, uint32_t block) const {
    return sequence.segment->kv.pool->derived(sequence.segment->kv.block(block), layer);
  }

  const IndexerConfig& config_;
  const Compute& compute_;
  const HierarchicalIndex hierarchical_;
  const uint32_t heads_, dim_;
  const bool bf16_;
  const size_t value_bytes_, key_at_;  // of an index key in a KV row
  const size_t derived_bytes_;         // a mean, then a panel
};

}  // namespace model
