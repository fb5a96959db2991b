#include "coordinator/admission.h"

#include <algorithm>

#include "model/kv_pool.h"

namespace coordinator {

using base::Code;

uint32_t kv_blocks(uint64_t prompt, uint64_t max_tokens) {
  return static_cast<uint32_t>((prompt + max_tokens + model::kBlockTokens - 1) /
                               model::kBlockTokens);
}

namespace {

base::Status check_ids(const Submission& submission, uint32_t vocab) {
  for (size_t i = 0; i < submission.prompt.size(); ++i) {
    if (submission.prompt[i] < vocab) continue;
    return base::fail(
        Code::kInvalidArgument,
        "token id {} at position {} of the prompt is not below the vocabulary size {}",
        submission.prompt[i], i, vocab);
  }
  for (const auto& [token, bias] : submission.sampling.logit_bias) {
    if (token < vocab) continue;
    return base::fail(Code::kInvalidArgument,
                      "token id {} in logit_bias is not below the vocabulary size {}", token,
                      vocab);
  }
  return {};
}

}  // namespace

base::Status admit(Submission& submission, const AdmissionLimits& limits) {
  const uint64_t prompt = submission.prompt.size();
  if (prompt == 0) return base::fail(Code::kInvalidArgument, "the prompt is empty");
  const uint64_t asked = submission.sampling.max_tokens;
  const uint64_t wanted = prompt + std::max<uint64_t>(asked, 1);
  if (wanted > limits.max_context) {
    return base::fail(Code::kContextLength,
                      "This model's maximum context length is {} tokens. However, you requested {} "
                      "tokens ({} in the messages, {} in the completion). Please reduce the length "
                      "of the messages or completion.",
                      limits.max_context, wanted, prompt, wanted - prompt);
  }
  TRY(check_ids(submission, limits.vocab));
  if (asked != 0) return {};
  uint64_t rest = limits.max_context - prompt;
  if (limits.largest_rank_tokens > prompt) {
    rest = std::min(rest, limits.largest_rank_tokens - prompt);
  }
  submission.sampling.max_tokens = static_cast<uint32_t>(rest);
  return {};
}

}  // namespace coordinator
