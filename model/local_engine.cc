#include "model/local_engine.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/tensor_list.h"

namespace model {

WeightFormat WeightReader::format_of(const std::string& name) const {
  const Tensor* tensor = checkpoint_.find(name);
  CHECK(tensor != nullptr, "{} was promised by Checkpoint::open", name);
  return tensor->dtype == Dtype::kBf16 ? WeightFormat::kBf16 : WeightFormat::kF32;
}

PackedMatrix WeightReader::matrix_rows(const std::string& name, uint32_t row_begin,
                                       uint32_t outputs, uint32_t inputs) const {
  PackedMatrix packed(outputs, inputs, format_of(name));
  std::vector<float> rows(static_cast<size_t>(kPanel) * inputs);
  for (uint32_t at = 0; at < outputs; at += kPanel) {
    const uint32_t count = std::min(kPanel, outputs - at);
    const base::Status read = read_rows(checkpoint_, name, row_begin + at, count, rows.data());
    CHECK(read.has_value(), "{}: {}", name, read.error().what);
    packed.set_rows(at, count, rows.data());
  }
  packed.seal();
  return packed;
}

PackedMatrix WeightReader::matrix(const std::string& name, uint32_t outputs,
                                  uint32_t inputs) const {
  return matrix_rows(name, 0, outputs, inputs);
}

PackedMatrix WeightReader::transposed_rows(const std::string& name, uint32_t row_begin,
                                           uint32_t rows, uint32_t columns) const {
  std::vector<float> w(static_cast<size_t>(rows) * columns);
  const base::Status read = read_rows(checkpoint_, name, row_begin, rows, w.data());
  CHECK(read.has_value(), "{}: {}", name, read.error().what);
  PackedMatrix packed(columns, rows, format_of(name));
  std::vector<float> column(rows);
  for (uint32_t j = 0; j < columns; ++j) {
    for (uint32_t k = 0; k < rows; ++k) column[k] = w[static_cast<size_t>(k) * columns + j];
    packed.set_rows(j, 1, column.data());
  }
  packed.seal();
  return packed;
}

std::vector<float> WeightReader::vector(const std::string& name, uint32_t n) const {
  const Tensor* tensor = checkpoint_.find(name);
  CHECK(tensor != nullptr && tensor->elements() == n, "{} was promised with {} values", name, n);
  std::vector<float> values(n);
  const base::Status read = read_rows(checkpoint_, name, 0, /*rows=*/1, values.data());
  CHECK(read.has_value(), "{}: {}", name, read.error().what);
  return values;
}

MlpWeights WeightReader::mlp(const std::string& prefix, uint32_t hidden, uint32_t ffn) const {
  MlpWeights weights;
  weights.gate = matrix(prefix + "gate_proj.weight", ffn, hidden);
  weights.up = matrix(prefix + "up_proj.weight", ffn, hidden);
  weights.down = matrix(prefix + "down_proj.weight", hidden, ffn);
  return weights;
}

LocalEngine::LocalEngine(const Checkpoint& checkpoint, const EngineOptions& options, Shape shape)
    : checkpoint_(checkpoint),
      config_(checkpoint.config()),
      kv_(options.kv),
      span_(options.span),
      range_(options.layers.count() > 0 ? options.layers
                                        : LayerRange{0, checkpoint.config().layers}),
      shape_(std::move(shape)),
      pool_(options.threads),
      integrity_(options.verify_products),
      compute_{pool_, integrity_, options.mode},
      rope_(checkpoint.config()),
      layers_(range_.count()) {
  const WeightReader read(checkpoint);
  for (uint32_t layer = range_.begin; layer < range_.end; ++layer) {
    load_layer(layer);
    if (options.progress) options.progress((layer - range_.begin + 1.0) / range_.count());
  }
  if (options.embedding && config_.ngram) {
    for (uint32_t i = 0; i < config_.ngram->tables(); ++i) {
      ngram_tables_.push_back(ngram_table_name(config_.ngram->oe_names, i));
      ngram_projections_.push_back(read.matrix(ngram_projection_name(config_.ngram->oe_names, i),
                                               config_.hidden, config_.ngram_dim()));
    }
  }
  if (options.head) {
    final_norm_ = read.vector("model.norm.weight", config_.hidden);
    lm_head_ = read.matrix("lm_head.weight", config_.vocab, config_.hidden);
  }
  for (size_t i = 0; i < static_cast<size_t>(range_.count()) * config_.experts; ++i)
    experts_.push_back(std::make_unique<ExpertSlot>());
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

void LocalEngine::load_layer(uint32_t layer) {
  const ModelConfig& c = config_;
  const WeightReader read(checkpoint_);
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
  if (c.indexer) {
    const std::string indexer = prefix + "self_attn.0.indexer.";
    w.indexer.wq_b =
        read.matrix(indexer + "wq_b.weight", c.indexer->heads * c.indexer->head_dim, c.q_lora);
    w.indexer.wk = read.matrix(indexer + "wk.weight", c.indexer->head_dim, c.hidden);
    w.indexer.weights_proj =
        read.matrix(indexer + "weights_proj.weight", c.indexer->heads, c.hidden);
    w.indexer.k_norm = read.vector(indexer + "k_norm.weight", c.indexer->head_dim);
  }
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

void LocalEngine::embed(Pass& pass) {
  const ModelConfig& c = config_;
  const uint32_t rows = pass.rows();
  pass.h.resize(static_cast<size_t>(rows) * c.hidden);
  const char* word_table = checkpoint_.find(kWordTable) != nullptr ? kWordTable : kWordTableAlias;
  const uint32_t tables = c.ngram ? c.ngram->tables() : 0;
  const uint32_t dim = c.ngram ? c.ngram_dim() : 0;
  std::vector<uint64_t> ids(tables), all_ids(static_cast<size_t>(tables) * rows);
  std::vector<float> entry(dim), projected(c.hidden);
  std::vector<TokenId> before;
  for (const Segment& segment : pass.segments) {
    before.assign(segment.context.begin(), segment.context.end());
    for (uint32_t i = 0; i < segment.count; ++i) {
      const uint32_t row = segment.row + i;
      const TokenId token = pass.tokens[row];
      float* h = pass.h.data() + static_cast<size_t>(row) * c.hidden;
      CHECK(token < c.vocab, "token {} of a vocabulary of {}", token, c.vocab);
      CHECK(read_rows(checkpoint_, word_table, token, 1, h).has_value(), "{} row {}", word_table,
            token);
      if (!c.ngram) continue;
      ngram_ids(c, before, token, ids.data());
      for (uint32_t t = 0; t < tables; ++t) {
        all_ids[static_cast<size_t>(t) * rows + row] = ids[t];
        const std::string& name = ngram_tables_[t];
        CHECK(read_rows(checkpoint_, name, ids[t], 1, entry.data()).has_value(), "{} row {}", name,
              ids[t]);
        multiply(compute_,
                 {&ngram_projections_[t], entry.data(), dim, 1, projected.data(), c.hidden});
        for (uint32_t k = 0; k < c.hidden; ++k) h[k] = h[k] + projected[k];
      }
      for (uint32_t k = 0; k < c.hidden; ++k) h[k] = h[k] / static_cast<float>(1 + tables);
      before.push_back(token);
    }
  }
  if (probe_ != nullptr && c.ngram) probe_->ngram_ids(all_ids);
}

void LocalEngine::run_mlp(const MlpWeights& mlp, const float* x, uint32_t rows, float* y,
                          std::vector<float>& gate, std::vector<float>& up) const {
  const uint32_t ffn = mlp.gate.outputs();
  gate.resize(static_cast<size_t>(rows) * ffn);
  up.resize(gate.size());
  multiply(compute_, {&mlp.gate, x, config_.hidden, rows, gate.data(), ffn});
  multiply(compute_, {&mlp.up, x, config_.hidden, rows, up.data(), ffn});
  silu_multiply(gate, up, gate.data());
  multiply(compute_, {&mlp.down, gate.data(), ffn, rows, y, config_.hidden});
}

void LocalEngine::route(uint32_t layer, Pass& pass) {
  const ModelConfig& c = config_;
  Scratch& s = scratch(pass);
  const LayerWeights& w = weights(layer);
  const uint32_t choices = c.experts + c.zero_experts;
  pass.x.resize(static_cast<size_t>(s.rows) * c.hidden);
  rms_norm_rows({.rows = s.rows,
                 .n = c.hidden,
                 .x_stride = c.hidden,
                 .y_stride = c.hidden,
                 .eps = static_cast<float>(c.rms_eps),
                 .scale = 1},
                pass.h.data(), w.post_norm[0].data(), pass.x.data());
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
    rms_norm_rows({.rows = s.rows,
                   .n = config_.hidden,
                   .x_stride = config_.hidden,
                   .y_stride = config_.hidden,
                   .eps = static_cast<float>(config_.rms_eps),
                   .scale = 1},
                  pass.h.data(), w.post_norm[1].data(), s.x.data());
    x = s.x.data();
  }
  s.y.resize(pass.h.size());
  run_mlp(w.mlp[j], x, s.rows, s.y.data(), s.gate, s.up);
  for (size_t i = 0; i < pass.h.size(); ++i) pass.h[i] = pass.h[i] + s.y[i];
}

const MlpWeights& LocalEngine::expert(uint32_t layer, uint32_t id) {
  ExpertSlot& slot = *experts_[static_cast<size_t>(layer - range_.begin) * config_.experts + id];
  std::call_once(slot.once, [&] {
    const WeightReader read(checkpoint_);
    slot.weights = read.mlp(fmt::format("model.layers.{}.mlp.experts.{}.", layer, id),
                            config_.hidden, config_.expert_ffn);
  });
  return slot.weights;
}

void LocalEngine::prepare_experts(LayerRange layers, std::span<const uint16_t> experts) {
  for (uint32_t layer = std::max(layers.begin, range_.begin);
       layer < std::min(layers.end, range_.end); ++layer)
    for (uint16_t id : experts) expert(layer, id);
}

void LocalEngine::experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
                          std::span<const uint16_t> experts, std::span<float> out) {
  const uint32_t hidden = config_.hidden;
  // Pairs of one expert run together: its weights are read once.
  std::vector<uint32_t> order(experts.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return experts[a] < experts[b]; });
  std::vector<float> in, result, gate, up;
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin;
    const uint16_t id = experts[order[begin]];
    while (end < order.size() && experts[order[end]] == id) ++end;
    const auto count = static_cast<uint32_t>(end - begin);
    in.resize(static_cast<size_t>(count) * hidden);
    result.resize(in.size());
    for (uint32_t i = 0; i < count; ++i)
      std::copy_n(x.data() + static_cast<size_t>(rows[order[begin + i]]) * hidden, hidden,
                  in.data() + static_cast<size_t>(i) * hidden);
    run_mlp(expert(layer, id), in.data(), count, result.data(), gate, up);
    for (uint32_t i = 0; i < count; ++i)
      std::copy_n(result.data() + static_cast<size_t>(i) * hidden, hidden,
                  out.data() + static_cast<size_t>(order[begin + i]) * hidden);
    begin = end;
  }
}

void LocalEngine::combine(uint32_t layer, Pass& pass) {
  (void)layer;
  const ModelConfig& c = config_;
  std::vector<float> sum(c.hidden);
  for (uint32_t row = 0; row < pass.rows(); ++row) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    float identity = 0.0f;
    bool any_identity = false;
    for (uint32_t k = 0; k < c.topk; ++k) {
      const size_t slot = static_cast<size_t>(row) * c.topk + k;
      if (pass.expert_ids[slot] < c.experts) {
        add_scaled(pass.expert_weights[slot],
                   std::span(pass.expert_out).subspan(slot * c.hidden, c.hidden), sum.data());
      } else {
        identity += pass.expert_weights[slot];
        any_identity = true;
      }
    }
    const size_t at = static_cast<size_t>(row) * c.hidden;
    if (any_identity) add_scaled(identity, std::span(pass.x).subspan(at, c.hidden), sum.data());
    for (uint32_t i = 0; i < c.hidden; ++i) pass.h[at + i] = pass.h[at + i] + sum[i];
  }
}

void LocalEngine::head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
                       std::vector<float>* final_hidden) {
  const ModelConfig& c = config_;
  const auto count = static_cast<uint32_t>(rows.size());
  std::vector<float> normed(rows.size() * c.hidden);
  for (uint32_t i = 0; i < count; ++i) {
    rms_norm_rows({.rows = 1,
                   .n = c.hidden,
                   .x_stride = 0,
                   .y_stride = 0,
                   .eps = static_cast<float>(c.rms_eps),
                   .scale = 1},
                  pass.h.data() + static_cast<size_t>(rows[i]) * c.hidden, final_norm_.data(),
                  normed.data() + static_cast<size_t>(i) * c.hidden);
  }
  multiply(compute_, {&lm_head_, normed.data(), c.hidden, count, logits.data(), c.vocab});
  if (final_hidden != nullptr) *final_hidden = std::move(normed);
}

base::Result<std::unique_ptr<Engine>> make_local_engine(const Checkpoint& checkpoint,
                                                        const EngineOptions& options) {
  Shape shape = TRY(shape_of(checkpoint, options.kv, options.span));
  const base::Hash128 ours = arithmetic_digest(local_ops(), Rope(checkpoint.config()));
  if (ours != shape.arithmetic_digest) {
    return base::fail(
        base::Code::kMismatch,
        "the kernels for {} do not give the reference's bits on this machine ({} instead of {})",
        kernel_target(), ours.hex(), shape.arithmetic_digest.hex());
  }
  return std::unique_ptr<Engine>(
      std::make_unique<LocalEngine>(checkpoint, options, std::move(shape)));
}

}  // namespace model
