// The MTP block of the reference engine (docs/NUMERICS.md, "Drafting").
#pragma once
#include <string>
#include <vector>

#include "model/reference_attention.h"
#include "model/reference_ops.h"

namespace model {

class ReferenceDraft {
 public:
  static base::Result<ReferenceDraft> load(const Checkpoint& checkpoint, WeightChoice choice);
  // Engine::draft().
  void run(const AttentionContext& context, Pass& pass, DraftIndex index) const;

 private:
  std::vector<float> embed(const ModelConfig& config, TokenId token) const;

  const Checkpoint* checkpoint_ = nullptr;
  std::string table_;  // of the block's own word embedding
  std::vector<float> embedding_norm_, hidden_norm_, post_norm_, norm_;
  Matrix join_;                                // eh_proj
  std::vector<ReferenceAttention> attention_;  // one
  Mlp mlp_;
};

}  // namespace model
