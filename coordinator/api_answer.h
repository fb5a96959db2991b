// Answer: the tokens of all choices of one request become what the client receives: server-sent
// events while they come, or one body at the end. Pure: no HTTP, no waiting.
#pragma once
#include <map>
#include <span>
#include <string>
#include <vector>

#include "coordinator/api_json.h"
#include "coordinator/api_prompt.h"
#include "coordinator/text_stream.h"
#include "model/tokenizer.h"

namespace coordinator {

class Answer {
 public:
  Answer(AnswerHead head, Prepared prepared, const ApiModel& model,
         const model::Tokenizer& tokenizer);
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  uint32_t choices() const { return static_cast<uint32_t>(choices_.size()); }
  bool streams() const { return request_.stream; }
  // New tokens of a choice. False: the choice has just ended by a stop string; its submission is to
  // be cancelled. Ignored once a choice has ended.
  bool tokens(uint32_t choice, std::span<const TokenId> tokens,
              std::span<const base::TokenLogprobs> logprobs);
  void end(uint32_t choice, base::FinishReason reason, const Usage& usage);
  bool ended(uint32_t choice) const { return choices_[choice].ended; }
  bool done() const { return open_ == 0; }

  // Of a stream: the events not yet taken; with the last choice's end come usage and [DONE].
  size_t pending() const { return out_.size(); }
  std::string take() { return std::exchange(out_, {}); }
  // Of a response, once done().
  std::string body() const;
  AnswerUsage usage() const;
  // "stop", "length", …, of the first choice once it ended, else "".
  const char* finish_reason() const;

 private:
  struct Choice {
    explicit Choice(const TextRules& rules) : text(rules.stop, rules.include_stop) {}
    TextStream text;
    ChoicePart part;             // not yet sent; of a response all of it
    uint64_t logprob_bytes = 0;  // of text that logprobs were given for
    uint32_t tokens = 0, cached = 0;
    bool started = false, ended = false;
    const char* finish = nullptr;
  };

  const std::vector<TokenId>& prompt_of(uint32_t choice) const {
    return prompts_[choice / request_.n];
  }
  std::string_view visible(TokenId token) const;
  void add_logprobs(Choice& choice, std::string_view bytes, const base::TokenLogprobs& logprobs);
  void start(Choice& choice);
  void flush(Choice& choice);
  void finish(Choice& choice, const char* reason);
  void event(const std::string& json);

  // Constant after construction.
  const AnswerHead head_;
  const GenerationRequest request_;  // its texts and messages are dropped
  const std::vector<std::vector<TokenId>> prompts_;
  const ApiModel& model_;
  const model::Tokenizer& tokenizer_;
  // Owned state.
  std::vector<Choice> choices_;
  uint32_t open_;
  std::string out_;
};

// "data: …\n\n"
std::string sse_event(const std::string& json);
// The event that ends a stream which cannot go on.
std::string sse_error(const ApiError& error);

}  // namespace coordinator
