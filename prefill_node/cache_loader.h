// CacheLoader: brings the cached leading blocks of one job from the kvstore into its KV, layer by
// layer, and hands them to the shipper like computed rows. Whatever is missing or does not match
// its digest fails the attempt: the next one computes.
#pragma once
#include <vector>

#include "model/kv_pool.h"
#include "prefill_node/delivery.h"
#include "prefill_node/kv_shipper.h"
#include "prefill_node/task_set.h"
#include "proto/store.h"

namespace prefill {

class CacheLoader {
 public:
  static constexpr uint32_t kBlocksOfFetch = 16;
  static constexpr uint32_t kWindow = 4;  // fetches unanswered

  struct Facts {
    Address store;
    std::vector<base::Hash128> keys;  // of the cached blocks
    model::LayerRange layers;
    model::KvView kv;
    bool ships = true;  // false: another rank of the stage does
  };
  CacheLoader(Context& ctx, Party& party, Facts facts, KvShipper& shipper);

  void start() { pump(); }
  bool done() const { return left_ == 0; }
  uint32_t unanswered() const { return unanswered_; }

 private:
  struct Fetch {
    uint32_t layer, first, count;  // blocks
  };
  uint32_t groups() const {
    return (static_cast<uint32_t>(facts_.keys.size()) + kBlocksOfFetch - 1) / kBlocksOfFetch;
  }
  void pump();
  Task<void> run(Fetch fetch);
  bool take(const Fetch& fetch, const actor::Incoming<proto::KvData>& data);

  // Constant after construction.
  Context& ctx_;
  Party& party_;
  const Facts facts_;
  KvShipper& shipper_;
  // Owned state.
  uint32_t asked_ = 0;  // fetches, in the order layer, group
  uint32_t left_;       // fetches whose blocks are not here
  uint32_t unanswered_ = 0;
  TaskSet tasks_;
};

}  // namespace prefill
