#include "model/reference_draft.h"

#include "base/check.h"
#include "model/tensor_list.h"

namespace model {

base::Result<ReferenceDraft> ReferenceDraft::load(const Checkpoint& checkpoint,
                                                  WeightChoice choice) {
  const ModelConfig& c = checkpoint.config();
  const std::string at = "model.mtp.layers.0";
  ReferenceDraft draft;
  draft.checkpoint_ = &checkpoint;
  draft.table_ = checkpoint.find(kMtpWordTable) != nullptr ? kMtpWordTable : kWordTable;
  draft.embedding_norm_ = TRY(load_vector(checkpoint, at + ".enorm.m.weight"));
  draft.hidden_norm_ = TRY(load_vector(checkpoint, at + ".hnorm.m.weight"));
  draft.join_ = TRY(Matrix::load(checkpoint, choice, at + ".eh_proj.weight"));
  AttentionPlace place;
  place.weights = at + ".self_attn";
  place.input_norm = at + ".input_layernorm.weight";
  place.layer = c.layers;
  place.j = 0;
  draft.attention_.push_back(TRY(ReferenceAttention::load(checkpoint, choice, place)));
  draft.post_norm_ = TRY(load_vector(checkpoint, at + ".post_attention_layernorm.weight"));
  draft.mlp_ = TRY(Mlp::load(checkpoint, choice, at + ".transformer_layer.mlp"));
  draft.norm_ = TRY(load_vector(checkpoint, "model.mtp.norm.weight"));
  return draft;
}

std::vector<float> ReferenceDraft::embed(const ModelConfig& config, TokenId token) const {
  std::vector<float> e(config.hidden);
  const base::Status status = read_rows(*checkpoint_, table_, token, 1, e.data());
  CHECK(status.has_value(), "token {}: {}", token, status.error().what);
  return e;
}

// u = eh_proj [RMS(E[t]; enorm) | RMS(h; hnorm)];  u += MLA(RMS(u));  u += MLP(RMS(u));  h = RMS(u)
void ReferenceDraft::run(const AttentionContext& context, Pass& pass, DraftIndex index) const {
  const ModelConfig& c = context.config;
  CHECK(pass.h.size() == size_t{pass.rows()} * c.hidden, "{} values for {} rows", pass.h.size(),
        pass.rows());
  for (uint32_t r = 0; r < pass.rows(); ++r) {
    const std::span<float> h = row_of(pass.h, r, c.hidden);
    std::vector<float> joined = normed(embed(c, pass.tokens[r]), embedding_norm_, c.rms_eps);
    const std::vector<float> hidden = normed(h, hidden_norm_, c.rms_eps);
    joined.insert(joined.end(), hidden.begin(), hidden.end());
    join_.apply(joined, h);
  }
  attention_[0].run_draft(context, pass, index);
  for (uint32_t r = 0; r < pass.rows(); ++r) {
    const std::span<float> h = row_of(pass.h, r, c.hidden);
    add_to(h, mlp_(normed(h, post_norm_, c.rms_eps)));
    rms_norm(h, norm_.data(), static_cast<float>(c.rms_eps), h.data());
  }
}

}  // namespace model
