#include "model/tensor_list.h"

namespace model {
namespace {

struct Lister {
  const ModelConfig& config;
  const SpecVisitor& visit;

  void plain(std::string name, std::vector<uint64_t> shape) const {
    visit({std::move(name), std::move(shape), false, false});
  }
  void matrix(std::string name, uint64_t out, uint64_t in) const {
    visit({std::move(name), {out, in}, /*may_quantise=*/true, false});
  }

  // at: "….self_attn.0" or, in the MTP block, "….self_attn"
  void attention(const std::string& at, bool indexer) const {
    const ModelConfig& c = config;
    const uint64_t heads = c.heads;
    matrix(at + ".q_a_proj.weight", c.q_lora, c.hidden);
    plain(at + ".q_a_layernorm.weight", {c.q_lora});
    matrix(at + ".q_b_proj.weight", heads * (c.nope + c.rope), c.q_lora);
    matrix(at + ".kv_a_proj_with_mqa.weight", c.kv_lora + c.rope, c.hidden);
    plain(at + ".kv_a_layernorm.weight", {c.kv_lora});
    matrix(at + ".kv_b_proj.weight", heads * (c.nope + c.v_dim), c.kv_lora);
    matrix(at + ".o_proj.weight", c.hidden, heads * c.v_dim);
    if (!indexer) return;
    const IndexerConfig& index = *c.indexer;
    matrix(at + ".indexer.wq_b.weight", uint64_t{index.heads} * index.head_dim, c.q_lora);
    matrix(at + ".indexer.wk.weight", index.head_dim, c.hidden);
    plain(at + ".indexer.k_norm.weight", {index.head_dim});
    plain(at + ".indexer.weights_proj.weight", {index.heads, c.hidden});
  }
  void mlp(const std::string& at, uint64_t width) const {
    matrix(at + ".gate_proj.weight", width, config.hidden);
    matrix(at + ".up_proj.weight", width, config.hidden);
    matrix(at + ".down_proj.weight", config.hidden, width);
  }
  void layer(uint32_t index) const {
    const ModelConfig& c = config;
    const std::string at = "model.layers." + std::to_string(index);
    for (const char* j : {".0", ".1"}) {
      plain(at + ".input_layernorm" + j + ".weight", {c.hidden});
      plain(at + ".post_attention_layernorm" + j + ".weight", {c.hidden});
      attention(at + ".self_attn" + j, c.indexer && j[1] == '0');
      mlp(at + ".mlps" + j, c.ffn);
    }
    const uint64_t choices = uint64_t{c.experts} + c.zero_experts;
    plain(at + ".mlp.router.classifier.weight", {choices, c.hidden});
    plain(at + ".mlp.router.e_score_correction_bias", {choices});
    if (c.router_bias) plain(at + ".mlp.router.classifier.bias", {choices});
    for (uint32_t e = 0; e < c.experts; ++e)
      mlp(at + ".mlp.experts." + std::to_string(e), c.expert_ffn);
  }
  void ngram(const std::string& prefix, bool oe_names) const {
    for (uint32_t i = 0; i < config.ngram->tables(); ++i) {
      visit({prefix + ngram_table_name(oe_names, i).substr(6),
             {config.ngram_rows(i), config.ngram_dim()},
             /*may_quantise=*/true,
             /*may_pad=*/true});
      matrix(prefix + ngram_projection_name(oe_names, i).substr(6), config.hidden,
             config.ngram_dim());
    }
  }
};

}  // namespace

std::string ngram_table_name(bool oe_names, uint32_t i) {
  const std::string number = std::to_string(i);
  return oe_names ? "model.oe_embed_tokens" + number + ".weight"
                  : "model.ngram_embeddings.embedders." + number + ".weight";
}

std::string ngram_projection_name(bool oe_names, uint32_t i) {
  const std::string number = std::to_string(i);
  return oe_names ? "model.oe_embed_proj" + number + ".weight"
                  : "model.ngram_embeddings.post_projs." + number + ".weight";
}

void each_trunk_tensor(const ModelConfig& config, const SpecVisitor& visit) {
  const Lister list{config, visit};
  list.plain(kWordTable, {config.vocab, config.hidden});
  list.matrix("lm_head.weight", config.vocab, config.hidden);
  list.plain("model.norm.weight", {config.hidden});
  if (config.ngram) list.ngram("model.", config.ngram->oe_names);
  for (uint32_t layer = 0; layer < config.layers; ++layer) list.layer(layer);
}

void each_mtp_tensor(const ModelConfig& config, const SpecVisitor& visit) {
  const Lister list{config, visit};
  const std::string at = "model.mtp.layers.0";
  list.plain("model.mtp.embed_tokens.weight", {config.vocab, config.hidden});
  list.plain(at + ".enorm.m.weight", {config.hidden});
  list.plain(at + ".hnorm.m.weight", {config.hidden});
  list.matrix(at + ".eh_proj.weight", config.hidden, 2 * uint64_t{config.hidden});
  list.plain(at + ".input_layernorm.weight", {config.hidden});
  list.plain(at + ".post_attention_layernorm.weight", {config.hidden});
  list.attention(at + ".self_attn", config.indexer.has_value());
  list.mlp(at + ".transformer_layer.mlp", config.ffn);
  list.plain("model.mtp.norm.weight", {config.hidden});
}

void each_mtp_ngram_copy(const ModelConfig& config, const SpecVisitor& visit) {
  if (config.ngram) Lister{config, visit}.ngram(kMtpPrefix, /*oe_names=*/true);
}

CheckpointSize expected_size(const ModelConfig& config, bool mtp, bool mtp_ngram_copies) {
  CheckpointSize size;
  const SpecVisitor add = [&size](const TensorSpec& spec) {
    uint64_t elements = 1;
    for (const uint64_t extent : spec.shape) elements *= extent;
    size.tensors += 1;
    size.elements += elements;
  };
  each_trunk_tensor(config, add);
  if (mtp) each_mtp_tensor(config, add);
  if (mtp_ngram_copies) each_mtp_ngram_copy(config, add);
  return size;
}

}  // namespace model
