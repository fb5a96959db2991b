// KvShards: the shares of other ranks' sequences that this rank holds (proto/shards.h), and the
// service that answers their owners' questions.
//
// A share is reserved, filled by the stages, committed, and from then on only read. It ends by the
// coordinator's Cancel (which comes at the end of every sequence in shards), a later attempt, its
// deadline, silence of the stages, the owner leaving the view, or the owner's word, which is asked
// for when nothing was heard of a share for kLease. Its blocks are free at once, or when the last
// question that is being answered from them is.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "actor/context.h"
#include "base/time.h"
#include "decode_node/counters.h"
#include "decode_node/sequence.h"
#include "model/engine.h"
#include "node/membership_client.h"
#include "proto/request.h"
#include "proto/shards.h"

namespace decode {

class KvShards {
 public:
  static constexpr base::Duration kSilenceMost = std::chrono::seconds(60);  // before the commits
  static constexpr base::Duration kLease = std::chrono::seconds(10);        // after them
  static constexpr size_t kJobsMost = 256;  // at once; further questions are answered kNoRoom

  struct Share {
    SequenceKey key;
    base::NodeId owner;
    model::KvRange range;
    std::vector<model::BlockId> blocks;
    KvIntake intake;
    Time deadline{}, heard{};
    uint32_t users = 0;  // questions that are being answered
    bool asking = false, doomed = false;
    bool owner_seen = false;  // in the view: it may be newer than ours
    model::KvView kv(model::KvPool& pool) const {
      return {&pool, blocks, range.begin / model::kBlockTokens};
    }
  };

  // All outlive it.
  KvShards(const model::Shape& shape, model::KvPool& pool, Counters& counters)
      : shape_(shape), pool_(pool), counters_(counters) {}

  // kOk (also again), kNoRoom (nothing is held), kCorrupt. Ends shares of lower attempts.
  proto::Outcome hold(const proto::HoldKv& message, Time now);
  // The living share, or null.
  Share* find(const SequenceKey& key);
  void end(Share& share);
  // Ends all shares of the request's attempts up to this one.
  void cancel(RequestId request, uint32_t attempt);
  void clear();

  // `engine` is null while the model loads. `absent`: the answer where there is no such share.
  void answer(actor::Context& ctx, model::Engine* engine,
              const actor::Incoming<proto::KvQuestion>& in, proto::Outcome absent);

  struct Expired {
    std::vector<Share*> silent;    // the stages say nothing
    std::vector<Share*> overdue;   // past the deadline
    std::vector<Share*> orphaned;  // the owner has left the view
    std::vector<Share*> in_doubt;  // nothing heard since kLease: the owner is to be asked
  };
  Expired expired(Time now, const node::View& view);

  uint32_t blocks() const;  // in shares held
  // Shares held, those that are ending included, and questions being answered.
  uint32_t size() const { return static_cast<uint32_t>(shares_.size() + doomed_.size()); }
  uint32_t answering() const { return static_cast<uint32_t>(jobs_.size()); }

 private:
  using Job = std::pair<actor::Address, uint64_t>;  // who asks, under which call
  base::Task<void> run(actor::Context& ctx, model::Engine& engine, Share& share,
                       actor::Incoming<proto::KvQuestion> in);
  void release(Share& share);

  const model::Shape& shape_;
  model::KvPool& pool_;
  Counters& counters_;
  std::map<SequenceKey, std::unique_ptr<Share>> shares_;
  std::vector<std::unique_ptr<Share>> doomed_;  // ended, still being read
  std::set<Job> jobs_;
};

}  // namespace decode
