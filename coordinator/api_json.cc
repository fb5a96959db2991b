#include "coordinator/api_json.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace coordinator {

using Json = nlohmann::ordered_json;

namespace {

std::string text_of(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Json nullable(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

// JSON has no infinities; -9999 is what OpenAI writes for "practically never".
double written(float logprob) {
  return logprob >= -9999.0f ? static_cast<double>(logprob) : -9999.0;
}

Json byte_list(const std::string& bytes) {
  Json list = Json::array();
  for (const char c : bytes) list.push_back(static_cast<uint8_t>(c));
  return list;
}

Json logprob_entry(const std::string& bytes, float logprob) {
  return {{"token", bytes}, {"logprob", written(logprob)}, {"bytes", byte_list(bytes)}};
}

Json chat_logprobs(const ChoicePart& part) {
  if (!part.with_logprobs) return nullptr;
  Json content = Json::array();
  for (const LogprobItem& item : part.logprobs) {
    Json entry = logprob_entry(item.bytes, item.logprob);
    entry["top_logprobs"] = Json::array();
    for (const auto& [bytes, logprob] : item.top) {
      entry["top_logprobs"].push_back(logprob_entry(bytes, logprob));
    }
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json completion_logprobs(const ChoicePart& part) {
  if (!part.with_logprobs) return nullptr;
  Json out = {{"tokens", Json::array()},
              {"token_logprobs", Json::array()},
              {"top_logprobs", Json::array()},
              {"text_offset", Json::array()}};
  uint64_t offset = part.text_offset;
  for (const LogprobItem& item : part.logprobs) {
    Json top = Json::object();
    for (const auto& [bytes, logprob] : item.top) top[bytes] = written(logprob);
    out["tokens"].push_back(item.bytes);
    out["token_logprobs"].push_back(written(item.logprob));
    out["top_logprobs"].push_back(std::move(top));
    out["text_offset"].push_back(offset);
    offset += item.bytes.size();
  }
  return out;
}

Json usage_object(const AnswerUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

Json head_object(const AnswerHead& head, bool chunk) {
  const char* object = head.dialect == Dialect::kCompletion ? "text_completion"
                       : chunk                              ? "chat.completion.chunk"
                                                            : "chat.completion";
  return {{"id", head.id},
          {"object", object},
          {"created", head.created},
          {"model", head.model},
          {"system_fingerprint", head.fingerprint}};
}

void add_ids(Json& choice, const ChoicePart& part, Dialect dialect) {
  if (part.with_token_ids) choice["token_ids"] = part.token_ids;
  if (dialect == Dialect::kCompletion && part.prompt_token_ids) {
    choice["prompt_token_ids"] = *part.prompt_token_ids;
  }
}

Json finish_of(const ChoicePart& part) { return part.finish ? Json(part.finish) : Json(nullptr); }

Json completion_choice(const ChoicePart& part) {
  Json choice = {{"index", part.index},
                 {"text", part.text},
                 {"logprobs", completion_logprobs(part)},
                 {"finish_reason", finish_of(part)}};
  add_ids(choice, part, Dialect::kCompletion);
  return choice;
}

Json tool_call_delta(const ToolCallPart& call) {
  Json out = {{"index", call.index}};
  Json function = Json::object();
  if (!call.id.empty()) {
    out["id"] = call.id;
    out["type"] = "function";
    function["name"] = call.name;
  }
  function["arguments"] = call.arguments;
  out["function"] = std::move(function);
  return out;
}

Json chat_delta(const ChoicePart& part) {
  Json delta = Json::object();
  if (part.role) delta = {{"role", "assistant"}, {"content", ""}};
  if (!part.reasoning.empty()) delta["reasoning_content"] = part.reasoning;
  if (!part.text.empty()) delta["content"] = part.text;
  for (const ToolCallPart& call : part.tool_calls) {
    delta["tool_calls"].push_back(tool_call_delta(call));
  }
  return delta;
}

Json chat_choice(const ChoicePart& part) {
  Json message = {{"role", "assistant"}, {"content", part.text}, {"refusal", nullptr}};
  if (!part.reasoning.empty()) message["reasoning_content"] = part.reasoning;
  if (!part.tool_calls.empty()) {
    if (part.text.empty()) message["content"] = nullptr;
    for (const ToolCallPart& call : part.tool_calls) {
      message["tool_calls"].push_back(
          {{"id", call.id},
           {"type", "function"},
           {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
  }
  Json choice = {{"index", part.index},
                 {"message", std::move(message)},
                 {"logprobs", chat_logprobs(part)},
                 {"finish_reason", finish_of(part)}};
  add_ids(choice, part, Dialect::kChat);
  return choice;
}

}  // namespace

std::string chunk_json(const AnswerHead& head, const ChoicePart& part, const AnswerUsage* usage) {
  Json out = head_object(head, /*chunk=*/true);
  Json choice;
  if (head.dialect == Dialect::kCompletion) {
    choice = completion_choice(part);
  } else {
    choice = {{"index", part.index},
              {"delta", chat_delta(part)},
              {"logprobs", chat_logprobs(part)},
              {"finish_reason", finish_of(part)}};
    add_ids(choice, part, head.dialect);
    if (part.prompt_token_ids) out["prompt_token_ids"] = *part.prompt_token_ids;
  }
  out["choices"] = Json::array({std::move(choice)});
  if (usage) {
    out["usage"] = usage_object(*usage);
  } else if (head.include_usage) {
    out["usage"] = nullptr;
  }
  return text_of(out);
}

std::string usage_chunk_json(const AnswerHead& head, const AnswerUsage& usage) {
  Json out = head_object(head, /*chunk=*/true);
  out["choices"] = Json::array();
  out["usage"] = usage_object(usage);
  return text_of(out);
}

std::string response_json(const AnswerHead& head, const std::vector<ChoicePart>& choices,
                          const AnswerUsage& usage) {
  Json out = head_object(head, /*chunk=*/false);
  out["choices"] = Json::array();
  for (const ChoicePart& part : choices) {
    const bool chat = head.dialect == Dialect::kChat;
    out["choices"].push_back(chat ? chat_choice(part) : completion_choice(part));
    if (chat && part.prompt_token_ids) out["prompt_token_ids"] = *part.prompt_token_ids;
  }
  out["usage"] = usage_object(usage);
  return text_of(out);
}

std::string error_json(const ApiError& error) {
  return text_of({{"error",
                   {{"message", error.message},
                    {"type", error.type},
                    {"param", nullable(error.param)},
                    {"code", nullable(error.code)}}}});
}

namespace {

Json model_object(const ApiModel& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "serval"},
          {"root", model.name},
          {"parent", nullptr},
          {"permission", Json::array()},
          {"max_model_len", model.max_context}};
}

Json counter_object(const std::vector<std::pair<std::string, double>>& counters) {
  Json out = Json::object();
  for (const auto& [name, value] : counters) out[name] = value;
  return out;
}

Json node_object(const NodeStatus& node) {
  return {{"name", node.name},
          {"role", node.role},
          {"state", node.state},
          {"endpoint", node.endpoint},
          {"node", fmt::format("{:016x}", node.node)},  // 64 bits do not fit a JSON number
          {"position", node.position},
          {"pid", node.pid},
          {"load_percent", node.load_percent},
          {"running", node.running},
          {"waiting", node.waiting},
          {"blocks_used", node.blocks_used},
          {"blocks_total", node.blocks_total},
          {"heartbeat_age_s", node.heartbeat_age_s},
          {"counters", counter_object(node.counters)}};
}

}  // namespace

std::string models_json(const ApiModel& model) {
  return text_of({{"object", "list"}, {"data", Json::array({model_object(model)})}});
}

std::string model_json(const ApiModel& model) { return text_of(model_object(model)); }

std::string tokens_json(TokenizeRequest::Form form, bool strings,
                        const std::vector<TokenId>& tokens, const std::vector<std::string>& pieces,
                        uint32_t max_context) {
  if (form == TokenizeRequest::Form::kContent) {
    if (!strings) return text_of({{"tokens", tokens}});
    Json list = Json::array();
    for (size_t i = 0; i < tokens.size(); ++i) {
      list.push_back({{"id", tokens[i]}, {"piece", pieces[i]}});
    }
    return text_of({{"tokens", std::move(list)}});
  }
  return text_of({{"count", tokens.size()},
                  {"max_model_len", max_context},
                  {"tokens", tokens},
                  {"token_strs", strings ? Json(pieces) : Json(nullptr)}});
}

std::string detokenized_json(const std::string& text) {
  return text_of({{"prompt", text}, {"content", text}});
}

std::string cluster_json(const ClusterStatus& status) {
  Json nodes = Json::array();
  for (const NodeStatus& node : status.nodes) nodes.push_back(node_object(node));
  return text_of({{"name", status.name},
                  {"model", status.model},
                  {"epoch", status.epoch},
                  {"ready", status.ready},
                  {"missing", status.missing},
                  {"draining", status.draining},
                  {"running", status.running},
                  {"waiting", status.waiting},
                  {"nodes", std::move(nodes)},
                  {"counters", counter_object(status.counters)}});
}

std::string health_json(std::string_view state, const std::vector<std::string>& reasons) {
  Json out = {{"status", state}};
  if (!reasons.empty()) out["reasons"] = reasons;
  return text_of(out);
}

std::string version_json(const std::string& version) { return text_of({{"version", version}}); }

}  // namespace coordinator
