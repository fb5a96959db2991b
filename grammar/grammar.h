// Grammar: a compiled grammar over a vocabulary, with the masks found so far. Matcher: how far one
// answer has come in it. What may come next is a function of the grammar and the answer's tokens
// alone; so a Matcher can be copied, set back, and made anew from a token log.
//
// One thread at a time uses a Grammar and its Matchers.
#pragma once
#include <map>
#include <memory>

#include "base/generation.h"
#include "grammar/states.h"
#include "grammar/vocabulary.h"
#include "model/sampler.h"

namespace grammar {

class Grammar {
 public:
  // From the text of any kind, in bounded time and memory. kInvalidArgument (the text is wrong, or
  // nothing satisfies it), kUnsupported (a known feature that is not offered), kTooLarge (over a
  // limit); the sentence goes to the client. `vocabulary` outlives the grammar.
  static base::Result<std::unique_ptr<Grammar>> compile(const base::GrammarText& text,
                                                        const Vocabulary& vocabulary);
  // From rules that a caller has made.
  static base::Result<std::unique_ptr<Grammar>> make(const Rules& rules,
                                                     const Vocabulary& vocabulary);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  States& states() { return states_; }
  const Automaton& automaton() const { return *automaton_; }

  // Tokens whose bytes can follow, and the EOS ids where the answer may end (or no token has the
  // bytes that must follow). Empty when to find out would cost more than Limits::kMaskWork. Good
  // until the next call or trim().
  std::span<const uint64_t> mask(StateId state);
  StateId after(StateId state, TokenId token);  // of its bytes; kDead if there are none
  // The one token that mask() would have if an answer could end with `stops` as with an EOS;
  // Constraint::kNoToken where there are several. Ends at the second one found, so where there is
  // a choice it costs next to nothing.
  TokenId only_token(StateId state, std::span<const TokenId> stops);
  // Frees what was found when it is more than the bounds allow.
  void trim();
  size_t bytes() const;  // of memory that trim() bounds, about

  struct Counters {
    uint64_t walks = 0, reused = 0;  // masks by a walk over the vocabulary; with its help
  };
  const Counters& counters() const { return counters_; }
  size_t distinct_masks() const { return distinct_.size(); }

 private:
  using Mask = std::vector<uint64_t>;
  // What a state without the shared part of its stack says of every token.
  struct Partial {
    Mask allowed;                  // whatever lies below
    std::vector<TokenId> unclear;  // it depends on what lies below
    bool useful = false;           // few enough are unclear, and the work was in its limit
  };
  static constexpr size_t kMaskBytes = 8u << 20;  // of different masks kept

  Grammar(std::unique_ptr<Automaton> automaton, const Vocabulary& vocabulary);
  size_t mask_bytes() const;
  Mask find_mask(StateId state);
  const Mask& keep(Mask mask);
  // Every token by its bytes, from the state; false: over the limit of work.
  bool walk(StateId state, Mask& mask);
  const Partial& partial(StateId local);
  void add_unclear(size_t node, Partial& out) const;

  // Constant after construction.
  const std::unique_ptr<Automaton> automaton_;
  const Vocabulary& vocabulary_;
  // Owned state.
  States states_;
  std::unordered_map<StateId, const Mask*> masks_;  // in distinct_
  // By hash. The places of a long bounded text are states of their own, but nearly all have the
  // same mask.
  std::unordered_multimap<uint64_t, Mask> distinct_;
  std::unordered_map<StateId, Partial> partials_;
  size_t useful_ = 0;  // partials
  uint64_t age_ = 0;   // of the states that these are of
  std::vector<StateId> path_;
  Counters counters_;
};

class Matcher final : public model::Constraint {
 public:
  // A stop token ends the answer, so it may come where an EOS may. `grammar` outlives this.
  explicit Matcher(Grammar& grammar, std::vector<TokenId> stop_tokens = {});

  // Takes `emitted` as the answer so far, whatever it was asked before.
  std::span<const uint64_t> allowed(std::span<const TokenId> emitted) override;
  // Whether the answer so far keeps to the grammar; whether it may end here.
  bool keeps(std::span<const TokenId> emitted);
  bool may_end(std::span<const TokenId> emitted);
  // The bytes that every continuation begins with, at most `most`; empty where there is a choice or
  // the answer may end. A token of them need not be what the model would draw: only a mask of one
  // token (only_token) leaves it no choice.
  std::string forced_bytes(std::span<const TokenId> emitted, size_t most = 256);
  TokenId only_token(std::span<const TokenId> emitted) override;

 private:
  // kEnded: an EOS or stop token was emitted; only EOS may follow.
  static constexpr StateId kEnded = UINT32_MAX - 1;
  StateId follow(std::span<const TokenId> emitted);
  StateId step(StateId state, TokenId token);
  std::span<const uint64_t> mask_at(StateId state);
  bool is_stop(TokenId token) const;

  Grammar* grammar_;
  std::vector<TokenId> stops_;
  std::vector<TokenId> tokens_;  // whose states are known
  std::vector<StateId> states_;  // after 0, 1, … of them
  uint64_t age_ = 0;             // of these states
  std::vector<uint64_t> own_;    // a mask of this request alone
};

}  // namespace grammar
