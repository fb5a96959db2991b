// The tensors that a checkpoint must have: names and shapes, as functions of the config alone.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/config.h"

namespace model {

struct TensorSpec {
  std::string name;
  std::vector<uint64_t> shape;
  bool may_quantise = false;  // may be fp8 or int8 with a scale tensor beside it
  bool may_pad = false;       // may have more rows than shape[0]; the tail is ignored
};
using SpecVisitor = std::function<void(const TensorSpec&)>;

// Embeddings, head, norms and all layers.
void each_trunk_tensor(const ModelConfig& config, const SpecVisitor& visit);
// The one MTP block: 17 tensors, 21 with an indexer.
void each_mtp_tensor(const ModelConfig& config, const SpecVisitor& visit);
// LongCat-2.0's second set of n-gram tables, which its MTP does not use
// (mtp_disable_over_tokenizer).
void each_mtp_ngram_copy(const ModelConfig& config, const SpecVisitor& visit);

// "model.oe_embed_tokens3.weight" or "model.ngram_embeddings.embedders.3.weight", and the
// projection beside it.
std::string ngram_table_name(bool oe_names, uint32_t i);
std::string ngram_projection_name(bool oe_names, uint32_t i);

inline constexpr const char* kWordTable = "model.embed_tokens.weight";
inline constexpr const char* kWordTableAlias = "model.ngram_embeddings.word_embeddings.weight";
inline constexpr const char* kMtpWordTable = "model.mtp.embed_tokens.weight";
inline constexpr const char* kMtpPrefix = "model.mtp.";
inline constexpr const char* kMtpNgramPrefix = "model.mtp.oe_";

}  // namespace model
