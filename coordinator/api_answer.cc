#include "coordinator/api_answer.h"

#include <algorithm>

#include "base/check.h"

namespace coordinator {

namespace {

GenerationRequest without_prompt(GenerationRequest request) {
  request.messages.clear();
  request.tools.clear();
  request.texts.clear();
  request.ids.clear();
  return request;
}

AnswerHead with_usage_flag(AnswerHead head, const GenerationRequest& request) {
  head.include_usage = request.include_usage;
  return head;
}

bool contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

std::string sse_event(const std::string& json) { return "data: " + json + "\n\n"; }

std::string sse_error(const ApiError& error) { return sse_event(error_json(error)); }

Answer::Answer(AnswerHead head, Prepared prepared, const ApiModel& model,
               const model::Tokenizer& tokenizer)
    : head_(with_usage_flag(std::move(head), prepared.request)),
      request_(without_prompt(std::move(prepared.request))),
      prompts_(std::move(prepared.prompts)),
      model_(model),
      tokenizer_(tokenizer),
      open_(static_cast<uint32_t>(prompts_.size()) * request_.n) {
  choices_.reserve(open_);
  for (uint32_t i = 0; i < open_; ++i) {
    Choice& choice = choices_.emplace_back(request_.text);
    choice.part.index = i;
    choice.part.with_logprobs = request_.logprobs;
    choice.part.with_token_ids = request_.return_token_ids;
  }
}

// A token that ends the sequence shows no text, unless the client wants to see what stopped it.
std::string_view Answer::visible(TokenId token) const {
  const bool eos = !request_.sampling.ignore_eos && contains(model_.eos, token);
  const bool stop = eos || contains(request_.sampling.stop_tokens, token);
  if (stop && !request_.text.include_stop) return {};
  return tokenizer_.bytes(token, !request_.text.skip_special);
}

void Answer::add_logprobs(Choice& choice, std::string_view bytes,
                          const base::TokenLogprobs& logprobs) {
  LogprobItem item;
  item.bytes = std::string(bytes);
  item.logprob = logprobs.logprob;
  for (const auto& [id, logprob] : logprobs.top) {
    item.top.emplace_back(tokenizer_.bytes(id, /*specials=*/true), logprob);
  }
  if (choice.part.logprobs.empty()) choice.part.text_offset = choice.logprob_bytes;
  choice.logprob_bytes += bytes.size();
  choice.part.logprobs.push_back(std::move(item));
}

bool Answer::tokens(uint32_t index, std::span<const TokenId> tokens,
                    std::span<const base::TokenLogprobs> logprobs) {
  Choice& choice = choices_[index];
  if (choice.ended) return true;
  start(choice);
  for (size_t i = 0; i < tokens.size() && !choice.text.stopped(); ++i) {
    ++choice.tokens;
    const std::string_view bytes = visible(tokens[i]);
    if (request_.logprobs && i < logprobs.size() && !bytes.empty()) {
      add_logprobs(choice, bytes, logprobs[i]);
    }
    if (request_.return_token_ids) choice.part.token_ids.push_back(tokens[i]);
    const bool may_stop = choice.tokens > request_.sampling.min_tokens;
    choice.part.text += choice.text.push(bytes, may_stop);
  }
  if (!choice.text.stopped()) {
    if (request_.stream && !choice.part.text.empty()) flush(choice);
    return true;
  }
  finish(choice, "stop");
  return false;
}

void Answer::end(uint32_t index, base::FinishReason reason, const Usage& usage) {
  Choice& choice = choices_[index];
  if (choice.ended) return;
  start(choice);
  choice.cached = usage.cached_tokens;
  choice.part.text += choice.text.flush();
  const bool stop = reason == base::FinishReason::kStop || choice.text.stopped();
  finish(choice, stop ? "stop" : "length");
}

// The first thing sent of a choice: its role, and the prompt's ids when wanted.
void Answer::start(Choice& choice) {
  if (choice.started) return;
  choice.started = true;
  if (request_.return_token_ids) choice.part.prompt_token_ids = &prompt_of(choice.part.index);
  if (!request_.stream || request_.dialect == Dialect::kCompletion) return;
  ChoicePart first;
  first.index = choice.part.index;
  first.role = true;
  first.prompt_token_ids = std::exchange(choice.part.prompt_token_ids, nullptr);
  event(chunk_json(head_, first));
}

void Answer::flush(Choice& choice) {
  const AnswerUsage now = request_.continuous_usage ? usage() : AnswerUsage{};
  event(chunk_json(head_, choice.part, request_.continuous_usage ? &now : nullptr));
  ChoicePart& part = choice.part;
  part.text.clear();
  part.logprobs.clear();
  part.token_ids.clear();
  part.prompt_token_ids = nullptr;
}

void Answer::finish(Choice& choice, const char* reason) {
  CHECK(open_ > 0 && !choice.ended);
  choice.ended = true;
  choice.finish = reason;
  --open_;
  if (!request_.stream) {
    choice.part.finish = reason;
    return;
  }
  if (!choice.part.text.empty()) flush(choice);
  choice.part.with_logprobs = request_.logprobs && !choice.part.logprobs.empty();
  choice.part.finish = reason;
  flush(choice);
  if (open_ > 0) return;
  if (request_.include_usage) event(usage_chunk_json(head_, usage()));
  out_ += "data: [DONE]\n\n";
}

void Answer::event(const std::string& json) { out_ += sse_event(json); }

std::string Answer::body() const {
  CHECK(done() && !request_.stream);
  std::vector<ChoicePart> parts;
  for (const Choice& choice : choices_) parts.push_back(choice.part);
  return response_json(head_, parts, usage());
}

AnswerUsage Answer::usage() const {
  AnswerUsage usage;
  for (const std::vector<TokenId>& prompt : prompts_) usage.prompt_tokens += prompt.size();
  for (const Choice& choice : choices_) {
    usage.completion_tokens += choice.tokens;
    if (choice.part.index % request_.n == 0) usage.cached_tokens += choice.cached;
  }
  return usage;
}

const char* Answer::finish_reason() const {
  return choices_.front().finish ? choices_.front().finish : "";
}

}  // namespace coordinator
