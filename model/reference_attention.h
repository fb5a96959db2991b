// MLA with LongCat Sparse Attention, as docs/NUMERICS.md writes it: absorbed, in spans and tiles.
#pragma once
#include <optional>
#include <vector>

#include "model/draft_sets.h"
#include "model/engine.h"
#include "model/kv_layout.h"
#include "model/numerics.h"
#include "model/reference_ops.h"
#include "model/shard_wire.h"
#include "model/sharded_attention.h"

namespace model {

// What all attentions of a model share.
struct AttentionContext {
  const ModelConfig& config;
  KvLayout kv;
  Rope rope;
  uint32_t span;
  HierarchicalIndex hierarchical;
  Probe* probe = nullptr;
};

// Attention 0 leaves each row's positions for attention 1 of the same layer (LSA models).
struct ReferenceScratch final : Pass::Scratch {
  PositionSets selected;  // [rows]
  DraftSets draft_sets;
  // Between steps of sharded attention: of each row the softmax over each span,
  // [rows][heads][spans] (that of a share stands at its first span), and of each row the candidates
  // of each share and, last, of what is here.
  std::vector<std::vector<std::vector<Partial>>> partials;
  std::vector<std::vector<IndexCandidates>> candidates;
};

// Where an attention's weights stand in the checkpoint and its values in a KV row.
struct AttentionPlace {
  std::string weights;     // "model.layers.3.self_attn.1"
  std::string input_norm;  // tensor
  uint32_t layer = 0, j = 0;
  static AttentionPlace of_trunk(uint32_t layer, uint32_t j);
};

class ReferenceAttention {
 public:
  static base::Result<ReferenceAttention> load(const Checkpoint& checkpoint, WeightChoice choice,
                                               const AttentionPlace& place);
  // h += Attention(RMS(h; input norm)) for every row of the pass.
  void run(const AttentionContext& context, Pass& pass) const;
  // Its halves: the KV rows; then the rest, from the same h.
  void begin(const AttentionContext& context, Pass& pass) const;
  void end(const AttentionContext& context, Pass& pass) const;
  // The same in the MTP block, where later steps reuse an earlier one's sets.
  void run_draft(const AttentionContext& context, Pass& pass, DraftIndex index) const;

  // --- sharded_attention.h; reference_shards.cc
  bool shards_choose(const AttentionContext& context, const Pass& pass) const;
  base::Bytes question(const AttentionContext& context, const Pass& pass, const ShardRef& ref,
                       ShardStep step) const;
  void own(const AttentionContext& context, Pass& pass, ShardStep step) const;
  bool take(const AttentionContext& context, Pass& pass, const ShardRef& ref, ShardStep step,
            base::ByteView answer) const;
  void finish(const AttentionContext& context, Pass& pass, ShardStep step) const;
  bool answer(const AttentionContext& context, const KvView& kv, KvRange range, ShardStep step,
              base::ByteView question, base::Bytes& out) const;

 private:
  struct Indexer {
    Matrix query;  // W_qb
    Matrix key;    // W_k
    std::vector<float> key_norm;
    Matrix weights;  // W_w
  };
  // One row of the pass on its way through.
  struct Row {
    uint32_t row = 0, position = 0;
    KvView kv;
    std::vector<float> x;         // normalised input
    std::vector<float> cq;        // normalised query latent
    std::vector<float> cos, sin;  // at its position
  };

  void attend_rows(const AttentionContext& context, Pass& pass, const std::vector<Row>& rows,
                   const PositionSets* given) const;
  std::vector<Row> start_rows(const AttentionContext& context, const Pass& pass) const;
  void write_kv(const AttentionContext& context, const Row& row) const;
  // What a row asks the index keys with.
  struct IndexQuery {
    std::vector<float> heads;    // [heads, dim], turned
    std::vector<float> weights;  // [heads], scaled
  };
  IndexQuery index_query(const AttentionContext& context, const Row& row) const;
  std::vector<float> index_scores(const AttentionContext& context, const Row& row,
                                  std::span<const uint32_t> positions) const;
  std::vector<float> index_scores(const AttentionContext& context, const KvView& kv,
                                  IndexQuery query, std::span<const uint32_t> positions) const;
  // The best of a range for a row with `count` positions, as many as it may choose.
  IndexCandidates best_of(const AttentionContext& context, const KvView& kv,
                          const IndexQuery& query, KvRange range, uint32_t count) const;
  std::vector<uint32_t> choose_among(const AttentionContext& context, uint32_t count,
                                     const std::vector<IndexCandidates>& candidates) const;
  std::vector<float> block_scores(const AttentionContext& context, const Row& row) const;
  std::vector<uint32_t> candidates(const AttentionContext& context, const Row& row) const;
  // Attends the positions given for each row, or if null those it selects itself.
  void run(const AttentionContext& context, Pass& pass, const PositionSets* given) const;
  std::vector<uint32_t> select(const AttentionContext& context, const Row& row) const;
  std::vector<std::vector<float>> queries(const AttentionContext& context, const Row& row) const;
  std::vector<float> attend(const AttentionContext& context, const Row& row,
                            const std::vector<uint32_t>& positions) const;
  // Of each head the softmax over the positions of each span from `first_span` on.
  using Partials = std::vector<std::vector<Partial>>;  // [heads][spans]
  Partials empty_partials(const AttentionContext& context, size_t spans) const;
  void absorb(const AttentionContext& context, const KvView& kv,
              const std::vector<std::vector<float>>& query, std::span<const uint32_t> positions,
              uint32_t first_span, Partials& partials) const;
  std::vector<float> output(Partials partials) const;

  uint32_t layer_ = 0, j_ = 0;
  std::vector<float> input_norm_, q_norm_, kv_norm_;
  Matrix q_a_, q_b_, kv_a_, o_;
  std::vector<Matrix> k_up_;  // per head W_kᵀ: nope values to kv_lora
  std::vector<Matrix> v_up_;  // per head W_v: kv_lora values to v_dim
  std::optional<Indexer> indexer_;
};

}  // namespace model
