// What the HTTP API understands and answers, without HTTP or JSON: requests after validation,
// errors before they are written. api_chat.h makes these from JSON, answer.h and api_json.h turn
// results into JSON.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "base/generation.h"
#include "base/result.h"
#include "model/chat.h"

namespace coordinator {

using base::TokenId;

// The body of every refusal: {"error":{"message","type","param","code"}}; empty param and code are
// null.
struct ApiError {
  int status = 400;
  std::string type = "invalid_request_error";
  std::string code, param, message;
  int retry_after_s = 0;  // 0: no Retry-After header
};
template <class T>
using Parsed = tl::expected<T, ApiError>;

ApiError invalid(std::string param, std::string message, std::string code = "invalid_value");
ApiError not_found(std::string message, std::string code);
ApiError unavailable(std::string message);  // 503, Retry-After 1
// What the Gateway's error codes mean to a client (gateway.h, TokenSink::end).
ApiError from_gateway(const base::Error& error);

// What the served model offers; constant.
struct ApiModel {
  std::string name;  // as served
  int64_t created = 0;
  uint32_t vocab = 0;
  uint32_t max_context = 0;
  uint32_t longest_token = 256;  // bytes
  std::vector<TokenId> eos;
  bool thinking = false;    // the chat format knows a thinking switch
  std::string fingerprint;  // system_fingerprint
  // Used where a request says nothing (generation_config.json).
  float temperature = 1.0f, top_p = 1.0f, repetition_penalty = 1.0f;
  uint32_t top_k = 0;
  uint32_t max_new_tokens = 0;  // 0: up to the context
};
// Reads generation_config.json of a model folder into the defaults; a folder without one keeps
// them.
base::Status load_generation_defaults(const std::string& folder, ApiModel& model);

enum class Dialect : uint8_t { kChat, kCompletion };

struct TextRules {
  std::vector<std::string> stop;  // none empty
  bool include_stop = false;      // the stop string stays in the text
  bool skip_special = true;
};

struct GenerationRequest {
  Dialect dialect = Dialect::kChat;
  // kChat
  std::vector<model::ChatMessage> messages;
  std::vector<model::ToolSpec> tools;  // none when tool_choice is none
  model::ChatOptions chat;
  // kCompletion: texts or ids, one of them not empty
  std::vector<std::string> texts;
  std::vector<std::vector<TokenId>> ids;

  base::Sampling sampling;
  bool has_seed = false;
  bool has_max_tokens = false;  // the client's own, not a default
  uint32_t n = 1;               // choices per prompt
  TextRules text;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool logprobs = false;
  bool return_token_ids = false;
  std::string cache_salt;
  int32_t priority = 0;       // lower is earlier
  std::string tenant;         // by the API key; not of the body
  std::string grammar_field;  // which field gave sampling.grammar

  size_t prompts() const {
    return dialect == Dialect::kChat ? 1 : (texts.empty() ? ids.size() : texts.size());
  }
};

// POST /tokenize in both known forms: vLLM's (prompt or messages) and llama.cpp's (content).
struct TokenizeRequest {
  enum class Form : uint8_t { kPrompt, kMessages, kContent };
  Form form = Form::kPrompt;
  std::string text;
  std::vector<model::ChatMessage> messages;
  std::vector<model::ToolSpec> tools;
  model::ChatOptions chat;
  bool strings = false;  // return_token_strs, with_pieces
};

}  // namespace coordinator
