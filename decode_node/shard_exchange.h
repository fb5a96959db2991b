// ShardExchange: the owner's side of attention over sequences in shards. For each attention of a
// pass it asks the holders of their shares, computes its own part meanwhile and puts the parts
// together (model/sharded_attention.h). A share that cannot be had is lost to its sequence alone:
// the pass goes on and the sequence's attempt fails at the end of the step.
#pragma once
#include <map>
#include <span>
#include <string>
#include <vector>

#include "decode_node/counters.h"
#include "decode_node/sequence.h"
#include "model/forward.h"
#include "model/sharded_attention.h"
#include "proto/shards.h"

namespace decode {

class ShardExchange {
 public:
  // All outlive it.
  ShardExchange(actor::Context& ctx, model::Engine& engine, Counters& counters)
      : ctx_(ctx), engine_(engine), counters_(counters) {}

  // A step begins: none of its passes is known, nothing is lost.
  void begin();
  // One of its passes and the members, one a segment; they stay as they are until the step ends.
  void add(const model::Pass& pass, std::span<Sequence* const> members);
  // Model::Site::attend_shards(); jobs go to `site`. False: our own life has ended.
  base::Task<bool> attend(model::Site& site, uint32_t layer, uint32_t j, model::Pass& pass);

  // What a member lost in the step; null: nothing.
  struct Lost {
    base::NodeId node;
    std::string why;
  };
  const Lost* lost(const Sequence& member) const;
  uint32_t in_flight() const { return in_flight_; }  // calls to peers

 private:
  struct Question {
    model::ShardRef ref;
    const Sequence* member = nullptr;
    base::NodeId holder;
    proto::KvQuestion message;
    base::Blob blob, answer;  // the answer stays empty when there is none
  };
  base::Task<bool> step(model::Site& site, model::ShardPoint point, model::Pass& pass);
  std::vector<Question> questions(const model::ShardPoint& point, const model::Pass& pass) const;
  base::Task<void> ask(Question& question);
  void lose(const Question& question, std::string why);

  // Constant after construction.
  actor::Context& ctx_;
  model::Engine& engine_;
  Counters& counters_;
  // Owned state.
  std::map<const model::Pass*, std::span<Sequence* const>> members_;
  std::map<const Sequence*, Lost> lost_;
  bool void_ = false;  // our own life has ended
  uint32_t in_flight_ = 0;
};

}  // namespace decode
