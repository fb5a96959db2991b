// StoreOutbox: full blocks on their way to the kvstore, off the path of any request. Bounded; what
// does not fit or cannot be delivered is dropped, for the store is a cache.
#pragma once
#include <deque>

#include "actor/context.h"
#include "prefill_node/task_set.h"
#include "proto/store.h"

namespace prefill {

struct StoreCounters {
  uint64_t stored = 0, dropped = 0;  // entries
};

class StoreOutbox {
 public:
  static constexpr uint32_t kWindow = 8;  // unanswered
  static constexpr size_t kBytesMost = 64u << 20;

  // `ctx` is that of the actor's start.
  void push(actor::Context& ctx, base::NodeId store, proto::PutKv message, base::Blob rows);
  // Forgets what waits; what is on its way ends by its deadline.
  void clear();
  size_t pending() const { return waiting_.size() + unanswered_; }
  const StoreCounters& counters() const { return counters_; }

 private:
  struct Put {
    base::NodeId store;
    proto::PutKv message;
    base::Blob rows;
  };
  void pump(actor::Context& ctx);
  base::Task<void> send(actor::Context& ctx, Put put);
  void drop_all_of(base::NodeId store);

  std::deque<Put> waiting_;
  size_t bytes_ = 0;  // of rows waiting and unanswered
  uint32_t unanswered_ = 0;
  StoreCounters counters_;
  TaskSet tasks_;
};

}  // namespace prefill
