#include "model/local_engine.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/multiply_fast.h"
#include "model/tensor_list.h"

namespace model {

LocalEngine::LocalEngine(const Checkpoint& checkpoint, const EngineOptions& options, Shape shape,
                         TensorDigests digests)
    : checkpoint_(checkpoint),
      digests_(std::move(digests)),
      choice_(options.weights),
      config_(checkpoint.config()),
      range_(options.layers.count() > 0 ? options.layers
                                        : LayerRange{0, checkpoint.config().layers}),
      shape_(std::move(shape)),
      pool_(options.threads),
      integrity_(options.verify_products),
      compute_{pool_, integrity_, options.mode},
      attention_(config_, options, compute_),
      shards_(options.hierarchical.on && config_.indexer ? nullptr : make_shards()),
      layers_(range_.count()) {
  const WeightReader read(checkpoint, choice_, pool_);
  for (uint32_t layer = range_.begin; layer < range_.end; ++layer) {
    load_layer(layer);
    if (options.progress) options.progress((layer - range_.begin + 1.0) / range_.count());
  }
  if (options.embedding && config_.ngram) {
    ngram_ = std::make_unique<NgramTables>(checkpoint);
    for (uint32_t i = 0; i < config_.ngram->tables(); ++i)
      ngram_projections_.push_back(read.matrix(ngram_projection_name(config_.ngram->oe_names, i),
                                               config_.hidden, config_.ngram_dim()));
  }
  if (shape_.mtp_steps > 0) load_draft(read);
  if (options.head) {
    final_norm_ = read.vector("model.norm.weight", config_.hidden);
    lm_head_ = read.matrix("lm_head.weight", config_.vocab, config_.hidden);
  }
  for (size_t i = 0; i < static_cast<size_t>(range_.count()) * config_.experts; ++i)
    experts_.push_back(std::make_unique<ExpertSlot>());
  list_weights();
}

void LocalEngine::load_attention(const WeightReader& read, const std::string& prefix,
                                 AttentionWeights& out) const {
  const ModelConfig& c = config_;
  out.q_a_norm = read.vector(prefix + "q_a_layernorm.weight", c.q_lora);
  out.kv_a_norm = read.vector(prefix + "kv_a_layernorm.weight", c.kv_lora);
  out.q_a = read.matrix(prefix + "q_a_proj.weight", c.q_lora, c.hidden);
  out.q_b = read.matrix(prefix + "q_b_proj.weight", c.heads * (c.nope + c.rope), c.q_lora);
  out.kv_a = read.matrix(prefix + "kv_a_proj_with_mqa.weight", c.latent(), c.hidden);
  const std::string kv_b = prefix + "kv_b_proj.weight";
  for (uint32_t head = 0; head < c.heads; ++head) {
    const uint32_t row = head * (c.nope + c.v_dim);
    out.absorb_k.push_back(read.transposed_rows(kv_b, row, c.nope, c.kv_lora));
    out.absorb_v.push_back(read.matrix_rows(kv_b, row + c.nope, c.v_dim, c.kv_lora));
  }
  out.o = read.matrix(prefix + "o_proj.weight", c.hidden, c.heads * c.v_dim);
}

void LocalEngine::load_indexer(const WeightReader& read, const std::string& prefix,
                               IndexerWeights& out) const {
  const IndexerConfig& index = *config_.indexer;
  out.wq_b = read.matrix(prefix + "wq_b.weight", index.heads * index.head_dim, config_.q_lora);
  out.wk = read.matrix(prefix + "wk.weight", index.head_dim, config_.hidden);
  out.weights_proj = read.matrix(prefix + "weights_proj.weight", index.heads, config_.hidden);
  out.k_norm = read.vector(prefix + "k_norm.weight", index.head_dim);
}

void LocalEngine::load_layer(uint32_t layer) {
  const ModelConfig& c = config_;
  const WeightReader read(checkpoint_, choice_, pool_);
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  LayerWeights& w = layers_[layer - range_.begin];
  for (uint32_t j = 0; j < 2; ++j) {
    const std::string attention = fmt::format("{}self_attn.{}.", prefix, j);
    w.attention[j].input_norm =
        read.vector(fmt::format("{}input_layernorm.{}.weight", prefix, j), c.hidden);
    load_attention(read, attention, w.attention[j]);
    w.post_norm[j] =
        read.vector(fmt::format("{}post_attention_layernorm.{}.weight", prefix, j), c.hidden);
    w.mlp[j] = read.mlp(fmt::format("{}mlps.{}.", prefix, j), c.hidden, c.ffn);
  }
  if (c.indexer) load_indexer(read, prefix + "self_attn.0.indexer.", w.indexer);
  w.router =
      read.matrix(prefix + "mlp.router.classifier.weight", c.experts + c.zero_experts, c.hidden);
  const uint32_t choices = c.experts + c.zero_experts;
  w.correction_bias = read.vector(prefix + "mlp.router.e_score_correction_bias", choices);
  if (c.router_bias) w.router_bias = read.vector(prefix + "mlp.router.classifier.bias", choices);
}

LocalEngine::Scratch& LocalEngine::scratch(Pass& pass) const {
  if (!pass.scratch) pass.scratch = std::make_unique<Scratch>();
  auto& s = static_cast<Scratch&>(*pass.scratch);
  s.rows = pass.rows();
  return s;
}

AttentionSite LocalEngine::attention_site(uint32_t layer, uint32_t j) const {
  const LayerWeights& w = weights(layer);
  const bool indexes = config_.indexer && j == 0;  // attention 1 takes the same positions
  return {w.attention[j], indexes ? &w.indexer : nullptr, layer, j};
}

void LocalEngine::attend(uint32_t layer, uint32_t j, Pass& pass) {
  attention_.run(attention_site(layer, j), pass, scratch(pass).attention);
}

void LocalEngine::begin_attend(uint32_t layer, uint32_t j, Pass& pass) {
  attention_.begin(attention_site(layer, j), pass, scratch(pass).attention);
}

void LocalEngine::end_attend(uint32_t layer, uint32_t j, Pass& pass) {
  attention_.end(attention_site(layer, j), pass, scratch(pass).attention);
}

void LocalEngine::norm(const float* x, const std::vector<float>& w, uint32_t rows, float* y) const {
  const size_t hidden = config_.hidden;
  for_rows(pool_, rows, [&](uint32_t begin, uint32_t count) {
    rms_norm_rows({.rows = count,
                   .n = config_.hidden,
                   .x_stride = hidden,
                   .y_stride = hidden,
                   .eps = static_cast<float>(config_.rms_eps),
                   .scale = 1},
                  x + begin * hidden, w.data(), y + begin * hidden);
  });
}

void LocalEngine::add_rows(const std::vector<float>& y, std::vector<float>& h) const {
  const size_t hidden = config_.hidden;
  for_rows(pool_, static_cast<uint32_t>(h.size() / hidden), [&](uint32_t begin, uint32_t count) {
    for (size_t i = begin * hidden; i < (begin + count) * hidden; ++i) h[i] = h[i] + y[i];
  });
}

void LocalEngine::route(uint32_t layer, Pass& pass) {
  const ModelConfig& c = config_;
  Scratch& s = scratch(pass);
  const LayerWeights& w = weights(layer);
  const uint32_t choices = c.experts + c.zero_experts;
  pass.x.resize(static_cast<size_t>(s.rows) * c.hidden);
  norm(pass.h.data(), w.post_norm[0], s.rows, pass.x.data());
  s.logits.resize(static_cast<size_t>(s.rows) * choices);
  multiply(compute_, {&w.router, pass.x.data(), c.hidden, s.rows, s.logits.data(), choices});
  pass.expert_ids.resize(static_cast<size_t>(s.rows) * c.topk);
  pass.expert_weights.resize(pass.expert_ids.size());
  pass.expert_out.resize(pass.expert_ids.size() * c.hidden);
  for (uint32_t row = 0; row < s.rows; ++row) {
    const std::span logits =
        std::span(s.logits).subspan(static_cast<size_t>(row) * choices, choices);
    for (size_t i = 0; i < w.router_bias.size(); ++i) logits[i] = logits[i] + w.router_bias[i];
    select_experts(c, logits, w.correction_bias,
                   pass.expert_ids.data() + static_cast<size_t>(row) * c.topk,
                   pass.expert_weights.data() + static_cast<size_t>(row) * c.topk);
  }
}

void LocalEngine::mlp(uint32_t layer, uint32_t j, Pass& pass) {
  Scratch& s = scratch(pass);
  const LayerWeights& w = weights(layer);
  const float* x = pass.x.data();
  if (j == 1) {
    s.x.resize(pass.h.size());
    norm(pass.h.data(), w.post_norm[1], s.rows, s.x.data());
    x = s.x.data();
  }
  const MlpWeights& mlp = w.mlp[j];
  const uint32_t ffn = mlp.gate.outputs();
  s.gate.resize(static_cast<size_t>(s.rows) * ffn);
  s.y.resize(pass.h.size());
  const GatedProduct gated{&mlp.gate, &mlp.up, x, s.rows, s.gate.data()};
  multiply_gated(compute_, {&gated, 1});
  multiply(compute_, {&mlp.down, s.gate.data(), ffn, s.rows, s.y.data(), config_.hidden});
  add_rows(s.y, pass.h);
}

void LocalEngine::final_norm(const Pass& pass, std::span<const uint32_t> rows,
                             std::vector<float>& out) {
  const size_t hidden = config_.hidden;
  out.resize(rows.size() * hidden);
  for (size_t i = 0; i < rows.size(); ++i)
    std::copy_n(pass.h.data() + rows[i] * hidden, hidden, out.data() + i * hidden);
  norm(out.data(), final_norm_, static_cast<uint32_t>(rows.size()), out.data());
}

void LocalEngine::head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
                       std::vector<float>* final_hidden) {
  std::vector<float> normed;
  final_norm(pass, rows, normed);
  multiply(compute_, {&lm_head_, normed.data(), config_.hidden, static_cast<uint32_t>(rows.size()),
                      logits.data(), config_.vocab});
  if (final_hidden != nullptr) *final_hidden = std::move(normed);
}

base::Result<std::unique_ptr<Engine>> make_local_engine(const Checkpoint& checkpoint,
                                                        const EngineOptions& options) {
  if (options.mode == NumericsMode::kFast && !fast_available()) {
    return base::fail(base::Code::kUnsupported,
                      "numerics mode \"fast\" needs OpenBLAS and this build has none; install "
                      "libopenblas-dev and build again, or use mode \"invariant\"");
  }
  Shape shape = TRY(shape_of(checkpoint, options));
  const Rope rope(checkpoint.config());
  const base::Hash128 ours = arithmetic_digest(local_ops(), rope);
  const base::Hash128 rule = arithmetic_digest(reference_ops(), rope);
  if (ours != rule) {
    return base::fail(
        base::Code::kMismatch,
        "the kernels for {} do not give the reference's bits on this machine ({} instead of {})",
        kernel_target(), ours.hex(), rule.hex());
  }
  TensorDigests digests = TRY(TensorDigests::load(checkpoint.folder()));
  TRY(digests.check_loaded(checkpoint, options));
  return std::unique_ptr<Engine>(
      std::make_unique<LocalEngine>(checkpoint, options, std::move(shape), std::move(digests)));
}

}  // namespace model
