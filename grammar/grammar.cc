#include "grammar/grammar.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"

namespace grammar {

namespace {

void set_bit(std::span<uint64_t> mask, TokenId id) { mask[id / 64] |= uint64_t{1} << (id % 64); }

}  // namespace

Grammar::Grammar(std::unique_ptr<Automaton> automaton, const Vocabulary& vocabulary)
    : automaton_(std::move(automaton)), vocabulary_(vocabulary), states_(*automaton_) {
  age_ = states_.age();
  path_.resize(vocabulary.longest() + 1);
}

base::Result<std::unique_ptr<Grammar>> Grammar::make(const Rules& rules,
                                                     const Vocabulary& vocabulary) {
  auto automaton = std::make_unique<Automaton>(TRY(Automaton::make(rules)));
  std::unique_ptr<Grammar> made(new Grammar(std::move(automaton), vocabulary));
  const StateId start = made->states_.start();
  if (start == kDead) {
    return base::fail(base::Code::kTooLarge, "the grammar can be read in more than {} ways at once",
                      Limits::kConfigs);
  }
  if (made->mask(start).empty()) {
    return base::fail(base::Code::kTooLarge,
                      "the grammar is too ambiguous: finding the first token costs too much");
  }
  return made;
}

size_t Grammar::mask_bytes() const {
  constexpr size_t kEntry = 48;  // of a hash table
  return (distinct_.size() + useful_) * vocabulary_.words() * sizeof(uint64_t) +
         (masks_.size() + partials_.size()) * kEntry;
}

size_t Grammar::bytes() const { return mask_bytes() + states_.bytes(); }

void Grammar::trim() {
  states_.trim();
  if (age_ == states_.age() && mask_bytes() <= kMaskBytes) return;
  age_ = states_.age();
  masks_.clear();
  distinct_.clear();
  partials_.clear();
  useful_ = 0;
}

StateId Grammar::after(StateId state, TokenId token) {
  const std::string_view bytes = vocabulary_.bytes(token);
  if (bytes.empty()) return kDead;
  for (const char byte : bytes) {
    if (state == kDead) break;
    state = states_.next(state, static_cast<uint8_t>(byte));
  }
  return state;
}

bool Grammar::walk(StateId state, Mask& mask) {
  ++counters_.walks;
  const std::span<const Vocabulary::Node> nodes = vocabulary_.nodes();
  path_[0] = state;
  uint64_t work = 0;
  for (size_t i = 0; i < nodes.size() && work <= Limits::kMaskWork;) {
    const Vocabulary::Node& node = nodes[i];
    work += states_.ways(path_[node.depth]);
    const StateId next = states_.next(path_[node.depth], node.byte);
    if (next == kDead) {
      i = node.end;
      continue;
    }
    path_[node.depth + 1u] = next;
    for (const TokenId id : vocabulary_.tokens_at(i)) set_bit(mask, id);
    ++i;
  }
  return work <= Limits::kMaskWork;
}

void Grammar::add_unclear(size_t node, Partial& out) const {
  const std::span<const TokenId> tokens = vocabulary_.tokens_within(node);
  out.unclear.insert(out.unclear.end(), tokens.begin(), tokens.end());
}

const Grammar::Partial& Grammar::partial(StateId local) {
  const auto [it, fresh] = partials_.try_emplace(local);
  Partial& out = it->second;
  if (!fresh) return out;
  if (states_.popped(local)) return out;  // everything would be unclear
  ++counters_.walks;
  out.allowed.assign(vocabulary_.words(), 0);
  const size_t most = vocabulary_.size() / 8;
  const std::span<const Vocabulary::Node> nodes = vocabulary_.nodes();
  std::vector<bool> popped(path_.size(), false);  // before the byte at this depth
  path_[0] = local;
  uint64_t work = 0;
  for (size_t i = 0; i < nodes.size() && out.unclear.size() <= most;) {
    const Vocabulary::Node& node = nodes[i];
    work += states_.ways(path_[node.depth]);
    if (work > Limits::kMaskWork) break;
    const StateId next = states_.next(path_[node.depth], node.byte);
    if (next == kDead) {
      if (popped[node.depth]) add_unclear(i, out);
      i = node.end;
      continue;
    }
    path_[node.depth + 1u] = next;
    popped[node.depth + 1u] = popped[node.depth] || states_.popped(next);
    for (const TokenId id : vocabulary_.tokens_at(i)) set_bit(out.allowed, id);
    ++i;
  }
  out.useful = out.unclear.size() <= most && work <= Limits::kMaskWork;
  if (!out.useful) out = Partial{};
  useful_ += out.useful ? 1 : 0;
  return out;
}

std::span<const uint64_t> Grammar::mask(StateId state) {
  CHECK(age_ == states_.age(), "masks of states that were forgotten");
  const auto [it, fresh] = masks_.try_emplace(state, nullptr);
  if (fresh) it->second = &keep(find_mask(state));
  return *it->second;
}

const Grammar::Mask& Grammar::keep(Mask mask) {
  const uint64_t hash = base::hash64(std::as_bytes(std::span<const uint64_t>(mask)));
  const auto [first, last] = distinct_.equal_range(hash);
  for (auto it = first; it != last; ++it)
    if (it->second == mask) return it->second;
  return distinct_.emplace(hash, std::move(mask))->second;
}

// Empty: it costs too much.
Grammar::Mask Grammar::find_mask(StateId state) {
  Mask mask;
  const StateId local = states_.local(state);
  const Partial* known = local == kDead ? nullptr : &partial(local);
  if (known != nullptr && known->useful) {
    ++counters_.reused;
    mask = known->allowed;
    for (const TokenId id : known->unclear)
      if (after(state, id) != kDead) set_bit(mask, id);
  } else {
    mask.assign(vocabulary_.words(), 0);
    if (!walk(state, mask)) return {};
  }
  const bool stuck = std::ranges::all_of(mask, [](uint64_t word) { return word == 0; });
  if (states_.accepting(state) || stuck) {
    for (const TokenId id : vocabulary_.eos()) set_bit(mask, id);
  }
  return mask;
}

TokenId Grammar::only_token(StateId state, std::span<const TokenId> stops) {
  constexpr TokenId kNone = model::Constraint::kNoToken;
  TokenId only = kNone;
  // False for a second one.
  const auto take = [&only](std::span<const TokenId> ids) {
    for (const TokenId id : ids) {
      if (only != kNone && only != id) return false;
      only = id;
    }
    return true;
  };
  const bool may_end = states_.accepting(state);
  if (may_end && (!take(vocabulary_.eos()) || !take(stops))) return kNone;
  const std::span<const Vocabulary::Node> nodes = vocabulary_.nodes();
  path_[0] = state;
  uint64_t work = 0;
  for (size_t i = 0; i < nodes.size();) {
    const Vocabulary::Node& node = nodes[i];
    work += states_.ways(path_[node.depth]);
    if (work > Limits::kMaskWork) return kNone;
    const StateId next = states_.next(path_[node.depth], node.byte);
    if (next == kDead) {
      i = node.end;
      continue;
    }
    path_[node.depth + 1u] = next;
    for (const TokenId& id : vocabulary_.tokens_at(i)) {
      const bool stop = std::ranges::find(stops, id) != stops.end();
      if (!stop && !take(std::span(&id, 1))) return kNone;
    }
    ++i;
  }
  if (only == kNone && !take(vocabulary_.eos())) return kNone;
  return only;
}

Matcher::Matcher(Grammar& grammar, std::vector<TokenId> stop_tokens)
    : grammar_(&grammar), stops_(std::move(stop_tokens)) {
  std::erase_if(stops_, [&](TokenId id) {
    return id >= grammar.vocabulary().size() || grammar.vocabulary().is_eos(id);
  });
}

bool Matcher::is_stop(TokenId token) const {
  return std::find(stops_.begin(), stops_.end(), token) != stops_.end();
}

StateId Matcher::step(StateId state, TokenId token) {
  const bool eos = grammar_->vocabulary().is_eos(token);
  if (state == kEnded) return eos ? kEnded : kDead;
  if (state == kDead) return kDead;
  if (!eos && !is_stop(token)) return grammar_->after(state, token);
  if (grammar_->states().accepting(state)) return kEnded;
  if (!eos) return kDead;
  const std::span<const uint64_t> mask = mask_at(state);  // perhaps an EOS is all there is
  return !mask.empty() && (mask[token / 64] >> (token % 64) & 1) != 0 ? kEnded : kDead;
}

StateId Matcher::follow(std::span<const TokenId> emitted) {
  grammar_->trim();
  if (age_ != grammar_->states().age()) {
    age_ = grammar_->states().age();
    tokens_.clear();
    states_.assign(1, grammar_->states().start());
  }
  const auto same = std::ranges::mismatch(tokens_, emitted).in1 - tokens_.begin();
  tokens_.resize(static_cast<size_t>(same));
  states_.resize(tokens_.size() + 1);
  for (const TokenId token : emitted.subspan(tokens_.size())) {
    states_.push_back(step(states_.back(), token));
    tokens_.push_back(token);
  }
  return states_.back();
}

bool Matcher::keeps(std::span<const TokenId> emitted) { return follow(emitted) != kDead; }

bool Matcher::may_end(std::span<const TokenId> emitted) {
  const StateId state = follow(emitted);
  return state == kEnded || (state != kDead && grammar_->states().accepting(state));
}

std::span<const uint64_t> Matcher::allowed(std::span<const TokenId> emitted) {
  const StateId state = follow(emitted);
  return state == kDead ? std::span<const uint64_t>() : mask_at(state);
}

std::span<const uint64_t> Matcher::mask_at(StateId state) {
  const Vocabulary& vocabulary = grammar_->vocabulary();
  const auto only_eos = [&] {
    own_.assign(vocabulary.words(), 0);
    for (const TokenId id : vocabulary.eos()) set_bit(own_, id);
  };
  if (state == kEnded) {
    only_eos();
    return own_;
  }
  const std::span<const uint64_t> mask = grammar_->mask(state);
  if (stops_.empty() || mask.empty()) return mask;
  own_.assign(mask.begin(), mask.end());
  const bool may_end = grammar_->states().accepting(state);
  for (const TokenId id : stops_) {
    own_[id / 64] &= ~(uint64_t{1} << (id % 64));
    if (may_end) set_bit(own_, id);
  }
  if (std::ranges::all_of(own_, [](uint64_t word) { return word == 0; })) only_eos();
  return own_;
}

std::string Matcher::forced_bytes(std::span<const TokenId> emitted, size_t most) {
  std::string out;
  StateId state = follow(emitted);
  States& states = grammar_->states();
  const Automaton& automaton = grammar_->automaton();
  while (out.size() < most && state != kDead && state != kEnded && !states.accepting(state)) {
    StateId next = kDead;
    uint32_t ways = 0;
    uint8_t only = 0;
    for (uint32_t byte = 0; byte < 256 && ways < 2; ++byte) {
      const StateId found =
          states.next_class(state, automaton.byte_class(static_cast<uint8_t>(byte)));
      if (found == kDead) continue;
      ++ways;
      only = static_cast<uint8_t>(byte);
      next = found;
    }
    if (ways != 1) break;
    out.push_back(static_cast<char>(only));
    state = next;
  }
  return out;
}

TokenId Matcher::only_token(std::span<const TokenId> emitted) {
  const StateId state = follow(emitted);
  if (state == kDead) return kNoToken;
  if (state != kEnded) return grammar_->only_token(state, stops_);
  const std::span<const TokenId> eos = grammar_->vocabulary().eos();
  return eos.size() == 1 ? eos.front() : kNoToken;
}

}  // namespace grammar
