// SequenceTable: every attempt this rank knows, the KV pool they live in, and who runs in the next
// steps (chosen by batcher.h). Pure: no Context, time comes in as an argument.
//
// Blocks: reserve() takes them for the tokens and a little more, next_batch() adds what the steps
// to come may fill; when there are none left, somebody gives way. A sequence that is `whole` has
// blocks for its longest answer from the start.
//
// Invariants
// 1. A sequence's blocks are given back once, at its end: at once, or, if it is in the batch or its
//    blocks are being offered, when neither is so any more: they may still be read and written.
//    A block may be of several sequences: those in which nobody writes any more (held_blocks.h).
// 2. Of one request at most one attempt is alive (not doomed), the highest heard of.
// 3. Ended attempts are remembered (the last kEndedMost requests), so that late messages of them
//    are recognised as stale and a late reservation does not come to life.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "decode_node/batcher.h"
#include "decode_node/held_blocks.h"
#include "decode_node/sequence.h"
#include "model/engine.h"
#include "proto/request.h"

namespace decode {

class SequenceTable {
 public:
  static constexpr size_t kEndedMost = 8192;
  static constexpr base::Duration kSilenceMost = std::chrono::seconds(60);
  // Tokens beyond those it has for which a sequence is given room before it may start. Who comes in
  // leaves as much to everybody who is here: else the next step would send somebody away again.
  static constexpr uint32_t kAhead = model::kBlockTokens;  // or tokens_ahead, if that is more
  struct Options {
    uint32_t blocks = 0;
    uint32_t max_batch = 32;
    uint32_t max_sequences = 1024;  // reservations and running ones together
    uint32_t tokens_ahead = 1;      // that a sequence may add between two calls of next_batch()
  };
  SequenceTable(const model::Shape& shape, Options options);

  // kOk (also again), kNoRoom (nothing is held), kStale, kCorrupt (values out of their range).
  // An accepted or refused higher attempt ends the lower ones.
  // `in_shares`: blocks of the pool that hold shares of other ranks' sequences (kv_shards.h).
  proto::Outcome reserve(const proto::ReserveKv& message, Time now, uint32_t in_shares = 0);
  // The living attempt, or null.
  Sequence* find(const SequenceKey& key);
  // Why find() gave null: kStale (ended, or overtaken) or kUnknown.
  proto::Outcome absent(const SequenceKey& key) const;

  // The reservation joins the batch at the next step.
  void admit(Sequence& sequence);
  // Ends an attempt. After end() its messages are stale, after forget() unknown.
  void end(Sequence& sequence);
  void forget(Sequence& sequence);
  // Ends all attempts of the request up to this one, heard of or not.
  void cancel(RequestId request, uint32_t attempt);
  // Ends everything and remembers nothing: a new life.
  void clear();

  // Who runs now: at most max_batch, in order of admission, going round when there are more, and
  // each with blocks for tokens_ahead more. Where blocks are short `gives_way` is called with one
  // sequence after another, which it must end() or forget(), until there are enough; one for which
  // nobody gives way stays out. Marks them in_step; the pointers are good until end_step().
  using GivesWay = std::function<void(Sequence&)>;
  const std::vector<Sequence*>& next_batch(const GivesWay& gives_way);
  // Of the batch, those that have not ended. Good until the next call of either.
  const std::vector<Sequence*>& still_running();
  void end_step();
  // Blocks may be short at the next call of next_batch().
  bool tight() const;
  // Its blocks have been copied (Sequence::offering).
  void offered(Sequence& sequence);

  struct Expired {
    std::vector<Sequence*> silent;   // reservations that nothing came for
    std::vector<Sequence*> overdue;  // any attempt past its deadline
  };
  Expired expired(Time now);
  // Living attempts whose grammar is this and that wait for it.
  std::vector<Sequence*> waiting_for(const base::GrammarText& grammar);

  model::KvPool& pool() { return pool_; }
  const model::KvPool& pool() const { return pool_; }
  uint32_t running() const { return static_cast<uint32_t>(running_.size()); }
  // Attempts alive but not in the batch.
  uint32_t reservations() const;
  size_t size() const { return sequences_.size(); }  // doomed ones too

 private:
  bool plausible(const proto::ReserveKv& message) const;
  // Leading blocks of a living sequence that begins like this one, as many as there are.
  std::span<const model::BlockId> held_blocks(const proto::ReserveKv& message) const;
  bool plausible_shares(const proto::ReserveKv& message) const;
  uint32_t blocks_wanted(const Sequence& sequence, uint32_t more) const;
  bool take_blocks(Sequence& sequence, std::span<const model::BlockId> held, uint32_t in_shares);
  uint32_t lacking(const Sequence& sequence) const;
  bool extend(Sequence& sequence);
  std::vector<Sequence*> living();
  void make_room(const GivesWay& gives_way);
  void let_go(Sequence& sequence);
  void remember(const SequenceKey& key);
  void drop(Sequence& sequence);

  // Constant after construction.
  const model::Shape shape_;
  const Options options_;
  // Owned state.
  model::KvPool pool_;
  SharedBlocks shared_{pool_};
  std::map<SequenceKey, std::unique_ptr<Sequence>> sequences_;
  std::map<uint64_t, Sequence*> running_;  // by ticket; not the doomed ones
  Batcher batcher_;
  std::vector<Sequence*> batch_, still_running_;
  uint64_t tickets_ = 0;
  uint32_t doomed_ = 0;
  std::map<RequestId, uint32_t> ended_;  // highest ended attempt
  std::deque<RequestId> ended_order_;
};

}  // namespace decode
