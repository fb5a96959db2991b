#include "coordinator/api_chat.h"

#include <fmt/core.h>

#include <map>
#include <nlohmann/json.hpp>

#include "coordinator/api_fields.h"
#include "coordinator/api_grammar.h"

namespace coordinator {

using nlohmann::json;

namespace {

constexpr size_t kMaxMessages = 10'000, kMaxTools = 256, kMaxPrompts = 64, kMaxParts = 10'000;
constexpr size_t kMaxName = 256;

using Error = std::optional<ApiError>;

void check_model(Fields& fields, const ApiModel& model, Error& error) {
  const auto name = fields.text("model", 1024);
  if (error || !name || name->empty() || *name == model.name) return;
  error = not_found(
      fmt::format("The model '{}' does not exist; this server offers '{}'", *name, model.name),
      "model_not_found");
}

// Refuses a field that has any value but null, false or an empty list.
void refuse(Fields& fields, const char* name, const char* message) {
  const json* value = fields.any(name);
  if (!value || *value == json(false) || (value->is_array() && value->empty())) return;
  fields.fail(name, message, "unsupported_parameter");
}

// A string, null, or an array of text parts, which are joined by newlines.
std::string parse_content(Fields& message) {
  const json* content = message.any("content");
  if (!content || message.failed()) return {};
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array() || content->size() > kMaxParts) {
    message.fail("content", "'content' must be a string or an array of text parts");
    return {};
  }
  std::string joined;
  for (size_t i = 0; i < content->size(); ++i) {
    const json& part = (*content)[i];
    const std::string at = fmt::format("content[{}]", i);
    const char* field = "text";
    std::string type;
    if (part.is_object() && part.contains("type") && part["type"].is_string()) {
      type = part["type"].get<std::string>();
      if (type == "refusal") field = "refusal";
    }
    if (type == "image_url" || type == "input_audio" || type == "file" || type == "video_url") {
      message.fail(at,
                   fmt::format("Content of type '{}' is not supported: the model reads text", type),
                   "unsupported_content");
      return {};
    }
    if (type.empty() || !part.contains(field) || !part[field].is_string()) {
      message.fail(at, "A content part must be {\"type\": \"text\", \"text\": …}");
      return {};
    }
    if (i > 0) joined += '\n';
    joined += part[field].get<std::string>();
  }
  return joined;
}

// Arguments come as the text of a JSON object or as the object itself.
std::string parse_arguments(Fields& function) {
  const json* arguments = function.any("arguments");
  if (!arguments || function.failed()) return "{}";
  if (arguments->is_object()) return arguments->dump();
  if (arguments->is_string()) {
    const auto& text = arguments->get_ref<const std::string&>();
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) return "{}";
    if (auto parsed = parse_body(text)) return text;
  }
  function.fail("arguments", "'arguments' must be a JSON object, or one as text");
  return {};
}

void parse_tool_calls(Fields& message, model::ChatMessage& out, const std::string& path,
                      Error& error) {
  const json* calls = message.array("tool_calls", kMaxTools);
  if (!calls) return;
  for (size_t i = 0; i < calls->size() && !error; ++i) {
    const std::string at = fmt::format("{}.tool_calls[{}]", path, i);
    const json& entry = (*calls)[i];
    if (!entry.is_object() || !entry.contains("function") || !entry["function"].is_object()) {
      error = invalid(at, "A tool call must be {\"id\", \"type\": \"function\", \"function\": …}");
      return;
    }
    Fields call(entry, at, error);
    Fields function(entry["function"], at + ".function", error);
    model::ToolCall made;
    made.id = call.text("id", kMaxName).value_or("");
    made.name = function.text("name", kMaxName).value_or("");
    if (made.name.empty()) function.fail("name", "A tool call needs the function's name");
    made.arguments = parse_arguments(function);
    out.tool_calls.push_back(std::move(made));
  }
}

std::optional<model::ChatMessage::Role> role_of(const std::string& name) {
  using Role = model::ChatMessage::Role;
  if (name == "system" || name == "developer") return Role::kSystem;
  if (name == "user") return Role::kUser;
  if (name == "assistant") return Role::kAssistant;
  if (name == "tool") return Role::kTool;
  return std::nullopt;
}

model::ChatMessage parse_message(const json& entry, const std::string& path, Error& error) {
  using Role = model::ChatMessage::Role;
  model::ChatMessage out;
  if (!entry.is_object()) {
    error = invalid(path, "A message must be an object with a role and content");
    return out;
  }
  Fields message(entry, path, error);
  const auto role = role_of(message.text("role", kMaxName).value_or(""));
  if (!role) {
    message.fail("role", "'role' must be system, developer, user, assistant or tool");
    return out;
  }
  out.role = *role;
  out.content = parse_content(message);
  if (*role == Role::kAssistant) {
    auto reasoning = message.text("reasoning_content");
    if (!reasoning) reasoning = message.text("reasoning");
    out.reasoning = reasoning.value_or("");
    parse_tool_calls(message, out, path, error);
  } else if (!message.any("content")) {
    message.fail("content", "'content' is missing");
  }
  out.name = message.text("name", kMaxName).value_or("");
  if (*role == Role::kTool) out.tool_call_id = message.text("tool_call_id", kMaxName).value_or("");
  return out;
}

// A tool's answer without a name takes that of the call it answers.
void name_tool_turns(std::vector<model::ChatMessage>& messages) {
  std::map<std::string, std::string> names;
  for (model::ChatMessage& message : messages) {
    for (const model::ToolCall& call : message.tool_calls) names[call.id] = call.name;
    if (message.role != model::ChatMessage::Role::kTool || !message.name.empty()) continue;
    const auto it = names.find(message.tool_call_id);
    if (it != names.end()) message.name = it->second;
  }
}

std::vector<model::ChatMessage> parse_messages(Fields& body, Error& error) {
  std::vector<model::ChatMessage> out;
  const json* list = body.array("messages", kMaxMessages);
  if (error) return out;
  if (!list || list->empty()) {
    body.fail("messages", "'messages' must have at least one message");
    return out;
  }
  for (size_t i = 0; i < list->size() && !error; ++i) {
    out.push_back(parse_message((*list)[i], fmt::format("messages[{}]", i), error));
  }
  name_tool_turns(out);
  return out;
}

// True when the tools are to be rendered.
bool parse_tool_choice(Fields& body) {
  const json* choice = body.any("tool_choice");
  if (!choice || body.failed()) return true;
  if (*choice == json("auto")) return true;
  if (*choice == json("none")) return false;
  if (*choice == json("required") || choice->is_object()) {
    body.fail("tool_choice",
              "'tool_choice' may be \"auto\" or \"none\": forced calls are not "
              "supported",
              "unsupported_parameter");
  } else {
    body.fail("tool_choice",
              "'tool_choice' must be \"none\", \"auto\", \"required\" or a function");
  }
  return false;
}

std::vector<model::ToolSpec> parse_tools(Fields& body, Error& error) {
  std::vector<model::ToolSpec> out;
  const bool wanted = parse_tool_choice(body);
  const json* list = body.array("tools", kMaxTools);
  if (!list) return out;
  for (size_t i = 0; i < list->size() && !error; ++i) {
    const json& entry = (*list)[i];
    const std::string at = fmt::format("tools[{}]", i);
    if (!entry.is_object() || entry.value("type", json("function")) != json("function") ||
        !entry.contains("function") || !entry["function"].is_object()) {
      error = invalid(at, "A tool must be {\"type\": \"function\", \"function\": {\"name\", …}}");
      return {};
    }
    Fields function(entry["function"], at + ".function", error);
    model::ToolSpec tool;
    tool.name = function.text("name", kMaxName).value_or("");
    if (tool.name.empty()) function.fail("name", "A function needs a name");
    tool.description = function.text("description").value_or("");
    const json* parameters = function.object("parameters");
    tool.parameters = parameters ? parameters->dump() : "{}";
    out.push_back(std::move(tool));
  }
  return wanted ? std::move(out) : std::vector<model::ToolSpec>{};
}

void parse_template(Fields& body, const ApiModel& model, model::ChatOptions& chat, Error& error) {
  const json* options = body.object("chat_template_kwargs");
  if (!options) return;
  for (const auto& [key, value] : options->items()) {
    if (key == "enable_thinking") continue;
    error =
        invalid("chat_template_kwargs", "'chat_template_kwargs' may hold only 'enable_thinking'");
    return;
  }
  Fields fields(*options, "chat_template_kwargs", error);
  chat.thinking = fields.boolean("enable_thinking").value_or(false) && model.thinking;
}

void refuse_unsupported(Fields& body) {
  refuse(body, "audio", "Audio is not supported: the model writes text");
  refuse(body, "web_search_options", "Web search is not supported");
  refuse(body, "functions", "'functions' is not supported: use 'tools'");
  refuse(body, "prediction", "'prediction' is not supported");
  refuse(body, "structural_tag", "Structural tags are not supported");
  refuse(body, "guided_whitespace_pattern", "'guided_whitespace_pattern' is not supported");
  if (const json* kinds = body.array("modalities", 8)) {
    for (const json& kind : *kinds) {
      if (kind != json("text")) body.fail("modalities", "Only the modality 'text' is supported");
    }
  }
}

void parse_chat_logprobs(Fields& body, GenerationRequest& request) {
  request.logprobs = body.boolean("logprobs").value_or(false);
  const auto top = body.integer("top_logprobs", 0, 20);
  if (top && *top > 0 && !request.logprobs) {
    body.fail("top_logprobs", "'top_logprobs' needs \"logprobs\": true");
  }
  if (request.logprobs) request.sampling.top_logprobs = static_cast<int32_t>(top.value_or(0));
}

std::optional<std::vector<TokenId>> parse_ids(const json& list, const ApiModel& model) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const json& entry : list) {
    const auto id = as_integer(entry, 0, int64_t{model.vocab} - 1);
    if (!id) return std::nullopt;
    ids.push_back(static_cast<TokenId>(*id));
  }
  return ids;
}

constexpr const char* kPromptForms =
    "'prompt' must be a string, an array of strings, an array of token ids, or an array of arrays "
    "of token ids, none empty";

void parse_prompt(Fields& body, const ApiModel& model, GenerationRequest& request) {
  const json* prompt = body.any("prompt");
  if (body.failed()) return;
  if (!prompt) return body.fail("prompt", "'prompt' is missing");
  const bool single = prompt->is_string() ||
                      (prompt->is_array() && !prompt->empty() && prompt->front().is_number());
  const json list = single ? json::array({*prompt}) : *prompt;
  if (!list.is_array() || list.empty()) return body.fail("prompt", kPromptForms);
  if (list.size() > kMaxPrompts) {
    return body.fail("prompt", fmt::format("At most {} prompts in one request", kMaxPrompts));
  }
  for (const json& entry : list) {
    if (entry.is_string() && !entry.get_ref<const std::string&>().empty() && request.ids.empty()) {
      request.texts.push_back(entry.get<std::string>());
    } else if (entry.is_array() && !entry.empty() && request.texts.empty()) {
      auto ids = parse_ids(entry, model);
      if (!ids) {
        return body.fail(
            "prompt", fmt::format("A token id must be an integer from 0 to {}", model.vocab - 1));
      }
      request.ids.push_back(std::move(*ids));
    } else {
      return body.fail("prompt", kPromptForms);
    }
  }
  if (request.prompts() * request.n > kMaxPrompts) {
    body.fail("n", fmt::format("At most {} choices in one request", kMaxPrompts));
  }
}

}  // namespace

Parsed<GenerationRequest> parse_chat(std::string_view text, const ApiModel& model) {
  auto json_body = parse_body(text);
  if (!json_body) return tl::unexpected(std::move(json_body.error()));
  Error error;
  Fields body(**json_body, "", error);
  GenerationRequest request;
  request.dialect = Dialect::kChat;
  check_model(body, model, error);
  request.messages = parse_messages(body, error);
  request.tools = parse_tools(body, error);
  parse_template(body, model, request.chat, error);
  refuse_unsupported(body);
  parse_grammar(body, text, request);
  parse_sampling(body, model, request);
  parse_chat_logprobs(body, request);
  if (error) return tl::unexpected(std::move(*error));
  return request;
}

Parsed<GenerationRequest> parse_completion(std::string_view text, const ApiModel& model) {
  auto json_body = parse_body(text);
  if (!json_body) return tl::unexpected(std::move(json_body.error()));
  Error error;
  Fields body(**json_body, "", error);
  GenerationRequest request;
  request.dialect = Dialect::kCompletion;
  check_model(body, model, error);
  parse_sampling(body, model, request);
  parse_prompt(body, model, request);
  if (body.boolean("echo").value_or(false)) {
    body.fail("echo", "'echo' is not supported", "unsupported_parameter");
  }
  if (!body.text("suffix").value_or("").empty()) {
    body.fail("suffix", "'suffix' is not supported", "unsupported_parameter");
  }
  const auto best_of = body.integer("best_of", 1, 16);
  if (best_of && *best_of != request.n) {
    body.fail("best_of", "'best_of' other than 'n' is not supported", "unsupported_parameter");
  }
  if (const auto top = body.integer("logprobs", 0, 20)) {
    request.logprobs = true;
    request.sampling.top_logprobs = static_cast<int32_t>(*top);
  }
  refuse_unsupported(body);
  parse_grammar(body, text, request);
  if (error) return tl::unexpected(std::move(*error));
  return request;
}

Parsed<TokenizeRequest> parse_tokenize(std::string_view text, const ApiModel& model) {
  auto json_body = parse_body(text);
  if (!json_body) return tl::unexpected(std::move(json_body.error()));
  Error error;
  Fields body(**json_body, "", error);
  TokenizeRequest request;
  check_model(body, model, error);
  request.strings = body.boolean("return_token_strs").value_or(false) ||
                    body.boolean("with_pieces").value_or(false);
  if (body.any("messages")) {
    request.form = TokenizeRequest::Form::kMessages;
    request.messages = parse_messages(body, error);
    request.tools = parse_tools(body, error);
    request.chat.add_generation_prompt = body.boolean("add_generation_prompt").value_or(true);
    parse_template(body, model, request.chat, error);
  } else if (body.any("content")) {
    request.form = TokenizeRequest::Form::kContent;
    request.text = body.text("content").value_or("");
  } else {
    if (!body.any("prompt")) body.fail("prompt", "'prompt', 'messages' or 'content' is needed");
    request.text = body.text("prompt").value_or("");
  }
  if (error) return tl::unexpected(std::move(*error));
  return request;
}

Parsed<std::vector<TokenId>> parse_detokenize(std::string_view text, const ApiModel& model) {
  auto json_body = parse_body(text);
  if (!json_body) return tl::unexpected(std::move(json_body.error()));
  Error error;
  Fields body(**json_body, "", error);
  check_model(body, model, error);
  const json* list = body.array("tokens", SIZE_MAX);
  if (!list) body.fail("tokens", "'tokens' must be an array of token ids");
  std::optional<std::vector<TokenId>> ids;
  if (list) {
    ids = parse_ids(*list, model);
    if (!ids) body.fail("tokens", fmt::format("A token id must be from 0 to {}", model.vocab - 1));
  }
  if (error) return tl::unexpected(std::move(*error));
  return std::move(*ids);
}

}  // namespace coordinator
