#include "model/chat.h"

#include "model/json.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;
using Role = ChatMessage::Role;

constexpr uint64_t kFileBytesMost = 4 << 20;

// Written form of the special tokens that the formats place.
constexpr const char* kSystem = "<longcat_system>";
constexpr const char* kUser = "<longcat_user>";
constexpr const char* kAssistant = "<longcat_assistant>";
constexpr const char* kObservation = "<longcat_observation>";
constexpr const char* kEnd = "</longcat_s>";
constexpr const char* kThink = "<longcat_think>";
constexpr const char* kThinkEnd = "</longcat_think>";
constexpr const char* kCall = "<longcat_tool_call>";
constexpr const char* kCallEnd = "</longcat_tool_call>";
constexpr const char* kKey = "<longcat_arg_key>";
constexpr const char* kKeyEnd = "</longcat_arg_key>";
constexpr const char* kValue = "<longcat_arg_value>";
constexpr const char* kValueEnd = "</longcat_arg_value>";

Json text_node(std::string text) {
  Json node;
  node.kind = Json::Kind::kText;
  node.text = std::move(text);
  return node;
}

// The JSON object in a client's text; an empty text is an empty object.
Result<Json> object_of(const std::string& text, const std::string& what) {
  Json object;
  object.kind = Json::Kind::kMap;
  if (text.find_first_not_of(" \t\r\n") == text.npos) return object;
  auto parsed = parse_json(text, what);
  if (!parsed) return fail(Code::kInvalidArgument, "{}", parsed.error().what);
  if (!parsed->is(Json::Kind::kMap))
    return fail(Code::kInvalidArgument, "{}: must be a JSON object", what);
  return parsed;
}

Result<Json> arguments_of(const ToolCall& call) {
  return object_of(call.arguments, "arguments of the tool call " + call.name);
}

Result<Json> parameters_of(const ToolSpec& tool) {
  return object_of(tool.parameters, "parameters of the tool " + tool.name);
}

// {"name": …, "description": …, "parameters": {…}}
Result<std::string> json_of(const ToolSpec& tool) {
  Json node;
  node.kind = Json::Kind::kMap;
  node.map.emplace_back("name", text_node(tool.name));
  node.map.emplace_back("description", text_node(tool.description));
  node.map.emplace_back("parameters", TRY(parameters_of(tool)));
  return dump_python(node);
}

Result<std::string> template_of(const std::string& folder) {
  auto jinja = read_file(folder + "/chat_template.jinja", kFileBytesMost);
  if (jinja || jinja.error().code != Code::kNotFound) return jinja;
  const std::string file = folder + "/tokenizer_config.json";
  const std::string text = TRY(read_file(file, kFileBytesMost));
  const Json root = TRY(parse_json(text, file));
  const Json* found = root.find("chat_template");
  if (found && found->is(Json::Kind::kText)) return found->text;
  // Several templates: [{"name": "default", "template": …}, …]
  if (found)
    for (const Json& item : found->list)
      if (const Json* name = item.find("name"), *body = item.find("template");
          name && body && name->text == "default")
        return body->text;
  return fail(Code::kNotFound, "{}: field \"chat_template\" is missing", file);
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

// Every <longcat_…> and </longcat_…> that a template writes must be a special token, or text could
// imitate it.
Status check_tags(std::string_view text, const Tokenizer& tokenizer) {
  for (size_t at = text.find('<'); at != text.npos; at = text.find('<', at + 1)) {
    const std::string_view rest = text.substr(at);
    if (!rest.starts_with("<longcat_") && !rest.starts_with("</longcat_")) continue;
    const size_t end = rest.find_first_not_of("abcdefghijklmnopqrstuvwxyz_/", 1);
    if (end == rest.npos || rest[end] != '>') continue;
    const std::string_view tag = rest.substr(0, end + 1);
    if (!tokenizer.special(tag))
      return fail(Code::kUnsupported, "the chat template writes {}, which is no special token",
                  tag);
  }
  return {};
}

}  // namespace

// Collects a prompt; neighbouring texts become one piece, as they are tokenized together.
class ChatFormat::Writer {
 public:
  void special(const char* text) { pieces_.push_back({true, text}); }
  void text(std::string_view text) {
    if (text.empty()) return;
    if (pieces_.empty() || pieces_.back().special) pieces_.push_back({false, {}});
    pieces_.back().text += text;
  }
  bool empty() const { return pieces_.empty(); }
  std::vector<Piece> take() { return std::move(pieces_); }

  void reasoning(const std::string& text) {
    special(kThink);
    this->text(fmt::format("\n{}\n", text));
    special(kThinkEnd);
    this->text("\n");
  }
  // <longcat_tool_call>NAME\n<longcat_arg_key>K</…>\n<longcat_arg_value>V</…>\n…</longcat_tool_call>
  // with V the text itself when it is a string, else JSON.
  Status tagged_call(const ToolCall& call) {
    const Json arguments = TRY(arguments_of(call));
    special(kCall);
    text(call.name + "\n");
    for (const auto& [key, value] : arguments.map) {
      special(kKey);
      text(key);
      special(kKeyEnd);
      text("\n");
      special(kValue);
      text(value.is(Json::Kind::kText) ? value.text : dump_python(value));
      special(kValueEnd);
      text("\n");
    }
    special(kCallEnd);
    return {};
  }
  // <longcat_tool_call>\n{"name": …, "arguments": {…}}\n</longcat_tool_call>
  Status json_call(const ToolCall& call) {
    Json node;
    node.kind = Json::Kind::kMap;
    node.map.emplace_back("name", text_node(call.name));
    node.map.emplace_back("arguments", TRY(arguments_of(call)));
    special(kCall);
    text(fmt::format("\n{}\n", dump_python(node)));
    special(kCallEnd);
    return {};
  }
  // The tools of a tagged format, at the end of the system part.
  Status tagged_tools(const std::vector<ToolSpec>& tools) {
    text("## Tools\nYou have access to the following tools:\n");
    for (const ToolSpec& tool : tools) text(TRY(json_of(tool)) + "\n");
    text("\nTo call a tool, write its name and, for each argument, its key and value:\n");
    special(kCall);
    text("name\n");
    special(kKey);
    text("key");
    special(kKeyEnd);
    text("\n");
    special(kValue);
    text("value");
    special(kValueEnd);
    text("\n");
    special(kCallEnd);
    return {};
  }
  // The sentence that the built-in model was trained on: "Tools: read_file(path), list_dir(path)."
  Status sentence_tools(const std::vector<ToolSpec>& tools) {
    text("Tools: ");
    const char* between = "";
    for (const ToolSpec& tool : tools) {
      const Json parameters = TRY(parameters_of(tool));
      text(between + tool.name + "(");
      between = "";
      if (const Json* properties = parameters.find("properties"))
        for (const auto& [name, schema] : properties->map) {
          text(between + name);
          between = ", ";
        }
      text(")");
      between = ", ";
    }
    text(".");
    return {};
  }
  // The tools of the rounds format, before the first message.
  Status rounds_tools(const std::vector<ToolSpec>& tools) {
    text("## Tools\nYou have access to the following tools:\n\n### Tool namespace: function\n\n");
    for (const ToolSpec& tool : tools) {
      text("#### Tool name: " + tool.name + "\n\nDescription: " + tool.description);
      text(fmt::format("\n\nInputSchema: \n{}\n\n", dump_python(TRY(parameters_of(tool)))));
    }
    text(
        "**Note**: For each function call, return a json object with function name and arguments "
        "within ");
    special(kCall);
    special(kCallEnd);
    text(" XML tags as follows:\n");
    special(kCall);
    text("\n{\"name\": <function-name>, \"arguments\": <args-dict>}\n");
    special(kCallEnd);
    text("\n\n## Messages\n");
    return {};
  }

 private:
  std::vector<Piece> pieces_;
};

Result<ChatFormat> ChatFormat::load(const std::string& folder, const Tokenizer& tokenizer) {
  const std::string text = TRY(template_of(folder));
  ChatFormat format;
  if (contains(text, "[Round")) {
    format.style_ = Style::kRounds;
  } else if (contains(text, kUser) && contains(text, kAssistant)) {
    format.style_ = Style::kTagged;
  } else {
    return fail(Code::kUnsupported, "{}: the chat template is of no known LongCat format", folder);
  }
  format.says_on_ = contains(text, "/think_on");
  format.says_off_ = contains(text, "/think_off");
  format.thinking_ = format.says_on_ || contains(text, kThink);
  // A template that knows only "off" writes it after each user turn; one that knows both writes the
  // one asked for after the last.
  format.switch_every_turn_ = format.says_off_ && !format.says_on_;
  TRY(check_tags(text, tokenizer));
  TRY(check_tags(kEnd, tokenizer));
  if (format.thinking_) TRY(check_tags(std::string(kThink) + kThinkEnd, tokenizer));
  return format;
}

const char* ChatFormat::switch_word(bool last_user_turn, bool thinking) const {
  if (!last_user_turn && !switch_every_turn_) return "";
  if (thinking) return says_on_ ? " /think_on" : "";
  return says_off_ ? " /think_off" : "";
}

namespace {
size_t last_user_of(const std::vector<ChatMessage>& messages) {
  size_t last = messages.size();
  for (size_t i = 0; i < messages.size(); ++i)
    if (messages[i].role == Role::kUser) last = i;
  return last;
}
}  // namespace

Status ChatFormat::write_tagged(const std::vector<ChatMessage>& messages,
                                const std::vector<ToolSpec>& tools, const ChatOptions& options,
                                Writer* out) const {
  const size_t last_user = last_user_of(messages);
  const bool has_system = messages[0].role == Role::kSystem;
  if (!tools.empty()) {
    std::string system = has_system ? messages[0].content : "";
    if (system.empty() && switch_every_turn_) system = "You are a helpful coding assistant.";
    out->special(kSystem);
    out->text(system);
    if (!system.empty()) out->text(switch_every_turn_ ? " " : "\n\n");
    TRY(switch_every_turn_ ? out->sentence_tools(tools) : out->tagged_tools(tools));
  }
  for (size_t i = !tools.empty() && has_system ? 1 : 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    switch (message.role) {
      case Role::kSystem:
        out->special(kSystem);
        out->text(message.content);
        break;
      case Role::kUser:
        out->special(kUser);
        out->text(message.content);
        if (const char* word = switch_word(i == last_user, options.thinking); *word != '\0')
          out->text(std::string(word) + " ");
        break;
      case Role::kTool:
        out->special(kObservation);
        out->text(message.content);
        break;
      case Role::kAssistant:
        out->special(kAssistant);
        if (thinking_ && options.keep_reasoning && !message.reasoning.empty())
          out->reasoning(message.reasoning);
        out->text(message.content);
        for (const ToolCall& call : message.tool_calls) TRY(out->tagged_call(call));
        out->special(kEnd);
        break;
    }
  }
  if (options.add_generation_prompt) out->special(kAssistant);
  return {};
}

Status ChatFormat::write_rounds(const std::vector<ChatMessage>& messages,
                                const std::vector<ToolSpec>& tools, const ChatOptions& options,
                                Writer* out) const {
  const size_t last_user = last_user_of(messages);
  if (!tools.empty()) TRY(out->rounds_tools(tools));
  const char* between = "";
  size_t round = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    out->text(between);
    between = " ";
    switch (message.role) {
      case Role::kSystem:
        out->text("SYSTEM:" + message.content);
        break;
      case Role::kUser:
        out->text(fmt::format("[Round {}] USER:{}", round++, message.content));
        out->text(switch_word(i == last_user, options.thinking));
        break;
      case Role::kTool: {
        Json result;
        result.kind = Json::Kind::kMap;
        result.map.emplace_back("content", text_node(message.content));
        result.map.emplace_back("name", text_node(message.name));
        out->text(fmt::format("TOOL:{}", dump_python(result)));
        break;
      }
      case Role::kAssistant:
        out->text("ASSISTANT:");
        if (thinking_ && options.keep_reasoning && !message.reasoning.empty())
          out->reasoning(message.reasoning);
        out->text(message.content);
        for (const ToolCall& call : message.tool_calls) TRY(out->json_call(call));
        out->special(kEnd);
        break;
    }
  }
  if (options.add_generation_prompt) out->text(std::string(between) + "ASSISTANT:");
  return {};
}

Result<std::vector<ChatFormat::Piece>> ChatFormat::pieces(const std::vector<ChatMessage>& messages,
                                                          const std::vector<ToolSpec>& tools,
                                                          const ChatOptions& options) const {
  if (messages.empty()) return fail(Code::kInvalidArgument, "a chat needs at least one message");
  if (options.thinking && !thinking_)
    return fail(Code::kUnsupported, "this model's chat format has no thinking part");
  Writer out;
  TRY(style_ == Style::kTagged ? write_tagged(messages, tools, options, &out)
                               : write_rounds(messages, tools, options, &out));
  if (options.add_generation_prompt && options.thinking) {
    out.special(kThink);
    out.text("\n");
  }
  return out.take();
}

Result<std::vector<TokenId>> ChatFormat::render(const Tokenizer& tokenizer,
                                                const std::vector<ChatMessage>& messages,
                                                const std::vector<ToolSpec>& tools,
                                                const ChatOptions& options) const {
  const std::vector<Piece> prompt = TRY(pieces(messages, tools, options));
  std::vector<TokenId> ids;
  for (const Piece& piece : prompt) {
    if (!piece.special) {
      const std::vector<TokenId> part = tokenizer.encode(piece.text);
      ids.insert(ids.end(), part.begin(), part.end());
      continue;
    }
    const auto id = tokenizer.special(piece.text);
    if (!id) return fail(Code::kUnsupported, "{}", id.error().what);
    ids.push_back(*id);
  }
  return ids;
}

Result<std::string> ChatFormat::render_text(const std::vector<ChatMessage>& messages,
                                            const std::vector<ToolSpec>& tools,
                                            const ChatOptions& options) const {
  const std::vector<Piece> prompt = TRY(pieces(messages, tools, options));
  std::string text;
  for (const Piece& piece : prompt) text += piece.text;
  return text;
}

}  // namespace model
