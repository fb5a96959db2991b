#include "coordinator/http_generation.h"

#include <algorithm>

namespace coordinator {

// Reactor thread.
class Generations::Sink final : public TokenSink {
 public:
  Sink(Generations& owner, uint64_t key, uint32_t choice)
      : owner_(owner), key_(key), choice_(choice) {}

  void tokens(std::span<const TokenId> tokens,
              std::span<const base::TokenLogprobs> logprobs) override {
    owner_.world_.post(
        [&owner = owner_, key = key_, choice = choice_,
         ids = std::vector<TokenId>(tokens.begin(), tokens.end()),
         probs = std::vector<base::TokenLogprobs>(logprobs.begin(), logprobs.end())] {
          owner.tokens(key, choice, ids, probs);
        });
  }

  void end(base::FinishReason reason, const base::Error* error, const Usage& usage) override {
    std::optional<base::Error> copy;
    if (error) copy = *error;
    owner_.world_.post([&owner = owner_, key = key_, choice = choice_, reason,
                        copy = std::move(copy),
                        usage] { owner.ended(key, choice, reason, copy, usage); });
  }

 private:
  Generations& owner_;
  const uint64_t key_;
  const uint32_t choice_;
};

Generation& Generations::open(AnswerHead head, Prepared prepared, std::function<void()> changed) {
  std::vector<Submission> wanted = submissions(prepared, world_.model.max_context);
  const uint64_t key = next_key_++;
  auto made = std::make_unique<Generation>(std::move(head), std::move(prepared), world_.model,
                                           world_.tokenizer);
  Generation& generation = *made;
  generation.key = key;
  generation.changed = std::move(changed);
  generation.choices.resize(wanted.size());
  open_.emplace(key, std::move(made));
  ++metrics_.generations;
  if (stopped_) return generation;
  world_.injector.post([this, key, wanted = std::move(wanted)]() mutable {
    std::vector<base::RequestId> requests;
    for (uint32_t i = 0; i < wanted.size(); ++i) {
      auto sink = std::make_unique<Sink>(*this, key, i);
      requests.push_back(world_.gateway.submit(std::move(wanted[i]), std::move(sink)));
    }
    world_.post([this, key, requests = std::move(requests)] { admitted(key, requests); });
  });
  return generation;
}

void Generations::close(Generation& generation) {
  if (!generation.over()) finished("abort");
  cancel_all(generation);
  --metrics_.generations;
  open_.erase(generation.key);
}

void Generations::admitted(uint64_t key, std::vector<base::RequestId> requests) {
  const auto it = open_.find(key);
  for (size_t i = 0; i < requests.size(); ++i) {
    // Nobody waits for it any more: it was cancelled before its id was known.
    if (it == open_.end() || !it->second->choices[i].running) {
      cancel_request(requests[i]);
    } else {
      it->second->choices[i].request = requests[i];
    }
  }
}

void Generations::tokens(uint64_t key, uint32_t index, const std::vector<TokenId>& tokens,
                         const std::vector<base::TokenLogprobs>& logprobs) {
  const auto it = open_.find(key);
  if (it == open_.end() || tokens.empty()) return;
  Generation& generation = *it->second;
  Generation::Choice& choice = generation.choices[index];
  if (!choice.running || generation.over()) return;
  if (!generation.answer.tokens(index, tokens, logprobs)) {
    cancel(choice);
    if (generation.answer.done()) finished("stop");
  }
  if (generation.answer.pending() > world_.most_pending) {
    generation.overflow = true;
    finished("abort");
    cancel_all(generation);
  }
  generation.changed();
}

void Generations::ended(uint64_t key, uint32_t index, base::FinishReason reason,
                        const std::optional<base::Error>& error, const Usage& usage) {
  const auto it = open_.find(key);
  if (it == open_.end()) return;
  Generation& generation = *it->second;
  Generation::Choice& choice = generation.choices[index];
  if (!choice.running || generation.over()) return;
  choice.running = false;
  generation.attempts = std::max(generation.attempts, usage.attempts);
  const bool failed = error || reason == base::FinishReason::kError;
  if (failed) {
    generation.error =
        from_gateway(error.value_or(base::Error{base::Code::kInternal, "The generation failed"}));
    finished("error");
    cancel_all(generation);
  } else {
    generation.answer.end(index, reason, usage);
    if (generation.answer.done()) finished(generation.answer.finish_reason());
  }
  generation.changed();
}

void Generations::finished(const char* reason) { ++metrics_.finished[reason]; }

void Generations::cancel(Generation::Choice& choice) {
  if (!std::exchange(choice.running, false) || !choice.request) return;
  cancel_request(choice.request);
}

void Generations::cancel_all(Generation& generation) {
  for (Generation::Choice& choice : generation.choices) cancel(choice);
}

void Generations::cancel_request(base::RequestId request) {
  if (stopped_) return;
  world_.injector.post([this, request] { world_.gateway.cancel(request); });
}

}  // namespace coordinator
