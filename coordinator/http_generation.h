// Generations: the requests in progress, as the HTTP thread sees them. It hands submissions to the
// Gateway through the Injector, gets their tokens back through `post`, keeps each Answer current,
// and cancels what nobody waits for any more.
//
// Threads: everything here runs on the HTTP thread, but the sinks: they live on the reactor thread
// and touch nothing here; they post. A late event of a closed generation finds no entry and changes
// nothing.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "actor/context.h"
#include "coordinator/api_answer.h"
#include "coordinator/gateway.h"
#include "coordinator/metrics_text.h"

namespace coordinator {

struct Generation {
  Generation(AnswerHead head, Prepared prepared, const ApiModel& model,
             const model::Tokenizer& tokenizer)
      : answer(std::move(head), std::move(prepared), model, tokenizer) {}

  Answer answer;
  std::optional<ApiError> error;  // refused before any token, or failed later; final
  bool overflow = false;          // the client does not read; everything is cancelled
  uint32_t attempts = 0;          // the most that any choice needed
  bool over() const { return error || overflow || answer.done(); }

 private:
  friend class Generations;
  struct Choice {
    base::RequestId request;  // 0 until the reactor has told
    bool running = true;      // neither ended nor cancelled
  };
  uint64_t key = 0;
  std::vector<Choice> choices;
  std::function<void()> changed;
};

class Generations {
 public:
  struct World {
    Gateway& gateway;  // touched only inside injector.post
    actor::Injector& injector;
    std::function<void(std::function<void()>)> post;  // onto the HTTP thread, from any thread
    const ApiModel& model;
    const model::Tokenizer& tokenizer;
    size_t most_pending = 512 << 10;  // bytes of a stream not yet taken
  };
  Generations(World world, HttpMetrics& metrics) : world_(std::move(world)), metrics_(metrics) {}

  // `changed` is called, on the HTTP thread, when the answer, the error or overflow changed.
  Generation& open(AnswerHead head, Prepared prepared, std::function<void()> changed);
  // Cancels what still runs and forgets the generation.
  void close(Generation& generation);
  // No more posts to the injector: its host is going away.
  void stop() { stopped_ = true; }
  size_t size() const { return open_.size(); }

 private:
  class Sink;
  void admitted(uint64_t key, std::vector<base::RequestId> requests);
  void tokens(uint64_t key, uint32_t choice, const std::vector<TokenId>& tokens,
              const std::vector<base::TokenLogprobs>& logprobs);
  void ended(uint64_t key, uint32_t choice, base::FinishReason reason,
             const std::optional<base::Error>& error, const Usage& usage);
  void cancel(Generation::Choice& choice);
  void cancel_all(Generation& generation);
  void cancel_request(base::RequestId request);
  void finished(const char* reason);

  const World world_;
  HttpMetrics& metrics_;
  std::map<uint64_t, std::unique_ptr<Generation>> open_;
  uint64_t next_key_ = 1;
  bool stopped_ = false;
};

}  // namespace coordinator
