// LongCat chat formats: messages to a prompt. A prompt is a list of pieces, special tokens apart
// from text, so that no text of a user, tool or file can place a special token.
//   kRounds    Flash-Chat:   SYSTEM:… [Round 0] USER:… ASSISTANT:…</longcat_s>
//   kTagged    2601, Lite, 2.0:  <longcat_system>…<longcat_user>… /think_off <longcat_assistant>…
// The format is recognised from the checkpoint's chat_template (which tags and spaces it uses); an
// unknown template is kUnsupported.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "model/tokenizer.h"

namespace model {

struct ToolCall {
  std::string id, name;
  std::string arguments;  // JSON object text
};
struct ChatMessage {
  enum class Role : uint8_t { kSystem, kUser, kAssistant, kTool };
  Role role = Role::kUser;
  std::string content;
  std::string reasoning;             // of an earlier assistant turn; dropped unless keep_reasoning
  std::vector<ToolCall> tool_calls;  // of an assistant turn
  std::string name, tool_call_id;    // of a tool turn
};
struct ToolSpec {
  std::string name, description;
  std::string parameters;  // JSON schema text
};
struct ChatOptions {
  bool thinking = false;
  bool keep_reasoning = false;
  bool add_generation_prompt = true;
};

class ChatFormat {
 public:
  // From chat_template.jinja or tokenizer_config.json (chat_template) in the folder. kNotFound when
  // there is no template, kUnsupported when it is unknown or a tag of it is no special token.
  static base::Result<ChatFormat> load(const std::string& folder, const Tokenizer& tokenizer);

  // kInvalidArgument: no messages, or tool arguments or a tool's parameters are no JSON object.
  // kUnsupported: thinking was asked for and the template has none.
  base::Result<std::vector<TokenId>> render(const Tokenizer& tokenizer,
                                            const std::vector<ChatMessage>& messages,
                                            const std::vector<ToolSpec>& tools,
                                            const ChatOptions& options) const;
  // The same as text with specials in their written form, for /apply-template and tests.
  base::Result<std::string> render_text(const std::vector<ChatMessage>& messages,
                                        const std::vector<ToolSpec>& tools,
                                        const ChatOptions& options) const;
  bool supports_thinking() const { return thinking_; }

 private:
  struct Piece {
    bool special = false;
    std::string text;
  };
  enum class Style : uint8_t { kRounds, kTagged };
  base::Result<std::vector<Piece>> pieces(const std::vector<ChatMessage>& messages,
                                          const std::vector<ToolSpec>& tools,
                                          const ChatOptions& options) const;
  class Writer;
  base::Status write_tagged(const std::vector<ChatMessage>& messages,
                            const std::vector<ToolSpec>& tools, const ChatOptions& options,
                            Writer* out) const;
  base::Status write_rounds(const std::vector<ChatMessage>& messages,
                            const std::vector<ToolSpec>& tools, const ChatOptions& options,
                            Writer* out) const;
  const char* switch_word(bool last_user_turn, bool thinking) const;
  Style style_ = Style::kTagged;
  bool thinking_ = false;                    // the template can open a thinking part
  bool says_on_ = false, says_off_ = false;  // it writes /think_on, /think_off
  bool switch_every_turn_ = false;  // "/think_off" after each user turn, not only the last (the
                                    // built-in model)
};

}  // namespace model
