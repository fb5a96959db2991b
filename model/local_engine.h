// The local engine: the model on the kernels. Weights are packed when the engine is made (experts:
// when first used or prepared). Inside: one struct of packed weights per layer, scratch per pass,
// and the pieces of Engine over them.
#pragma once
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/kernels.h"
#include "model/multiply.h"
#include "model/numerics.h"

namespace model {

struct MlpWeights {
  PackedMatrix gate, up;  // [ffn, hidden]
  PackedMatrix down;      // [hidden, ffn]
};

struct IndexerWeights {
  PackedMatrix wq_b;          // [heads · dim, q_lora]
  PackedMatrix wk;            // [dim, hidden]
  PackedMatrix weights_proj;  // [heads, hidden]
  std::vector<float> k_norm;  // [dim]
};

struct AttentionWeights {
  std::vector<float> input_norm;       // [hidden]
  std::vector<float> q_a_norm;         // [q_lora]
  std::vector<float> kv_a_norm;        // [kv_lora]
  PackedMatrix q_a;                    // [q_lora, hidden]
  PackedMatrix q_b;                    // [heads · (nope + rope), q_lora]
  PackedMatrix kv_a;                   // [kv_lora + rope, hidden]
  std::vector<PackedMatrix> absorb_k;  // per head [kv_lora, nope]: W_kᵀ
  std::vector<PackedMatrix> absorb_v;  // per head [v_dim, kv_lora]
  PackedMatrix o;                      // [hidden, heads · v_dim]
};

struct LayerWeights {
  AttentionWeights attention[2];
  IndexerWeights indexer;           // empty unless LSA
  std::vector<float> post_norm[2];  // [hidden]
  MlpWeights mlp[2];
  PackedMatrix router;                 // [experts + zero, hidden]
  std::vector<float> router_bias;      // [experts + zero], of the logits; empty as published
  std::vector<float> correction_bias;  // [experts + zero], moves the choice, not the weights
};

// Routed experts, packed once, on first use, whoever comes first.
struct ExpertSlot {
  std::once_flag once;
  MlpWeights weights;
};

// Reads tensors of a checkpoint into packed form. bf16 stays bf16, everything else becomes f32.
class WeightReader {
 public:
  explicit WeightReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}
  PackedMatrix matrix(const std::string& name, uint32_t outputs, uint32_t inputs) const;
  // Rows [row_begin, row_begin + outputs) of the tensor.
  PackedMatrix matrix_rows(const std::string& name, uint32_t row_begin, uint32_t outputs,
                           uint32_t inputs) const;
  // The transpose of rows [row_begin, row_begin + rows): outputs = columns.
  PackedMatrix transposed_rows(const std::string& name, uint32_t row_begin, uint32_t rows,
                               uint32_t columns) const;
  std::vector<float> vector(const std::string& name, uint32_t n) const;
  MlpWeights mlp(const std::string& prefix, uint32_t hidden, uint32_t ffn) const;

 private:
  WeightFormat format_of(const std::string& name) const;
  const Checkpoint& checkpoint_;
};

class LocalEngine final : public Engine {
 public:
  LocalEngine(const Checkpoint& checkpoint, const EngineOptions& options, Shape shape);

  const Shape& shape() const override { return shape_; }
  void embed(Pass& pass) override;
  void attend(uint32_t layer, uint32_t j, Pass& pass) override;
  void route(uint32_t layer, Pass& pass) override;
  void mlp(uint32_t layer, uint32_t j, Pass& pass) override;
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override;
  void combine(uint32_t layer, Pass& pass) override;
  void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override;
  const Integrity* integrity() const override { return &integrity_; }
  void set_probe(Probe* probe) override { probe_ = probe; }
  void prepare_experts(LayerRange layers, std::span<const uint16_t> experts) override;

 private:
  struct Scratch;
  struct Queries;

  const LayerWeights& weights(uint32_t layer) const { return layers_[layer - range_.begin]; }
  const MlpWeights& expert(uint32_t layer, uint32_t id);
  Scratch& scratch(Pass& pass) const;
  void load_layer(uint32_t layer);
  void load_attention(const WeightReader& read, const std::string& prefix,
                      AttentionWeights& out) const;
  void run_mlp(const MlpWeights& mlp, const float* x, uint32_t rows, float* y,
               std::vector<float>& gate, std::vector<float>& up) const;

  // attention, in local_attention.cc
  void project_queries(uint32_t layer, uint32_t j, const Pass& pass, Scratch& s) const;
  void write_kv(uint32_t layer, uint32_t j, const Pass& pass, Scratch& s) const;
  void write_index_keys(uint32_t layer, const Pass& pass, Scratch& s) const;
  void choose_positions(uint32_t layer, const Pass& pass, Scratch& s) const;
  void attend_dense(const Segment& segment, uint32_t layer, uint32_t j, uint32_t first,
                    uint32_t count, Scratch& s) const;
  void attend_sparse(const Segment& segment, uint32_t layer, uint32_t j, uint32_t row,
                     Scratch& s) const;
  void finish_rows(uint32_t layer, uint32_t j, uint32_t first, uint32_t count, Scratch& s) const;
  // Latent rows of `count` positions (contiguous from `begin`, or those listed) of one attention,
  // widened, in rows of tile_stride().
  void read_latents(const Segment& segment, uint32_t layer, uint32_t j,
                    std::span<const uint32_t> positions, float* out) const;
  void read_values(const std::byte* from, uint32_t n, float* out) const;
  void write_values(const float* values, uint32_t n, std::byte* to) const;
  size_t value_bytes() const { return kv_ == KvType::kBf16 ? 2 : 4; }
  size_t tile_stride() const { return round_up_panel(config_.latent()); }

  // Constant after construction.
  const Checkpoint& checkpoint_;
  const ModelConfig config_;
  const KvType kv_;
  const uint32_t span_;
  const LayerRange range_;
  const Shape shape_;
  mutable ThreadPool pool_;
  mutable Integrity integrity_;
  const Compute compute_;
  const Rope rope_;
  std::vector<LayerWeights> layers_;
  std::vector<std::string> ngram_tables_;  // names, so that a look-up builds none
  std::vector<PackedMatrix> ngram_projections_;
  std::vector<float> final_norm_;
  PackedMatrix lm_head_;
  Probe* probe_ = nullptr;
  // Filled on demand, each slot guarded by its own flag.
  std::vector<std::unique_ptr<ExpertSlot>> experts_;  // [layers in range · experts]
};

struct LocalEngine::Scratch final : Pass::Scratch {
  uint32_t rows = 0;
  std::vector<float> x;         // [rows, hidden] normalised input
  std::vector<float> q_lora;    // [rows, q_lora]
  std::vector<float> q_heads;   // [rows, heads, nope + rope]
  std::vector<float> q_latent;  // [rows, heads, latent]: what meets the cache
  std::vector<float> kv;        // [rows, latent]
  std::vector<float> index_q;   // [rows, index heads, dim]
  std::vector<float> index_w;   // [rows, index heads]
  std::vector<float> cos, sin;  // [rows, rope / 2]
  std::vector<std::vector<uint32_t>>
      chosen;                     // [rows]: the LSA set; empty: every position up to the row's own
  std::vector<float> out_latent;  // [rows, heads, kv_lora]
  std::vector<float> out_heads;   // [rows, heads · v_dim]
  std::vector<float> y;           // [rows, hidden]
  std::vector<float> gate, up, logits;
  // one tile of the cache
  std::vector<float> latents;               // [128, tile_stride]
  AlignedBuffer keys;                       // the tile as panels of positions
  std::vector<float> scores;                // [queries · heads, 128]
  std::vector<Partial> partials;            // [queries · heads] of the span at hand
  std::vector<std::vector<Partial>> spans;  // [queries · heads][span]
};

}  // namespace model
