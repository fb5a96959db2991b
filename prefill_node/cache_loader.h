// CacheLoader: brings the cached leading blocks of one job from the kvstores into its KV, layer by
// layer, and hands them to the shipper like computed rows. A chunk that attends to them may begin
// when the first layer is here, and waits at each layer for that layer's rows. Whatever is missing
// or does not match what was asked for fails the attempt: the next one computes it.
#pragma once
#include <vector>

#include "base/rendezvous.h"
#include "model/engine.h"
#include "node/rate_meter.h"
#include "node/store_outbox.h"
#include "prefill_node/delivery.h"
#include "prefill_node/split_shipper.h"
#include "prefill_node/task_set.h"
#include "proto/store.h"

namespace prefill {

// What loading cached prefixes took on this stage.
struct LoadCounters {
  node::RateMeter rate;  // bytes a second of stores' answers, lately
  uint64_t bytes = 0;
  double seconds = 0;       // from a load's first question to its last answer
  double wait_seconds = 0;  // of these, that nothing of the request computed
};

class CacheLoader {
 public:
  // A fetch is of one layer of one group, which is at one store.
  static constexpr uint32_t kBlocksOfFetch = base::kBlocksOfGroup;
  static constexpr uint32_t kWindow = 4;  // fetches unanswered
  // What took less says more of latency than of a rate.
  static constexpr uint64_t kMeasuredLeast = 1u << 20;

  struct Facts {
    std::vector<base::NodeId> sources, copy_to;  // of each group, as in StartPrefill
    uint32_t blocks = 0;                         // that are cached
    node::BlockChain chain;
    model::LayerRange layers;
    const model::Shape* shape = nullptr;
    uint32_t recomputed = 0;  // last positions whose rows the job makes again, and ships itself
    model::KvView kv;
    bool ships = true;  // false: another rank of the stage does
  };
  CacheLoader(Context& ctx, Party& party, Facts facts, SplitShipper& shipper,
              node::StoreOutbox& outbox, LoadCounters& counters);

  void start();
  // The layer's cached rows are all here.
  bool has(uint32_t layer) const { return left_[layer - facts_.layers.begin] == 0; }
  uint32_t unanswered() const { return unanswered_; }

 private:
  struct Fetch {
    uint32_t layer, first, count;  // blocks
  };
  uint32_t groups() const { return static_cast<uint32_t>(facts_.sources.size()); }
  void pump();
  Task<void> run(Fetch fetch);
  // False: the answer is not what was asked for; nothing of it is used.
  bool take(const Fetch& fetch, const proto::FetchKv& asked,
            const actor::Incoming<proto::KvData>& data);
  void ship(const Fetch& fetch);
  void copy_on(const Fetch& fetch, const base::Blobs& blobs);
  void count(const Fetch& fetch);

  // Constant after construction.
  Context& ctx_;
  Party& party_;
  const Facts facts_;
  SplitShipper& shipper_;
  node::StoreOutbox& outbox_;
  LoadCounters& counters_;
  // Owned state.
  uint32_t asked_ = 0;          // fetches, in the order layer, group
  std::vector<uint32_t> left_;  // of each layer: fetches whose blocks are not here
  uint32_t unanswered_ = 0;
  base::Time begun_{};
  uint64_t bytes_ = 0;  // loaded
  TaskSet tasks_;
};

}  // namespace prefill
