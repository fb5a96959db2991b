// JSON that goes to clients: OpenAI's response and stream shapes, errors, models, tokens, the
// cluster's status. Text is valid UTF-8 or made so.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/api_types.h"
#include "coordinator/gateway.h"

namespace coordinator {

// What all parts of one answer share.
struct AnswerHead {
  Dialect dialect = Dialect::kChat;
  std::string id;  // "chatcmpl-…", "cmpl-…"
  int64_t created = 0;
  std::string model, fingerprint;
  bool include_usage = false;  // chunks carry "usage": null
};

struct LogprobItem {
  std::string bytes;  // of the token
  float logprob = 0;
  std::vector<std::pair<std::string, float>> top;
};

struct ToolCallPart {
  uint32_t index = 0;
  std::string id, name;   // both only in the first part of a call
  std::string arguments;  // the next piece of the JSON text
};

// One piece of one choice: a chunk of a stream, or (everything at once) a choice of a response.
struct ChoicePart {
  uint32_t index = 0;
  bool role = false;  // the first chunk of a chat choice
  std::string text, reasoning;
  std::vector<ToolCallPart> tool_calls;
  bool with_logprobs = false;
  std::vector<LogprobItem> logprobs;
  uint64_t text_offset = 0;      // bytes of text before this part (completions' logprobs)
  const char* finish = nullptr;  // finish_reason
  bool with_token_ids = false;
  std::vector<TokenId> token_ids;
  const std::vector<TokenId>* prompt_token_ids = nullptr;  // first chunk or response
};

struct AnswerUsage {
  uint64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, reasoning_tokens = 0;
};

// One stream chunk, without "data: ". `usage` adds running usage.
std::string chunk_json(const AnswerHead& head, const ChoicePart& part,
                       const AnswerUsage* usage = nullptr);
// The chunk with empty choices that ends a stream with include_usage.
std::string usage_chunk_json(const AnswerHead& head, const AnswerUsage& usage);
std::string response_json(const AnswerHead& head, const std::vector<ChoicePart>& choices,
                          const AnswerUsage& usage);
std::string error_json(const ApiError& error);

std::string models_json(const ApiModel& model);
std::string model_json(const ApiModel& model);
std::string tokens_json(TokenizeRequest::Form form, bool strings,
                        const std::vector<TokenId>& tokens, const std::vector<std::string>& pieces,
                        uint32_t max_context);
std::string detokenized_json(const std::string& text);
std::string cluster_json(const ClusterStatus& status);
// {"status":"ready"} or {"status":…,"reasons":[…]}.
std::string health_json(std::string_view state, const std::vector<std::string>& reasons);
std::string version_json(const std::string& version);

}  // namespace coordinator
