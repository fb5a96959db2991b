// StoreOutbox: full blocks on their way from a stage or a rank to the kvstores, off the path of any
// request. Bounded; what does not fit or cannot be delivered is dropped, for the store is a cache.
#pragma once
#include <deque>
#include <set>
#include <span>

#include "actor/context.h"
#include "node/membership_client.h"
#include "proto/store.h"

namespace node {

// The blocks of a sequence as stores know them.
struct BlockChain {
  base::Hash128 root, space;              // as in StartPrefill
  std::span<const base::Hash128> keys;    // of the full blocks
  std::span<const base::TokenId> tokens;  // of all of them
  uint32_t block_tokens = 0;
};
// What a store is told of one layer of block `at`, but for the rows.
proto::PutKv describe(const BlockChain& chain, uint32_t at, uint32_t layer, uint32_t layers);

struct StoreCounters {
  uint64_t stored = 0, dropped = 0;  // entries
};

class StoreOutbox {
 public:
  static constexpr uint32_t kWindow = 8;  // unanswered
  static constexpr size_t kBytesMost = 64u << 20;

  // Sets the digests. `ctx` is that of the actor's start, in all calls.
  void push(Context& ctx, NodeId store, proto::PutKv message, base::Blob rows);
  // Whether so many bytes would be taken now: asked before they are copied.
  bool has_room(size_t bytes) const { return bytes_ + bytes <= kBytesMost; }
  // A store that is not in the view gets nothing: what waits for it is dropped.
  void view_changed(const View& view);
  // Forgets what waits; what is on its way ends by its deadline.
  void clear();
  size_t pending() const { return waiting_.size() + unanswered_; }
  const StoreCounters& counters() const { return counters_; }

 private:
  struct Put {
    NodeId store;
    proto::PutKv message;
    base::Blob rows;
  };
  void pump(Context& ctx);
  Task<void> send(Context& ctx, Put put);
  void drop_of_others();

  std::set<NodeId> stores_;  // of the view
  std::deque<Put> waiting_;
  size_t bytes_ = 0;  // of rows waiting and unanswered
  uint32_t unanswered_ = 0;
  StoreCounters counters_;
};

}  // namespace node
