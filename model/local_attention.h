// Attention of the local engine: MLA in absorbed form over paged KV, dense or over the LSA set, for
// any attention of the model, the drafting block's included. The steps and their order are
// docs/NUMERICS.md, "Attention" and "Indexer".
#pragma once
#include <limits>
#include <optional>
#include <vector>

#include "model/draft_sets.h"
#include "model/engine.h"
#include "model/kv_layout.h"
#include "model/local_index.h"
#include "model/multiply.h"
#include "model/numerics.h"
#include "model/shard_wire.h"
#include "model/sharded_attention.h"

namespace model {

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

// One attention of the model: its weights and where it keeps its values.
struct AttentionSite {
  const AttentionWeights& weights;
  const IndexerWeights* indexer = nullptr;  // of an attention that leaves index keys
  uint32_t layer = 0, j = 0;                // KV entry, and which part of its rows
};

// Which positions the rows attend, in an LSA model.
enum class Positions : uint8_t {
  kOwn,   // those that the site's indexer chooses; a site without one takes them as given
  kGiven  // those in AttentionScratch::chosen
};

inline constexpr uint32_t kNoEnd = std::numeric_limits<uint32_t>::max();

// Queries [first, first + count) of a segment over all positions of a range up to their own, or one
// query over its chosen set; of one query perhaps some heads only.
struct AttentionTask {
  const Segment* segment = nullptr;
  uint32_t first = 0, count = 0;
  uint32_t head = 0, heads = 0;
  std::span<const uint32_t> chosen;  // in the range
  KvRange range{0, kNoEnd};
  ShardPartials* partials = nullptr;  // of the segment's rows, what comes out; null: out_latent
};

// A segment with KV away, on its way through an attention (sharded_attention.h).
struct ShardedRows {
  struct Part {  // an aligned subtree of spans
    KvRange range;
    ShardPartials partials;
  };
  const Segment* segment = nullptr;
  std::vector<Part> parts;  // those away, as in segment->away, then those here, in order
  std::vector<std::vector<IndexCandidates>> candidates;  // [shares + 1, rows]; those here come last
  std::span<Part> own() { return std::span(parts).subspan(segment->away.size()); }
};

// Of ascending positions those in the range.
std::span<const uint32_t> positions_within(std::span<const uint32_t> positions, KvRange range);

struct AttentionScratch {
  // [rows]: the LSA set, ascending; empty: every position up to the row's own.
  PositionSets chosen;

  std::vector<float> x;            // [rows, hidden] normalised input
  std::vector<float> q_lora;       // [rows, q_lora]
  std::vector<float> q_heads;      // [rows, heads, nope + rope]
  std::vector<float> q_latent;     // [rows, heads, latent]: what meets the cache
  std::vector<float> kv;           // [rows, latent]
  std::vector<float> index_keys;   // [rows, index dim]
  std::vector<float> index_q;      // [rows, index heads, dim]
  std::vector<float> index_w;      // [rows, index heads]
  std::vector<float> cos, sin;     // [rows, rope / 2]
  std::vector<uint32_t> angle_of;  // [rows] the position they are of; the next layers have the same
  std::vector<float> out_latent;   // [rows, heads, kv_lora]
  std::vector<float> out_heads;    // [rows, heads · v_dim]
  std::vector<float> y;            // [rows, hidden]
  std::vector<Product> products;
  std::vector<AttentionTask> tasks;
  IndexScratch index;
  std::vector<ShardedRows> sharded;  // of this pass; empty but between steps of sharded attention
};

class LocalAttention {
 public:
  // All three must outlive it.
  LocalAttention(const ModelConfig& config, const EngineOptions& options, const Compute& compute);

  // h += Attention(RMS(h; input_norm)) for every row of the pass. Writes the KV rows of its
  // positions first.
  void run(const AttentionSite& site, Pass& pass, AttentionScratch& s,
           Positions positions = Positions::kOwn) const;
  // Its halves: up to the KV rows, and from them on.
  void begin(const AttentionSite& site, Pass& pass, AttentionScratch& s,
             Positions positions = Positions::kOwn) const;
  void end(const AttentionSite& site, Pass& pass, AttentionScratch& s,
           Positions positions = Positions::kOwn) const;
  void set_probe(Probe* probe) { probe_ = probe; }

  // --- sharded_attention.h, after begin(); local_shards.cc
  bool shards_choose(const AttentionSite& site, const Pass& pass) const;
  base::Bytes question(const AttentionScratch& s, const Pass& pass, const ShardRef& ref,
                       ShardStep step) const;
  void own(const AttentionSite& site, Pass& pass, AttentionScratch& s, ShardStep step) const;
  bool take(AttentionScratch& s, const Pass& pass, const ShardRef& ref, ShardStep step,
            base::ByteView answer) const;
  void finish(const AttentionSite& site, Pass& pass, AttentionScratch& s, ShardStep step) const;
  bool answer(const AttentionSite& site, const KvView& kv, KvRange range, ShardStep step,
              base::ByteView question, base::Bytes& out) const;

 private:
  class Worker;

  // Some row's positions will be chosen by score: it is over the budget, or a probe asks.
  bool scores(const Pass& pass, bool chooses) const;

  // f(begin, end) over ranges of rows, on all threads.
  template <class F>
  void for_rows(uint32_t rows, F f) const;

  void project(const AttentionSite& site, Pass& pass, AttentionScratch& s, bool scores) const;
  void project_latents(const AttentionSite& site, AttentionScratch& s, uint32_t rows,
                       bool scores) const;
  void project_queries(const AttentionSite& site, const Pass& pass, AttentionScratch& s,
                       bool scores) const;
  void turn_row(const AttentionSite& site, AttentionScratch& s, size_t row, bool scores) const;
  void write_rows(const AttentionSite& site, const Pass& pass, AttentionScratch& s) const;
  void project_values(const AttentionSite& site, Pass& pass, AttentionScratch& s) const;

  void split_heads(std::vector<AttentionTask>& tasks) const;
  void add_tasks(const Segment& segment, const AttentionScratch& s, KvRange range,
                 ShardPartials* partials, std::vector<AttentionTask>& tasks) const;
  void run_tasks(const AttentionSite& site, AttentionScratch& s) const;
  void merge_parts(const ShardedRows& rows, AttentionScratch& s) const;
  void start_shards(const Pass& pass, AttentionScratch& s) const;
  void choose(const AttentionSite& site, const Pass& pass, AttentionScratch& s) const;
  void choose_here(const AttentionSite& site, const Segment& segment, AttentionScratch& s) const;
  bool answer_index(const AttentionSite& site, const KvView& kv, KvRange range,
                    base::ByteView question, base::Bytes& out) const;
  void attend_rows(const AttentionSite& site, const Pass& pass, AttentionScratch& s) const;

  const ModelConfig& config_;
  const Compute& compute_;
  const KvLayout kv_;
  const uint32_t span_;
  const std::optional<LocalIndex> index_;  // of LSA models
  const Rope rope_;
  const float sigma_;               // of the scores
  const float q_scale_, kv_scale_;  // of the LoRA latents
  Probe* probe_ = nullptr;
};

}  // namespace model
