// The local engine: the model on the kernels. Weights are packed when the engine is made (experts:
// when first used or prepared). Inside: one struct of packed weights per layer, scratch per pass,
// and the pieces of Engine over them.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/draft_sets.h"
#include "model/engine.h"
#include "model/kernels.h"
#include "model/local_attention.h"
#include "model/multiply.h"
#include "model/ngram_tables.h"
#include "model/numerics.h"
#include "model/tensor_digests.h"
#include "model/weight_reader.h"

namespace model {

struct LayerWeights {
  AttentionWeights attention[2];
  IndexerWeights indexer;           // empty unless LSA
  std::vector<float> post_norm[2];  // [hidden]
  MlpWeights mlp[2];
  PackedMatrix router;                 // [experts + zero, hidden]
  std::vector<float> router_bias;      // [experts + zero], of the logits; empty as published
  std::vector<float> correction_bias;  // [experts + zero], moves the choice, not the weights
};

// The MTP block: its attention is attention[0], its MLP mlp[1] of `layer`.
struct DraftWeights {
  std::string word_table;             // its own, or the trunk's
  std::vector<float> embedding_norm;  // [hidden]
  std::vector<float> hidden_norm;     // [hidden]
  PackedMatrix join;                  // eh_proj [hidden, 2 · hidden]
  LayerWeights layer;
  std::vector<float> norm;  // [hidden]
};

// A routed expert, packed on first use, whoever comes first, and let go by keep_experts().
struct ExpertSlot {
  std::mutex mutex;
  // Guarded by mutex; weights may be read without it by who counts among the users.
  bool ready = false;
  uint32_t users = 0;
  MlpWeights weights;
};

class LocalEngine final : public Engine {
 public:
  LocalEngine(const Checkpoint& checkpoint, const EngineOptions& options, Shape shape,
              TensorDigests digests);

  const Shape& shape() const override { return shape_; }
  void embed(Pass& pass) override;
  void attend(uint32_t layer, uint32_t j, Pass& pass) override;
  void begin_attend(uint32_t layer, uint32_t j, Pass& pass) override;
  void end_attend(uint32_t layer, uint32_t j, Pass& pass) override;
  ShardedAttention* sharded() override { return shards_.get(); }
  void route(uint32_t layer, Pass& pass) override;
  void mlp(uint32_t layer, uint32_t j, Pass& pass) override;
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override;
  void routed_experts(uint32_t layer, Pass& pass) override;
  void combine(uint32_t layer, Pass& pass) override;
  void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override;
  void final_norm(const Pass& pass, std::span<const uint32_t> rows,
                  std::vector<float>& out) override;
  void prefetch(const Pass& pass) override;
  const NgramTables* ngram_tables() const override { return ngram_.get(); }
  void draft(Pass& pass, DraftIndex index) override;
  void begin_draft(Pass& pass) override;
  void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override;
  const Integrity* integrity() const override { return &integrity_; }
  uint64_t weight_bytes() const override;
  void scrub(uint64_t bytes) override;
  void inject(base::FaultPoint fault) override;
  void set_probe(Probe* probe) override {
    probe_ = probe;
    attention_.set_probe(probe);
  }
  void prepare_experts(LayerRange layers, std::span<const uint16_t> experts) override;
  void keep_experts(uint32_t layer, std::span<const uint16_t> experts) override;
  uint64_t resident_experts() const override;

 private:
  struct Scratch;
  class Shards;

  std::unique_ptr<ShardedAttention> make_shards();
  // Layer config.layers is the MTP block.
  const LayerWeights& weights(uint32_t layer) const {
    return layer == config_.layers ? draft_->layer : layers_[layer - range_.begin];
  }
  AttentionSite attention_site(uint32_t layer, uint32_t j) const;
  ExpertSlot& slot_of(uint32_t layer, uint32_t id) {
    return *experts_[static_cast<size_t>(layer - range_.begin) * config_.experts + id];
  }
  // Packed if need be; stays until released as often.
  const MlpWeights& use_expert(uint32_t layer, uint32_t id);
  void release_expert(uint32_t layer, uint32_t id);
  Scratch& scratch(Pass& pass) const;
  void load_layer(uint32_t layer);
  void load_attention(const WeightReader& read, const std::string& prefix,
                      AttentionWeights& out) const;
  void load_indexer(const WeightReader& read, const std::string& prefix, IndexerWeights& out) const;
  void load_draft(const WeightReader& read);
  AttentionSite draft_site() const;
  void join_draft(Pass& pass);  // h ← u, the drafting block's input
  void list_weights();          // fills scrubbed_
  void spoil_next(Pass& pass);  // when inject() has asked for it
  // Word rows of the pass's tokens.  out: [rows, hidden]
  void read_words(const std::string& table, const Pass& pass, float* out) const;
  // y ← RMS(x; w)
  void norm(const float* x, const std::vector<float>& w, uint32_t rows, float* y) const;
  // h ← h + y
  void add_rows(const std::vector<float>& y, std::vector<float>& h) const;
  // experts(), the output of pair i being out[slots[i]].
  void run_pairs(uint32_t layer, const float* x, std::span<const uint16_t> rows,
                 std::span<const uint16_t> experts, std::span<const uint32_t> slots, float* out);
  void combine_row(Pass& pass, uint32_t row) const;

  // Constant after construction.
  const Checkpoint& checkpoint_;
  const TensorDigests digests_;
  const WeightChoice choice_;
  const ModelConfig config_;
  const LayerRange range_;
  const Shape shape_;
  mutable ThreadPool pool_;
  mutable Integrity integrity_;
  const Compute compute_;
  LocalAttention attention_;
  const std::unique_ptr<ShardedAttention> shards_;  // null with hierarchical indexing
  std::vector<LayerWeights> layers_;
  std::unique_ptr<DraftWeights> draft_;  // null unless loaded
  std::unique_ptr<NgramTables> ngram_;   // null unless the node embeds and the model has any
  std::vector<PackedMatrix> ngram_projections_;
  std::vector<float> final_norm_;
  PackedMatrix lm_head_;
  Probe* probe_ = nullptr;
  std::atomic<bool> nan_next_{false}, product_fault_next_{false};  // injected, not yet come true
  std::vector<const PackedMatrix*> scrubbed_;                      // all but those of experts
  size_t scrub_at_ = 0;                                            // in scrubbed_, then in experts_
  // Filled on demand, each slot guarded by its own mutex.
  std::vector<std::unique_ptr<ExpertSlot>> experts_;  // [layers in range · experts]
};

struct LocalEngine::Scratch final : Pass::Scratch {
  uint32_t rows = 0;
  AttentionScratch attention;
  DraftSets draft_sets;
  std::vector<float> x;  // [rows, hidden] normalised input
  std::vector<float> y;  // [rows, hidden]
  std::vector<float> gate, up, logits;
};

}  // namespace model
