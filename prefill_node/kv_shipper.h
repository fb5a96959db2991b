// KvShipper: carries the KV rows of one job to its decode rank, as soon as they are final, with at
// most `credits` messages unacknowledged; then the commit. Rows are copied out of the pool when
// they leave: what waits for a credit is three numbers. Rows of the leading blocks that the rank
// holds stay here; digests are chained from the first row that leaves.
#pragma once
#include <deque>
#include <map>
#include <vector>

#include "model/engine.h"
#include "prefill_node/delivery.h"
#include "prefill_node/job_key.h"
#include "prefill_node/link_watch.h"
#include "prefill_node/task_set.h"

namespace prefill {

struct ShipperCounters : DeliveryCounters {
  uint64_t rows = 0, bytes = 0;  // sent for the first time
};

class KvShipper {
 public:
  // A rank that acknowledges nothing for so many of these is cut off from this stage (it would have
  // left the view if it were dead): another one is asked. Counted, not timed, so that a pause of
  // this process is not the rank's silence.
  static constexpr base::Duration kListen = std::chrono::milliseconds(500);
  static constexpr uint32_t kSilentMost = 4;

  struct Facts {
    JobKey key;
    Address decode;
    uint32_t credits = 1;
    model::LayerRange layers;
    model::KvView kv;  // outlives the shipper's tasks, or the party is over
    const model::Shape& shape;
    uint32_t held_blocks;  // leading ones that the rank has
    LinkWatch& links;
  };
  KvShipper(Context& ctx, Party& party, Facts facts, ShipperCounters& counters)
      : ctx_(ctx),
        party_(party),
        facts_(std::move(facts)),
        counters_(counters),
        digests_(facts_.layers.count()) {}

  // The rows (slots: draft_slots.h) are final. Those before the first one to ship stay.
  void push(uint32_t layer, uint32_t begin, uint32_t count);
  // Fills layers and digests; `blobs` go along. REQUIRES: idle(), all rows pushed. moved() when it
  // was taken.
  void commit(proto::KvCommit commit, base::Blobs blobs);

  bool idle() const { return waiting_.empty() && unacknowledged_ == 0; }
  bool committed() const { return committed_; }
  uint32_t unacknowledged() const { return unacknowledged_; }

 private:
  struct Piece {
    uint32_t layer, begin, count;
  };
  uint32_t first_slot(uint32_t layer) const;  // to ship
  void pump();
  Task<void> ship(proto::KvLayer message, base::Blob rows);
  Task<void> send_commit(proto::KvCommit commit, base::Blobs blobs);
  void listen();
  Task<void> count_silence();

  // Constant after construction.
  Context& ctx_;
  Party& party_;
  const Facts facts_;
  ShipperCounters& counters_;
  // Owned state.
  std::deque<Piece> waiting_;
  uint32_t unacknowledged_ = 0;
  std::vector<std::map<uint32_t, base::Hash128>> digests_;  // per layer, by first token
  bool committing_ = false, committed_ = false;
  bool listening_ = false;
  uint32_t silent_ = 0;
  TaskSet tasks_;
};

}  // namespace prefill
