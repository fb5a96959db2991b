#include "model/local_engine.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/quantise.h"
#include "model/tensor_list.h"

namespace model {

void WeightReader::read_values(const std::string& name, uint32_t row_begin, uint32_t rows,
                               WeightFormat format, float* out) const {
  const base::Status read = read_rows(checkpoint_, name, row_begin, rows, out);
  CHECK(read.has_value(), "{}: {}", name, read.error().what);
  if (format != WeightFormat::kBf16) return;
  const size_t n = rows * columns_of(*checkpoint_.find(name));
  for (size_t i = 0; i < n; ++i) out[i] = from_bf16(to_bf16(out[i]));
}

PackedMatrix WeightReader::matrix_rows(const std::string& name, uint32_t row_begin,
                                       uint32_t outputs, uint32_t inputs) const {
  const MatrixFormat kind = loaded_format(checkpoint_, name, choice_);
  PackedMatrix packed(outputs, inputs, kind.format, kind.group);
  std::vector<float> rows(static_cast<size_t>(kPanel) * inputs);  // values, or scales
  std::vector<int8_t> codes(is_integer(kind.format) ? rows.size() : 0);
  for (uint32_t at = 0; at < outputs; at += kPanel) {
    const uint32_t count = std::min(kPanel, outputs - at);
    if (is_integer(kind.format)) {
      const base::Status read =
          load_codes(checkpoint_, name, kind, row_begin + at, count, codes.data(), rows.data());
      CHECK(read.has_value(), "{}: {}", name, read.error().what);
      packed.set_codes(at, count, codes.data(), rows.data());
    } else {
      read_values(name, row_begin + at, count, kind.format, rows.data());
      packed.set_rows(at, count, rows.data());
    }
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
  const MatrixFormat kind = loaded_format(checkpoint_, name, choice_);
  CHECK(!is_integer(kind.format), "{} has integer columns", name);
  std::vector<float> w(static_cast<size_t>(rows) * columns);
  read_values(name, row_begin, rows, kind.format, w.data());
  PackedMatrix packed(columns, rows, kind.format);
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
      layers_(range_.count()) {
  const WeightReader read(checkpoint, choice_);
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
  const WeightReader read(checkpoint_, choice_);
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

void LocalEngine::attend(uint32_t layer, uint32_t j, Pass& pass) {
  const LayerWeights& w = weights(layer);
  const bool indexes = config_.indexer && j == 0;  // attention 1 takes the same positions
  attention_.run({w.attention[j], indexes ? &w.indexer : nullptr, layer, j}, pass,
                 scratch(pass).attention);
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
    const std::string prefix = fmt::format("model.layers.{}.mlp.experts.{}.", layer, id);
    for (const char* part : {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}) {
      const base::Status sound = digests_.check(checkpoint_, prefix + part);
      if (!sound) integrity_.break_down(sound.error().what);
    }
    const WeightReader read(checkpoint_, choice_);
    slot.weights = read.mlp(prefix, config_.hidden, config_.expert_ffn);
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

void LocalEngine::final_norm(const Pass& pass, std::span<const uint32_t> rows,
                             std::vector<float>& out) {
  const size_t hidden = config_.hidden;
  out.resize(rows.size() * hidden);
  for (size_t i = 0; i < rows.size(); ++i)
    std::copy_n(pass.h.data() + rows[i] * hidden, hidden, out.data() + i * hidden);
  rms_norm_rows({.rows = static_cast<uint32_t>(rows.size()),
                 .n = config_.hidden,
                 .x_stride = hidden,
                 .y_stride = hidden,
                 .eps = static_cast<float>(config_.rms_eps),
                 .scale = 1},
                out.data(), final_norm_.data(), out.data());
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
  Shape shape = TRY(shape_of(checkpoint, options));
  const base::Hash128 ours = arithmetic_digest(local_ops(), Rope(checkpoint.config()));
  if (ours != shape.arithmetic_digest) {
    return base::fail(
        base::Code::kMismatch,
        "the kernels for {} do not give the reference's bits on this machine ({} instead of {})",
        kernel_target(), ours.hex(), shape.arithmetic_digest.hex());
  }
  TensorDigests digests = TRY(TensorDigests::load(checkpoint.folder()));
  TRY(digests.check_loaded(checkpoint, options));
  return std::unique_ptr<Engine>(
      std::make_unique<LocalEngine>(checkpoint, options, std::move(shape), std::move(digests)));
}

}  // namespace model
