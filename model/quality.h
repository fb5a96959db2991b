// What quantising weights or KV did to a model: its logits beside those of the source, over the
// same text.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/engine.h"

namespace model {

struct QualityOptions {
  uint32_t window = 256;      // tokens of a sequence; each starts anew
  uint32_t positions = 4096;  // at most; fewer where their logits would need over 1 GiB
  uint32_t threads = 1;
  KvType kv = KvType::kBf16;
};

// The text to compare on, as tokens. `files`: text through the checkpoint's tokenizer; none: its
// samples.txt, else the input ids of its golden.safetensors. kNotFound: there is no text;
// kInvalidArgument: fewer than two tokens.
base::Result<std::vector<TokenId>> quality_tokens(const Checkpoint& checkpoint,
                                                  const std::vector<std::string>& files);

// Logits of every position of the text on the local engine.  [positions, vocab]
struct TextLogits {
  uint32_t vocab = 0;
  uint32_t window = 0;
  std::vector<float> values;
  uint32_t positions() const { return static_cast<uint32_t>(values.size() / vocab); }
};
base::Result<TextLogits> text_logits(const Checkpoint& checkpoint, WeightChoice weights,
                                     std::span<const TokenId> tokens,
                                     const QualityOptions& options);

struct QualityReport {
  uint32_t positions = 0;
  // KL(source ‖ converted) in nats: its mean, 99th percentile and largest value.
  double mean_kl = 0, p99_kl = 0, largest_kl = 0;
  double top1_agreement = 0;  // share of positions with the same most likely token
  // Nats a token that each gives the text itself (perplexity is its exponential).
  double source_loss = 0, converted_loss = 0;
};
// REQUIRES: both of the same tokens, vocabulary and window
QualityReport compare_quality(const TextLogits& source, const TextLogits& converted,
                              std::span<const TokenId> tokens);

}  // namespace model
