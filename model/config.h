// ModelConfig: what config.json says of a LongCat model, under one set of names for all variants
// (LongCat-Flash, Flash-Thinking, Flash-Lite, Flash-Lite-Sparse, LongCat-2.0). Shapes come from
// here and nowhere else.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace model {

struct YarnConfig {  // rope_scaling of type yarn or deepseek_yarn: the same formula
  double factor = 1, beta_fast = 32, beta_slow = 1, mscale = 1, mscale_all_dim = 1;
  uint32_t original_max_position = 0;
};

struct NgramConfig {    // ngram_* / emb_* / oe_* fields
  double ratio = 0;     // table rows m = trunc(ratio · vocab)
  uint32_t order = 0;   // N, "neighbor num": look back N-1 tokens
  uint32_t splits = 0;  // k tables per order
  bool oe_names =
      false;  // tensors are model.oe_embed_* (2.0) rather than model.ngram_embeddings.* (Lite)
  uint32_t tables() const { return (order - 1) * splits; }
};

struct IndexerConfig {  // LongCat Sparse Attention; present iff index_topk is
  uint32_t heads = 0, head_dim = 0, topk = 0, init_tokens = 0, local_tokens = 0;
  uint32_t cli_factor = 2;
  bool rope_interleave = true;
  double k_norm_eps = 1e-6;
};

enum class Variant : uint8_t { kFlash, kFlashNgram, kLongcat };  // architectures[0]

struct ModelConfig {
  Variant variant = Variant::kFlash;
  uint32_t vocab = 0, hidden = 0, ffn = 0, expert_ffn = 0;
  uint32_t layers = 0;  // logical ScMoE layers (num_layers, or num_hidden_layers / 2)
  uint32_t heads = 0, q_lora = 0, kv_lora = 0, nope = 0, rope = 0, v_dim = 0;
  bool scale_q_lora = false, scale_kv_lora = false;
  uint32_t experts = 0, zero_experts = 0, topk = 0;
  bool norm_topk_prob = false, router_bias = false;
  double routed_scaling = 1;
  double rms_eps = 1e-5;
  double lora_norm_eps = 1e-6;  // q_a / kv_a layernorm: class default of the first-party code
  double rope_theta = 0;
  uint32_t max_position = 0;
  uint32_t bos = 1;
  std::vector<uint32_t> eos;  // eos_token_id may be a list; the first is the n-gram separator
  std::optional<YarnConfig> yarn;
  std::optional<NgramConfig> ngram;
  std::optional<IndexerConfig> indexer;
  uint32_t mtp_layers = 0;  // draft steps the checkpoint supports; 0 none
  bool fp8_blocks = false;  // quantization_config: e4m3 with weight_scale_inv
  uint32_t fp8_block = 128;
  uint32_t int4_group = 0;  // quantization_config: U8 codes, a scale for this many inputs; 0 none

  // Values of one token in one attention's cache: latent and rope key.
  uint32_t latent() const { return kv_lora + rope; }
  // Rows of the n-gram table i, and its modulus.
  uint64_t ngram_rows(uint32_t i) const;
  uint32_t ngram_dim() const { return hidden / ngram->tables(); }
  // Softmax scale including YaRN's mscale².
  double softmax_scale() const;

  // kCorrupt or kUnsupported with the file and the field.
  static base::Result<ModelConfig> load(const std::string& folder);
  static base::Result<ModelConfig> parse(const std::string& json, const std::string& file);
};

// Elements and tensors that a checkpoint of this config has, MTP included when `mtp` (model.md 2.5:
// 88,780 tensors and 1,775,560,491,136 elements for LongCat-2.0 with its unused mtp.oe copies).
struct CheckpointSize {
  uint64_t tensors = 0, elements = 0;
};
CheckpointSize expected_size(const ModelConfig& config, bool mtp, bool mtp_ngram_copies);

}  // namespace model
