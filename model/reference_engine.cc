// The reference engine: docs/NUMERICS.md in scalar code, one row at a time. It judges the others;
// it is not meant to be fast.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/reference_attention.h"
#include "model/reference_draft.h"
#include "model/tensor_list.h"

namespace model {
namespace {

struct Layer {
  std::vector<ReferenceAttention> attention;  // [2]
  std::vector<float> post_norm[2];
  Mlp mlp[2];
  Matrix router;
  std::vector<float> router_bias;      // of the logits; empty in every published model
  std::vector<float> correction_bias;  // moves the choice, not the weights
  std::vector<Mlp> experts;
};

base::Result<Layer> load_layer(const Checkpoint& checkpoint, WeightChoice choice, uint32_t index) {
  const ModelConfig& c = checkpoint.config();
  const std::string at = fmt::format("model.layers.{}", index);
  Layer layer;
  for (uint32_t j = 0; j < 2; ++j) {
    layer.attention.push_back(
        TRY(ReferenceAttention::load(checkpoint, choice, AttentionPlace::of_trunk(index, j))));
    layer.post_norm[j] =
        TRY(load_vector(checkpoint, fmt::format("{}.post_attention_layernorm.{}.weight", at, j)));
    layer.mlp[j] = TRY(Mlp::load(checkpoint, choice, fmt::format("{}.mlps.{}", at, j)));
  }
  layer.router = TRY(Matrix::load(checkpoint, choice, at + ".mlp.router.classifier.weight"));
  layer.correction_bias = TRY(load_vector(checkpoint, at + ".mlp.router.e_score_correction_bias"));
  if (c.router_bias)
    layer.router_bias = TRY(load_vector(checkpoint, at + ".mlp.router.classifier.bias"));
  for (uint32_t e = 0; e < c.experts; ++e)
    layer.experts.push_back(
        TRY(Mlp::load(checkpoint, choice, fmt::format("{}.mlp.experts.{}", at, e))));
  return layer;
}

class ReferenceEngine final : public Engine, private ShardedAttention {
 public:
  ReferenceEngine(const Checkpoint& checkpoint, const EngineOptions& options)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        attention_{config_, KvLayout(config_, options.kv), Rope(config_), options.span,
                   options.hierarchical} {}

  base::Status load(const EngineOptions& options) {
    shape_ = TRY(shape_of(checkpoint_, options));
    layers_ = options.layers.count() == 0 ? LayerRange{0, config_.layers} : options.layers;
    if (layers_.end > config_.layers)
      return base::fail(base::Code::kInvalidArgument, "layer {} of a model of {}", layers_.end,
                        config_.layers);
    for (uint32_t i = layers_.begin; i < layers_.end; ++i) {
      weights_.push_back(TRY(load_layer(checkpoint_, options.weights, i)));
      if (options.progress) options.progress((i + 1.0 - layers_.begin) / layers_.count());
    }
    if (options.embedding && config_.ngram) {
      for (uint32_t i = 0; i < config_.ngram->tables(); ++i)
        projections_.push_back(TRY(Matrix::load(
            checkpoint_, options.weights, ngram_projection_name(config_.ngram->oe_names, i))));
    }
    if (options.head) {
      final_norm_ = TRY(load_vector(checkpoint_, "model.norm.weight"));
      lm_head_ = TRY(Matrix::load(checkpoint_, options.weights, "lm_head.weight"));
    }
    if (shape_.mtp_steps > 0) draft_ = TRY(ReferenceDraft::load(checkpoint_, options.weights));
    return {};
  }

  const Shape& shape() const override { return shape_; }
  void set_probe(Probe* probe) override { attention_.probe = probe; }

  void embed(Pass& pass) override {
    pass.h.resize(size_t{pass.rows()} * config_.hidden);
    const size_t tables = config_.ngram ? config_.ngram->tables() : 0;
    std::vector<uint64_t> all_ids(tables * pass.rows());  // [tables, rows]
    for (const Segment& segment : pass.segments) {
      if (tables == 0) break;
      std::vector<TokenId> ids(segment.context.begin(), segment.context.end());
      const TokenId* tokens = pass.tokens.data() + segment.row;
      ids.insert(ids.end(), tokens, tokens + segment.count);
      for (uint32_t i = 0; i < segment.count; ++i) {
        const size_t before = segment.context.size() + i;
        std::vector<uint64_t> rows(tables);
        ngram_ids(config_, std::span(ids).first(before), tokens[i], rows.data());
        for (size_t t = 0; t < tables; ++t) all_ids[t * pass.rows() + segment.row + i] = rows[t];
      }
    }
    if (tables > 0 && attention_.probe != nullptr) attention_.probe->ngram_ids(all_ids);
    if (pass.ngram.empty()) pass.ngram = look_up(all_ids, pass.rows());
    for (uint32_t r = 0; r < pass.rows(); ++r) embed_row(pass, r);
    pass.ngram.clear();
  }

  void attend(uint32_t layer, uint32_t j, Pass& pass) override {
    at(layer).attention[j].run(attention_, pass);
  }

  void begin_attend(uint32_t layer, uint32_t j, Pass& pass) override {
    at(layer).attention[j].begin(attention_, pass);
  }

  void end_attend(uint32_t layer, uint32_t j, Pass& pass) override {
    at(layer).attention[j].end(attention_, pass);
  }

  ShardedAttention* sharded() override {
    if (attention_.hierarchical.on) return nullptr;
    return this;
  }
  bool chooses(uint32_t layer, uint32_t j, const Pass& pass) const override {
    return at(layer).attention[j].shards_choose(attention_, pass);
  }
  base::Bytes question(const ShardPoint& point, const Pass& pass,
                       const ShardRef& ref) const override {
    return of(point).question(attention_, pass, ref, point.step);
  }
  void own(const ShardPoint& point, Pass& pass) override {
    of(point).own(attention_, pass, point.step);
  }
  bool take(const ShardPoint& point, Pass& pass, const ShardRef& ref,
            base::ByteView answer) override {
    return of(point).take(attention_, pass, ref, point.step, answer);
  }
  void finish(const ShardPoint& point, Pass& pass) override {
    of(point).finish(attention_, pass, point.step);
  }
  bool answer(const ShardPoint& point, const KvView& kv, KvRange range, base::ByteView question,
              base::Bytes& out) const override {
    return of(point).answer(attention_, kv, range, point.step, question, out);
  }

  void route(uint32_t layer, Pass& pass) override {
    const Layer& weights = at(layer);
    const size_t topk = config_.topk;
    pass.x.resize(pass.h.size());
    pass.expert_ids.resize(pass.rows() * topk);
    pass.expert_weights.resize(pass.rows() * topk);
    pass.expert_out.resize(pass.rows() * topk * config_.hidden);
    for (uint32_t r = 0; r < pass.rows(); ++r) {
      const std::span<float> x = row_of(pass.x, r, config_.hidden);
      rms_norm(row_of(pass.h, r, config_.hidden), weights.post_norm[0].data(),
               static_cast<float>(config_.rms_eps), x.data());
      std::vector<float> logits = weights.router(x);
      if (config_.router_bias) add_to(logits, weights.router_bias);
      select_experts(config_, logits, weights.correction_bias, pass.expert_ids.data() + r * topk,
                     pass.expert_weights.data() + r * topk);
    }
  }

  void mlp(uint32_t layer, uint32_t j, Pass& pass) override {
    const Layer& weights = at(layer);
    for (uint32_t r = 0; r < pass.rows(); ++r) {
      const std::span<float> h = row_of(pass.h, r, config_.hidden);
      if (j == 0)
        add_to(h, weights.mlp[0](row_of(pass.x, r, config_.hidden)));
      else
        add_to(h, weights.mlp[1](normed(h, weights.post_norm[1], config_.rms_eps)));
    }
  }

  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    const size_t hidden = config_.hidden;
    for (size_t i = 0; i < rows.size(); ++i) {
      CHECK(experts[i] < config_.experts, "expert {} owns no weights", experts[i]);
      const std::vector<float> y =
          at(layer).experts[experts[i]](x.subspan(rows[i] * hidden, hidden));
      std::copy(y.begin(), y.end(), out.begin() + static_cast<ptrdiff_t>(i * hidden));
    }
  }

  void combine(uint32_t layer, Pass& pass) override {
    (void)layer;
    const size_t hidden = config_.hidden, topk = config_.topk;
    for (size_t r = 0; r < pass.rows(); ++r) {
      std::vector<float> sum(hidden, 0.0f);
      bool identity = false;
      float identity_weight = 0.0f;
      for (size_t slot = r * topk; slot < (r + 1) * topk; ++slot) {  // ids ascend
        const float weight = pass.expert_weights[slot];
        if (pass.expert_ids[slot] >= config_.experts) {
          identity = true;
          identity_weight += weight;
          continue;
        }
        const float* out = pass.expert_out.data() + slot * hidden;
        for (size_t i = 0; i < hidden; ++i) sum[i] = std::fma(weight, out[i], sum[i]);
      }
      if (identity) {
        const float* x = pass.x.data() + r * hidden;
        for (size_t i = 0; i < hidden; ++i) sum[i] = std::fma(identity_weight, x[i], sum[i]);
      }
      add_to(row_of(pass.h, r, hidden), sum);
    }
  }

  void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    std::vector<float> hidden;
    final_norm(pass, rows, hidden);
    for (size_t i = 0; i < rows.size(); ++i)
      lm_head_.apply(row_of(hidden, i, config_.hidden),
                     logits.subspan(i * config_.vocab, config_.vocab));
    if (final_hidden != nullptr) *final_hidden = std::move(hidden);
  }
  void final_norm(const Pass& pass, std::span<const uint32_t> rows,
                  std::vector<float>& out) override {
    out.resize(rows.size() * config_.hidden);
    for (size_t i = 0; i < rows.size(); ++i)
      rms_norm(std::span(pass.h).subspan(size_t{rows[i]} * config_.hidden, config_.hidden),
               final_norm_.data(), static_cast<float>(config_.rms_eps),
               row_of(out, i, config_.hidden).data());
  }

  void draft(Pass& pass, DraftIndex index) override {
    CHECK(draft_.has_value(), "the drafting block is not loaded");
    draft_->run(attention_, pass, index);
  }
  void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    for (size_t i = 0; i < rows.size(); ++i)
      lm_head_.apply(std::span(pass.h).subspan(size_t{rows[i]} * config_.hidden, config_.hidden),
                     logits.subspan(i * config_.vocab, config_.vocab));
  }

 private:
  const ReferenceAttention& of(const ShardPoint& point) const {
    return at(point.layer).attention[point.j];
  }
  const Layer& at(uint32_t layer) const {
    CHECK(layer >= layers_.begin && layer < layers_.end, "layer {} is not loaded", layer);
    return weights_[layer - layers_.begin];
  }

  // Rows of the n-gram tables, which stay in the map.  ids: [tables, rows]; → [tables, rows, dim]
  std::vector<float> look_up(const std::vector<uint64_t>& ids, uint32_t rows) const {
    if (ids.empty()) return {};
    std::vector<float> entries(ids.size() * config_.ngram_dim());
    for (size_t i = 0; i < ids.size(); ++i)
      read_row(ngram_table_name(config_.ngram->oe_names, static_cast<uint32_t>(i / rows)), ids[i],
               row_of(entries, i, config_.ngram_dim()));
    return entries;
  }
  // e = E[t];  e += P_i T_i[id_i] for i ascending;  e / (1 + tables)
  void embed_row(Pass& pass, uint32_t r) const {
    const std::span<float> e = row_of(pass.h, r, config_.hidden);
    read_row(kWordTable, pass.tokens[r], e);
    if (!config_.ngram) return;
    const size_t tables = config_.ngram->tables();
    CHECK(pass.ngram.size() == tables * pass.rows() * config_.ngram_dim(),
          "{} n-gram values for {} rows", pass.ngram.size(), pass.rows());
    for (size_t t = 0; t < tables; ++t)
      add_to(e, projections_[t](row_of(pass.ngram, t * pass.rows() + r, config_.ngram_dim())));
    const auto divisor = static_cast<float>(1 + tables);
    for (float& value : e) value = value / divisor;
  }
  void read_row(const std::string& table, uint64_t row, std::span<float> out) const {
    const base::Status status = read_rows(checkpoint_, table, row, 1, out.data());
    CHECK(status.has_value(), "row {} of {}: {}", row, table, status.error().what);
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  AttentionContext attention_;
  Shape shape_;
  LayerRange layers_;
  std::vector<Layer> weights_;
  std::vector<Matrix> projections_;  // of the n-gram tables
  std::vector<float> final_norm_;
  Matrix lm_head_;
  std::optional<ReferenceDraft> draft_;
};

}  // namespace

base::Result<std::unique_ptr<Engine>> make_reference_engine(const Checkpoint& checkpoint,
                                                            const EngineOptions& options) {
  auto engine = std::make_unique<ReferenceEngine>(checkpoint, options);
  TRY(engine->load(options));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace model
