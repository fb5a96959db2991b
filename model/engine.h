// Engine: the arithmetic of a model, in the pieces between which rows may leave for another rank.
// Three engines stand behind it:
//   reference   plain scalar code that reads like the equations (docs/NUMERICS.md), the judge of
//   the others local       the kernels oracle      a hash chain in place of arithmetic, for
//   simulation: a lost or stale row becomes a wrong token
// All row-wise: what a row becomes depends on that row, its sequence's KV and the weights, never on
// the other rows of the pass.
//
// Thread safety: an engine is constant after construction except for lazy packing of expert
// weights, which is guarded; different passes may run on different threads. A Pass belongs to one
// thread at a time.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fault_point.h"
#include "base/generation.h"
#include "base/hash.h"
#include "base/result.h"
#include "model/kv_pool.h"
#include "model/prefill_cost.h"

namespace base {
struct ClusterConfig;
}

namespace model {

class Integrity;
class NgramTables;
class ShardedAttention;

using base::TokenId;

// What roles need to know of a model.
struct Shape {
  uint32_t layers = 0;
  uint32_t hidden = 0;  // f32 values of a hidden row
  uint32_t vocab = 0;
  uint32_t experts = 0;  // routed, that own weights; ids of identity experts are ≥ this
  uint32_t topk = 0;
  uint32_t kv_row_bytes = 0;  // of one token in one layer
  // Of these the part of attention j begins at j · kv_latent_bytes; after both comes the index key.
  uint32_t kv_latent_bytes = 0;
  uint32_t span = 0;           // positions of an attention span: what a sequence may be cut by
  uint32_t ngram_context = 0;  // earlier token ids the embedding looks back on
  uint32_t max_context = 0;
  uint32_t mtp_steps = 0;  // draft steps the loaded engine offers; its KV is layer `layers`
  std::vector<TokenId> eos;
  PrefillCost cost;
  // KV entries of a block on a node that has every layer: the drafting block's is the last.
  uint32_t kv_layers() const { return layers + (mtp_steps > 0 ? 1 : 0); }
  // The layers whose KV a node keeps that computes `of`: with the last one comes the drafting
  // block's.
  LayerRange kv_range(LayerRange of) const {
    return {of.begin, of.end == layers ? kv_layers() : of.end};
  }
  bool keeps_drafts(LayerRange of) const { return mtp_steps > 0 && of.end == layers; }
  base::Hash128 model_digest;       // same model
  base::Hash128 layout_digest;      // same KV rows: dtype, layout, span and segment sizes
  base::Hash128 arithmetic_digest;  // same result bits of the fixed probe
};

// Consecutive rows of one sequence inside a pass.
struct Segment {
  uint32_t row = 0;  // first row in the pass
  uint32_t count = 0;
  uint32_t position = 0;  // of the first row in its sequence
  KvView kv;  // holds valid rows for positions < position; blocks reach position + count
  std::span<const TokenId>
      context;  // the ≤ ngram_context ids before `position`, oldest first; fewer only at the start
  // What other ranks hold: all positions before kv.begin(), in order (kv_split.h). Empty: nothing,
  // or the segment attends only what is here (the drafting block of a sequence in shards).
  std::span<const KvRange> away = {};
};

// One trip of some rows through some layers, with all scratch memory. Reused between trips: begin()
// keeps capacity.
struct Pass {
  std::vector<TokenId> tokens;    // [rows]
  std::vector<Segment> segments;  // cover the rows in order
  std::vector<float> h;           // [rows, hidden], the residual stream
  // Rows of the n-gram tables that were looked up elsewhere: [tables, rows, dim]. embed() uses and
  // clears them; empty: it looks them up itself.
  std::vector<float> ngram;
  // Set by route(), read by dispatch and combine:
  std::vector<float> x;              // [rows, hidden], the normalised input of the MoE and of MLP 0
  std::vector<uint32_t> expert_ids;  // [rows, topk], ascending in each row
  std::vector<float> expert_weights;  // [rows, topk], already scaled
  // Set by who dispatched; combine() reads it: output of pair (row, k) for expert_ids < experts.
  std::vector<float> expert_out;  // [rows, topk, hidden]
  // Set by forward(): 0, or 1 + the layer in which the row ceased to be finite. Such a row is lost
  // to its request; it never touches another.
  std::vector<uint32_t> faulty;  // [rows]
  // Engine-private scratch and what an attention hands to the next (the LSA index set).
  struct Scratch {
    virtual ~Scratch() = default;
  };
  std::unique_ptr<Scratch> scratch;

  uint32_t rows() const { return static_cast<uint32_t>(tokens.size()); }
};

// What verification reads of a pass when it asks for it.
struct Probe {
  virtual ~Probe() = default;
  virtual void ngram_ids(std::span<const uint64_t> ids /* [tables, rows] */) { (void)ids; }
  virtual void index_scores(uint32_t layer, uint32_t row,
                            std::span<const float> scores /* [position + 1] */) {
    (void)layer, (void)row, (void)scores;
  }
  virtual void selected(uint32_t layer, uint32_t row,
                        std::span<const uint32_t> positions /* ascending */) {
    (void)layer, (void)row, (void)positions;
  }
};

// Which positions a draft step attends, for LSA models (model.mtp's own indexer). A reusing pass
// has one row a segment; its segment i continues segment i of the last kFresh draft() on the same
// Pass (it may have fewer segments) and takes the set of that segment's last row.
enum class DraftIndex : uint8_t {
  kFresh,        // the indexer runs: step 1 of a round, and catching up
  kReuseAppend,  // the set of step 1 and every position after that step's
  kReuseExact    // that set alone
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const Shape& shape() const = 0;

  // h ← embedding of tokens (word and n-gram).  Sizes h.
  virtual void embed(Pass& pass) = 0;
  // h += Attention_j(RMS(h; input_layernorm.j)), j ∈ {0, 1}. Writes the KV rows of the pass's
  // positions first, rounded to the KV dtype.
  virtual void attend(uint32_t layer, uint32_t j, Pass& pass) = 0;
  // The two halves of attend(), for a pass that has only some rows of its sequence's chunk: the
  // first writes the KV rows of the pass; the second attends, and by then the rows of all positions
  // before each segment's end are there, from wherever they came.
  virtual void begin_attend(uint32_t layer, uint32_t j, Pass& pass);
  virtual void end_attend(uint32_t layer, uint32_t j, Pass& pass);
  // Takes the place of end_attend() where a segment has KV away (sharded_attention.h). Null: such
  // segments are not offered.
  virtual ShardedAttention* sharded() { return nullptr; }
  // x ← RMS(h; post_attention_layernorm.0); expert ids and weights of every row. Sizes expert_out.
  virtual void route(uint32_t layer, Pass& pass) = 0;
  // j = 0: h += MLP_0(x).   j = 1: h += MLP_1(RMS(h; post_attention_layernorm.1)).
  virtual void mlp(uint32_t layer, uint32_t j, Pass& pass) = 0;
  // out[i] = Expert_{experts[i]}(x[rows[i]]), unweighted.  x: [n, hidden], out: [pairs, hidden].
  // ids < shape().experts
  virtual void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
                       std::span<const uint16_t> experts, std::span<float> out) = 0;
  // expert_out of every pair of the pass with an expert id < shape().experts, as route() left them.
  virtual void routed_experts(uint32_t layer, Pass& pass);
  // h += Σ_k weight_k · out_k in ascending expert id, then the identity term (Σ identity weights) ·
  // x.
  virtual void combine(uint32_t layer, Pass& pass) = 0;
  // logits[i] = lm_head · RMS(h[rows[i]]; norm).  logits: [rows.size(), vocab]; final_hidden, if
  // given: [rows.size(), hidden]
  virtual void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
                    std::vector<float>* final_hidden = nullptr) = 0;
  // out ← RMS(h[rows[i]]; norm), head()'s final_hidden without the logits.  out: [rows.size(),
  // hidden]
  virtual void final_norm(const Pass& pass, std::span<const uint32_t> rows,
                          std::vector<float>& out);
  // Starts reading from disk what embed() of such a pass will need; returns at once.
  virtual void prefetch(const Pass& pass) { (void)pass; }

  // Null when the engine does not embed or its model has no n-gram tables. For who reads rows for
  // others, or sets Pass::ngram.
  virtual const NgramTables* ngram_tables() const { return nullptr; }

  // The MTP block, one row for each row of the pass. In: pass.tokens[r] is the token after the
  // row's position, pass.h the target's final hidden row at that position (what feeds lm_head), or
  // the former draft's. Out: pass.h is the hidden row that drafts the token after that. Writes the
  // KV rows of the pass's positions in layer shape().layers.  REQUIRES: shape().mtp_steps > 0
  virtual void draft(Pass& pass, DraftIndex index) { (void)pass, (void)index; }
  // Only what draft() writes: afterwards the KV rows of the pass's positions in layer
  // shape().layers are those of draft(); pass.h is scratch, not finite where a row is not. A row is
  // made of its token and hidden row alone, so prefill needs no more, and ranks may share a
  // sequence. The default runs draft(), for engines that have every row before.
  virtual void begin_draft(Pass& pass) { draft(pass, DraftIndex::kFresh); }
  // logits[i] = lm_head · pass.h[rows[i]]: pass.h as draft() left it.
  virtual void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                          std::span<float> logits) {
    (void)pass, (void)rows, (void)logits;
  }

  // Null when the engine does not verify its products. Whoever hands results of a pass on (tokens,
  // KV, rows) asks first whether the engine is broken: then the pass is void.
  virtual const Integrity* integrity() const { return nullptr; }
  // Bytes of the weights in memory that scrub() watches.
  virtual uint64_t weight_bytes() const { return 0; }
  // Compares the next of them, about `bytes` and at least one matrix, with their digests of when
  // they were packed; the engine is broken when they differ. May run beside a pass, not beside
  // itself.
  virtual void scrub(uint64_t bytes) { (void)bytes; }
  // Fault injection, for tests of all that follows. Not during a pass.
  virtual void inject(base::FaultPoint fault) { (void)fault; }
  virtual void set_probe(Probe* probe) { (void)probe; }
  // Makes the experts' weights resident ahead of use (packing); otherwise it happens on first use.
  virtual void prepare_experts(LayerRange layers, std::span<const uint16_t> experts) {
    (void)layers, (void)experts;
  }
  // Lets go the weights of the layer's other experts that no thread is using just now; they are
  // packed again on their next use. May run beside a pass.
  virtual void keep_experts(uint32_t layer, std::span<const uint16_t> experts) {
    (void)layer, (void)experts;
  }
  // Experts whose weights are resident, of all layers.
  virtual uint64_t resident_experts() const { return 0; }
};

// The pairs (row, expert id < shape().experts) of a pass, by row.
struct RoutedPairs {
  std::vector<uint16_t> rows, experts;
  std::vector<uint32_t> slots;  // in pass.expert_out
  void take(const Pass& pass, const Shape& shape);
};

// NaN or infinity in logits: never sampled. True if all are finite.
bool all_finite(std::span<const float> values);

enum class KvType : uint8_t {
  kBf16,
  kF32,
  kInt8  // the latent: codes with a scale a row and attention; rope and index keys stay bf16
};

// What weights become when they are loaded. Router, norms, embeddings, the indexer and kv_b stay as
// stored (widened) whatever is asked for.
enum class WeightChoice : uint8_t {
  kAsStored,  // int8 and int4 as integers, fp8 and f16 widened to f32
  kF32,       // everything widened: the exact reading of a quantised checkpoint
  kBf16,
  kInt8,
  kInt4  // experts and dense MLPs; projections of attention and lm_head become int8
};
enum class NumericsMode : uint8_t {
  kInvariant,  // docs/NUMERICS.md
  kFast        // products of many rows by float weights through OpenBLAS: not row-invariant
};

// Hierarchical indexing (LSA): for queries at positions ≥ `from`, only tokens of the `keep` blocks
// of 64 tokens with the highest coarse score, and of the blocks that hold forced positions, are
// scored one by one. Equal to the flat choice whenever no block is left out.
struct HierarchicalIndex {
  bool on = false;
  uint32_t keep = 128;
  uint32_t from = 32768;
};

class Checkpoint;
struct EngineOptions {
  LayerRange layers;      // to load; {0, 0}: all
  bool embedding = true;  // the node embeds (first stage)
  bool head = true;       // the node has the last layer
  KvType kv = KvType::kBf16;
  uint32_t span = 4096;  // attention span of the arithmetic (NUMERICS.md); smaller in tests
  WeightChoice weights = WeightChoice::kAsStored;
  NumericsMode mode = NumericsMode::kInvariant;
  HierarchicalIndex hierarchical;
  uint32_t threads = 1;                  // compute threads; never changes a result
  bool verify_products = true;           // row checksums (integrity.h)
  bool mtp = false;                      // load the drafting block
  std::function<void(double)> progress;  // 0..1 during construction
};
// What the cluster file says of engines.
EngineOptions engine_options(const base::ClusterConfig& config);
// The shape and digests without the weights: for a node that compares and routes but does not
// compute, and for the engines themselves. The arithmetic digest is that of the reference; an
// engine checks its own kernels against it at construction.
base::Result<Shape> shape_of(const Checkpoint& checkpoint, const EngineOptions& options);
// The checkpoint must outlive the engine: tables stay in its map.
base::Result<std::unique_ptr<Engine>> make_reference_engine(const Checkpoint& checkpoint,
                                                            const EngineOptions& options);
base::Result<std::unique_ptr<Engine>> make_local_engine(const Checkpoint& checkpoint,
                                                        const EngineOptions& options);
// The oracle needs no checkpoint: `seed` is its model.
struct OracleOptions {
  uint32_t layers = 4, experts = 8, topk = 3, vocab = 512, max_context = 4096;
  uint64_t seed = 1;
  // Draft steps that it offers. Above 0 it is another model: three greedy tokens in four follow
  // from the token before, and so do its drafts as often as their own KV is right.
  uint32_t mtp_steps = 0;
  // So many of a hundred choices fall on one expert of eight, others in each layer; 0: even.
  uint32_t skew_percent = 0;
  uint32_t span = 64;
};
std::unique_ptr<Engine> make_oracle_engine(const OracleOptions& options);

}  // namespace model
