// The MTP block of the local engine. Its one attention and one MLP run through the pieces of a
// layer: the block stands behind layer index config.layers, as attention 0 and MLP 1.
#include "base/check.h"
#include "model/local_engine.h"
#include "model/tensor_list.h"

namespace model {

void LocalEngine::load_draft(const WeightReader& read) {
  const ModelConfig& c = config_;
  const std::string at = "model.mtp.layers.0.";
  draft_ = std::make_unique<DraftWeights>();
  DraftWeights& w = *draft_;
  w.word_table = checkpoint_.find(kMtpWordTable) != nullptr ? kMtpWordTable : kWordTable;
  w.embedding_norm = read.vector(at + "enorm.m.weight", c.hidden);
  w.hidden_norm = read.vector(at + "hnorm.m.weight", c.hidden);
  w.join = read.matrix(at + "eh_proj.weight", c.hidden, 2 * c.hidden);
  w.layer.attention[0].input_norm = read.vector(at + "input_layernorm.weight", c.hidden);
  load_attention(read, at + "self_attn.", w.layer.attention[0]);
  if (c.indexer) load_indexer(read, at + "self_attn.indexer.", w.layer.indexer);
  w.layer.post_norm[1] = read.vector(at + "post_attention_layernorm.weight", c.hidden);
  w.layer.mlp[1] = read.mlp(at + "transformer_layer.mlp.", c.hidden, c.ffn);
  w.norm = read.vector("model.mtp.norm.weight", c.hidden);
}

AttentionSite LocalEngine::draft_site() const {
  return {draft_->layer.attention[0], config_.indexer ? &draft_->layer.indexer : nullptr,
          config_.layers, /*j=*/0};
}

// u = eh_proj [RMS(E[t]; enorm) | RMS(h; hnorm)];  u += MLA(RMS(u));  u += MLP(RMS(u));  h = RMS(u)
void LocalEngine::join_draft(Pass& pass) {
  CHECK(draft_ != nullptr, "the drafting block is not loaded");
  const uint32_t rows = pass.rows(), hidden = config_.hidden;
  CHECK(pass.h.size() == size_t{rows} * hidden, "{} values for {} rows", pass.h.size(), rows);
  Scratch& s = scratch(pass);
  s.y.resize(pass.h.size());
  read_words(draft_->word_table, pass, s.y.data());
  std::vector<float> joined(2 * pass.h.size());
  NormRows norm{.rows = rows,
                .n = hidden,
                .x_stride = hidden,
                .y_stride = 2 * hidden,
                .eps = static_cast<float>(config_.rms_eps),
                .scale = 1};
  rms_norm_rows(norm, s.y.data(), draft_->embedding_norm.data(), joined.data());
  rms_norm_rows(norm, pass.h.data(), draft_->hidden_norm.data(), joined.data() + hidden);
  multiply(compute_, {&draft_->join, joined.data(), 2 * hidden, rows, pass.h.data(), hidden});
}

void LocalEngine::begin_draft(Pass& pass) {
  join_draft(pass);
  Scratch& s = scratch(pass);
  attention_.begin(draft_site(), pass, s.attention, Positions::kOwn);
}

void LocalEngine::draft(Pass& pass, DraftIndex index) {
  join_draft(pass);
  Scratch& s = scratch(pass);
  const bool fresh = index == DraftIndex::kFresh;
  const AttentionSite site = draft_site();
  const bool reuses = config_.indexer && !fresh;
  if (reuses) s.attention.chosen = s.draft_sets.reuse(pass, index);
  attention_.run(site, pass, s.attention, reuses ? Positions::kGiven : Positions::kOwn);
  if (config_.indexer && fresh) s.draft_sets.keep(pass, s.attention.chosen);
  mlp(config_.layers, 1, pass);
  norm(pass.h.data(), draft_->norm, pass.rows(), pass.h.data());
}

void LocalEngine::draft_head(const Pass& pass, std::span<const uint32_t> rows,
                             std::span<float> logits) {
  const size_t hidden = config_.hidden;
  std::vector<float> x(rows.size() * hidden);
  for (size_t i = 0; i < rows.size(); ++i)
    std::copy_n(pass.h.data() + rows[i] * hidden, hidden, x.data() + i * hidden);
  multiply(compute_, {&lm_head_, x.data(), hidden, static_cast<uint32_t>(rows.size()),
                      logits.data(), config_.vocab});
}

}  // namespace model
