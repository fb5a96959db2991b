// TokenLog: what one request has emitted. Tokens arrive by index, doubled, late and out of order;
// they leave once each and in order. Tokens behind a gap wait, at most `limit` of them in all.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/generation.h"

namespace coordinator {

using base::TokenId;

class TokenLog {
 public:
  explicit TokenLog(uint32_t limit) : limit_(limit) {}

  // Tokens with indices index, index + 1, … ; logprobs has none or one per token; `finish` belongs
  // to the last token. False, and nothing changed, when they reach beyond the limit or are
  // malformed.
  bool accept(uint32_t index, std::span<const TokenId> tokens,
              std::vector<base::TokenLogprobs> logprobs, base::FinishReason finish);
  // Forgets what waits behind a gap: the next attempt goes on after emitted().
  void drop_waiting() { waiting_.clear(); }
  // Ends the log with what is emitted (the coordinator saw the end itself).
  void finish(base::FinishReason reason) { finish_ = reason; }

  const std::vector<TokenId>& emitted() const { return emitted_; }
  // Log-probabilities of emitted tokens from index `begin` on; empty when none came.
  std::span<const base::TokenLogprobs> logprobs_from(size_t begin) const;
  base::FinishReason finished() const { return finish_; }  // kNone: not yet
  size_t waiting() const { return waiting_.size(); }

 private:
  struct Entry {
    TokenId token = 0;
    base::TokenLogprobs logprobs;
    bool has_logprobs = false;
    base::FinishReason finish = base::FinishReason::kNone;
  };
  void take(Entry entry);

  const uint32_t limit_;
  std::vector<TokenId> emitted_;
  std::vector<base::TokenLogprobs> logprobs_;  // of all emitted tokens, or empty
  std::map<uint32_t, Entry> waiting_;          // by index, all beyond emitted_
  base::FinishReason finish_ = base::FinishReason::kNone;
};

}  // namespace coordinator
