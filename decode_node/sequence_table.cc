#include "decode_node/sequence_table.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "base/check.h"
#include "decode_node/drafter.h"
#include "model/draft_slots.h"
#include "model/kv_split.h"
#include "model/sampler.h"

namespace decode {

using proto::Outcome;

base::FinishReason finish_of(const Sequence& sequence, std::span<const TokenId> eos) {
  const std::span<const TokenId> tokens(sequence.tokens);
  const auto reason =
      model::finish_after(tokens.subspan(sequence.prompt_tokens), eos, sequence.sampling);
  if (reason != base::FinishReason::kNone) return reason;
  return sequence.emitted() >= sequence.most_emitted ? base::FinishReason::kLength
                                                     : base::FinishReason::kNone;
}

SequenceTable::SequenceTable(const model::Shape& shape, Options options)
    : shape_(shape),
      options_(options),
      pool_(options.blocks, model::LayerRange{0, shape.kv_layers()}, shape.kv_row_bytes),
      batcher_(options.max_batch) {
  CHECK(options.max_batch > 0 && options.max_batch <= std::numeric_limits<uint16_t>::max(),
        "a batch of at most {}", options.max_batch);
}

// What a coordinator never sends; refused here so that no later code has to ask.
bool SequenceTable::plausible(const proto::ReserveKv& m) const {
  if (!m.request || m.tokens.empty()) return false;
  if (m.prompt_tokens == 0 || m.prompt_tokens > m.tokens.size()) return false;
  if (m.tokens.size() >= shape_.max_context) return false;
  if (!proto::plausible(m.sampling)) return false;
  if (m.tokens.size() - m.prompt_tokens >= m.sampling.max_tokens) return false;
  if (!plausible_shares(m)) return false;
  return std::ranges::all_of(m.tokens, [this](TokenId id) { return id < shape_.vocab; });
}

// Shares follow each other from the first position on, each with another rank; at least a block of
// the tokens is ours.
bool SequenceTable::plausible_shares(const proto::ReserveKv& m) const {
  uint32_t at = 0;
  for (const proto::KvShare& share : m.shares) {
    if (!share.node || share.begin != at || shape_.span == 0) return false;
    if (!model::is_share({share.begin, share.end}, shape_.span)) return false;
    at = share.end;
  }
  return at == 0 || at + model::kBlockTokens <= m.tokens.size();
}

Outcome SequenceTable::reserve(const proto::ReserveKv& m, Time now, uint32_t in_shares) {
  const SequenceKey key{m.request, m.attempt};
  if (find(key) != nullptr) return Outcome::kOk;
  if (absent(key) == Outcome::kStale) return Outcome::kStale;
  if (!plausible(m)) return Outcome::kCorrupt;
  if (m.attempt > 0) cancel(m.request, m.attempt - 1);
  if (sequences_.size() >= options_.max_sequences) return Outcome::kNoRoom;

  constexpr uint64_t kDeadlineMostMs = 7ull * 24 * 3600 * 1000;
  const std::chrono::milliseconds allowed(std::min(m.deadline_ms, kDeadlineMostMs));
  auto sequence = std::make_unique<Sequence>();
  sequence->key = key;
  sequence->prompt_tokens = m.prompt_tokens;
  sequence->sampling = proto::from_wire(m.sampling);
  sequence->most_emitted = std::min(m.sampling.max_tokens, shape_.max_context - m.prompt_tokens);
  sequence->priority = m.priority;
  sequence->whole = m.whole || !m.shares.empty();
  sequence->block_root = m.block_root;
  sequence->space = m.space;
  sequence->stored_blocks = static_cast<uint32_t>(m.tokens.size()) / model::kBlockTokens;
  for (const proto::KvShare& share : m.shares) {
    sequence->away.push_back({share.begin, share.end});
    sequence->holders.push_back(share.node);
    sequence->first_block = share.end / model::kBlockTokens;
  }
  sequence->deadline = now + allowed;
  sequence->heard = now;
  sequence->tokens.assign(m.tokens.begin(), m.tokens.end());
  if (!take_blocks(*sequence, held_blocks(m), in_shares)) return Outcome::kNoRoom;
  const auto first_of = [&](uint32_t layer) {
    return sequence->first_block * model::kBlockTokens +
           model::slots_in_blocks(shape_, layer, sequence->held_blocks);
  };
  sequence->intake = KvIntake(shape_.kv_layers(), static_cast<uint32_t>(m.tokens.size()), first_of);
  sequences_.emplace(key, std::move(sequence));
  return Outcome::kOk;
}

std::span<const model::BlockId> SequenceTable::held_blocks(const proto::ReserveKv& m) const {
  const uint32_t most = model::blocks_in_slots(shape_, static_cast<uint32_t>(m.tokens.size()));
  std::span<const model::BlockId> held;
  for (const auto& [key, sequence] : sequences_) {
    if (held.size() == most) break;
    if (sequence->doomed) continue;
    const uint32_t common = common_blocks(*sequence, m, shape_);
    if (common > held.size()) held = std::span(sequence->blocks).first(common);
  }
  return held;
}

// Of this rank, for its tokens and so many more, or its longest answer.
uint32_t SequenceTable::blocks_wanted(const Sequence& sequence, uint32_t more) const {
  const uint32_t most = sequence.prompt_tokens + sequence.most_emitted;
  const auto tokens = static_cast<uint32_t>(sequence.tokens.size());
  return model::KvPool::blocks_for(sequence.whole ? most : std::min(most, tokens + more)) -
         sequence.first_block;
}

// The first blocks of a sequence, of which it shares `held`; all or none.
bool SequenceTable::take_blocks(Sequence& sequence, std::span<const model::BlockId> held,
                                uint32_t in_shares) {
  const uint32_t longest =
      model::KvPool::blocks_for(sequence.prompt_tokens + sequence.most_emitted);
  if (longest - sequence.first_block > pool_.total()) return false;  // would not fit alone
  const uint32_t ahead = std::max(kAhead, options_.tokens_ahead);
  const auto wanted = blocks_wanted(sequence, ahead) - static_cast<uint32_t>(held.size());
  uint64_t spoken_for = in_shares;
  for (const auto& [key, other] : sequences_)
    if (!other->doomed) spoken_for += blocks_wanted(*other, ahead);
  spoken_for -= std::min(spoken_for, shared_.saved());
  if (spoken_for + wanted > pool_.total()) return false;
  auto blocks = pool_.allocate(wanted);
  if (!blocks) return false;
  shared_.share(held);
  sequence.held_blocks = sequence.final_blocks = static_cast<uint32_t>(held.size());
  sequence.blocks.assign(held.begin(), held.end());
  sequence.blocks.insert(sequence.blocks.end(), blocks->begin(), blocks->end());
  return true;
}

Sequence* SequenceTable::find(const SequenceKey& key) {
  const auto it = sequences_.find(key);
  return it == sequences_.end() || it->second->doomed ? nullptr : it->second.get();
}

Outcome SequenceTable::absent(const SequenceKey& key) const {
  const auto ended = ended_.find(key.request);
  if (ended != ended_.end() && ended->second >= key.attempt) return Outcome::kStale;
  const auto same_or_later = sequences_.lower_bound(key);
  const bool overtaken =
      same_or_later != sequences_.end() && same_or_later->first.request == key.request;
  return overtaken ? Outcome::kStale : Outcome::kUnknown;
}

void SequenceTable::admit(Sequence& sequence) {
  CHECK(sequence.ticket == 0 && !sequence.doomed, "an attempt is admitted once");
  sequence.ticket = ++tickets_;
  const auto tokens = static_cast<uint32_t>(sequence.tokens.size());  // all have KV
  sequence.final_blocks = model::blocks_in_slots(shape_, tokens);
  running_.emplace(sequence.ticket, &sequence);
}

void SequenceTable::remember(const SequenceKey& key) {
  const auto [it, fresh] = ended_.try_emplace(key.request, key.attempt);
  it->second = std::max(it->second, key.attempt);
  if (!fresh) return;
  ended_order_.push_back(key.request);
  if (ended_order_.size() > kEndedMost) {
    ended_.erase(ended_order_.front());
    ended_order_.pop_front();
  }
}

void SequenceTable::drop(Sequence& sequence) {
  if (sequence.doomed) return;
  if (sequence.ticket != 0) running_.erase(sequence.ticket);
  sequence.doomed = true;
  ++doomed_;
  let_go(sequence);
}

// Frees an ended sequence unless somebody still has to do with its blocks.
void SequenceTable::let_go(Sequence& sequence) {
  if (!sequence.doomed || sequence.in_step || sequence.offering) return;
  --doomed_;
  shared_.release(sequence.blocks);
  const SequenceKey key = sequence.key;
  sequences_.erase(key);
}

void SequenceTable::end(Sequence& sequence) {
  remember(sequence.key);
  drop(sequence);
}

void SequenceTable::forget(Sequence& sequence) { drop(sequence); }

void SequenceTable::cancel(RequestId request, uint32_t attempt) {
  remember({request, attempt});
  auto it = sequences_.lower_bound({request, 0});
  while (it != sequences_.end() && it->first.request == request && it->first.attempt <= attempt) {
    Sequence& sequence = *it->second;
    ++it;
    drop(sequence);
  }
}

void SequenceTable::clear() {
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    Sequence& sequence = *it->second;
    ++it;
    drop(sequence);
  }
  ended_.clear();
  ended_order_.clear();
}

// Blocks that the sequence lacks for the tokens of the next steps; their last has no KV.
uint32_t SequenceTable::lacking(const Sequence& sequence) const {
  const uint32_t wanted = blocks_wanted(sequence, options_.tokens_ahead - 1);
  const auto has = static_cast<uint32_t>(sequence.blocks.size());
  return wanted > has ? wanted - has : 0;
}

bool SequenceTable::extend(Sequence& sequence) {
  auto blocks = pool_.allocate(lacking(sequence));
  if (!blocks) return false;
  sequence.blocks.insert(sequence.blocks.end(), blocks->begin(), blocks->end());
  return true;
}

bool SequenceTable::tight() const {
  const uint64_t of_each = model::KvPool::blocks_for(options_.tokens_ahead) + 1;
  return pool_.total() - pool_.used() < of_each * running_.size();
}

const std::vector<Sequence*>& SequenceTable::next_batch(const GivesWay& gives_way) {
  CHECK(batch_.empty(), "a step is under way");
  batcher_.choose(running_, batch_);
  uint64_t short_of = 0;
  for (const Sequence* sequence : batch_) short_of += lacking(*sequence);
  if (short_of > pool_.total() - pool_.used()) {
    make_room(gives_way);
  } else if (short_of > 0) {
    for (Sequence* sequence : batch_) CHECK(extend(*sequence), "{} blocks were free", short_of);
  }
  for (Sequence* sequence : batch_) sequence->in_step = true;
  return batch_;
}

// The first in order are served first, so that nobody gives way to a later one.
void SequenceTable::make_room(const GivesWay& gives_way) {
  std::vector<Sequence*> order = batch_;
  std::ranges::sort(order,
                    [](const Sequence* a, const Sequence* b) { return goes_before(*a, *b); });
  for (Sequence* sequence : order) {
    // One that has given way is out of the batch, and must not be looked at.
    while (std::ranges::count(batch_, sequence) > 0 && !extend(*sequence)) {
      Sequence* last = who_gives_way(living());
      std::erase(batch_, last == nullptr ? sequence : last);
      if (last != nullptr) gives_way(*last);
    }
  }
}

std::vector<Sequence*> SequenceTable::living() {
  std::vector<Sequence*> out;
  for (const auto& [key, sequence] : sequences_)
    if (!sequence->doomed) out.push_back(sequence.get());
  return out;
}

const std::vector<Sequence*>& SequenceTable::still_running() {
  still_running_.clear();
  std::ranges::copy_if(batch_, std::back_inserter(still_running_),
                       [](const Sequence* sequence) { return !sequence->doomed; });
  return still_running_;
}

void SequenceTable::end_step() {
  for (Sequence* sequence : batch_) {
    sequence->in_step = false;
    sequence->final_blocks = model::blocks_in_slots(shape_, final_slots(*sequence));
    let_go(*sequence);
  }
  batch_.clear();
}

void SequenceTable::offered(Sequence& sequence) {
  sequence.offering = false;
  let_go(sequence);
}

SequenceTable::Expired SequenceTable::expired(Time now) {
  Expired out;
  for (const auto& [key, sequence] : sequences_) {
    if (sequence->doomed) continue;
    if (now >= sequence->deadline) {
      out.overdue.push_back(sequence.get());
    } else if (sequence->ticket == 0 && now - sequence->heard >= kSilenceMost) {
      out.silent.push_back(sequence.get());
    }
  }
  return out;
}

std::vector<Sequence*> SequenceTable::waiting_for(const base::GrammarText& grammar) {
  std::vector<Sequence*> out;
  for (const auto& [key, sequence] : sequences_) {
    const bool waits = !sequence->doomed && sequence->waits_for_grammar();
    if (waits && sequence->sampling.grammar == grammar) out.push_back(sequence.get());
  }
  return out;
}

uint32_t SequenceTable::reservations() const {
  return static_cast<uint32_t>(sequences_.size() - running_.size()) - doomed_;
}

}  // namespace decode
