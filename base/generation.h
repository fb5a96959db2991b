// What a client may ask of one generation. Plain data without behaviour; it stands in base because
// the API that reads it, the wire that carries it and the sampler that obeys it may not know each
// other.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace base {

// What the text of an answer must keep to (grammar/README.md), as the client wrote it.
enum class GrammarKind : uint8_t {
  kNone = 0,
  kJsonObject = 1,  // any JSON object; no text
  kJsonSchema = 2,  // text: the schema
  kRegex = 3,       // text: the pattern, of the whole answer
  kChoice = 4,      // text: a JSON array of strings, one of which is the answer
  kEbnf = 5         // text: the grammar
};
struct GrammarText {
  GrammarKind kind = GrammarKind::kNone;
  std::string text;
  auto operator<=>(const GrammarText&) const = default;
};

struct Sampling {
  float temperature = 1.0f;         // 0 = greedy
  float top_p = 1.0f;               // (0, 1]
  uint32_t top_k = 0;               // 0 = all
  float min_p = 0.0f;               // [0, 1)
  float frequency_penalty = 0.0f;   // [-2, 2], over emitted tokens
  float presence_penalty = 0.0f;    // [-2, 2], over emitted tokens
  float repetition_penalty = 1.0f;  // > 0, over prompt and emitted tokens
  uint64_t seed = 0;        // always set at admission, drawn there when the client gave none
  uint32_t choice = 0;      // which of n
  uint32_t max_tokens = 0;  // emitted tokens, set at admission
  uint32_t min_tokens = 0;  // no EOS or stop token before
  bool ignore_eos = false;
  int32_t top_logprobs = -1;  // -1 none; 0..20: that many alternatives beside the chosen token
  std::vector<TokenId> stop_tokens;                   // beside the model's EOS ids
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to logits
  GrammarText grammar;
};

// Log-probabilities of one emitted token, after temperature 1 softmax of the raw logits (OpenAI's
// meaning).
struct TokenLogprobs {
  float logprob = 0.0f;
  std::vector<std::pair<TokenId, float>> top;  // descending
};

enum class FinishReason : uint8_t { kNone = 0, kStop = 1, kLength = 2, kError = 3 };

}  // namespace base
