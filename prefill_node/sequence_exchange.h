// SequenceExchange: one job's part in the all-gather of KV rows between the ranks of its stage. At
// each attention of each chunk a rank sends the rows of its own tokens to every other one, and goes
// on when it has those of all. Ranks are never more than one attention apart.
#pragma once
#include <compare>
#include <map>
#include <optional>
#include <vector>

#include "model/kv_pool.h"
#include "prefill_node/delivery.h"
#include "prefill_node/job_key.h"
#include "prefill_node/task_set.h"
#include "proto/request.h"

namespace prefill {

struct ExchangeCounters : DeliveryCounters {
  uint64_t bytes = 0;       // sent for the first time
  base::Duration waited{};  // of passes, for the rows of others
};

class SequenceExchange {
 public:
  struct Facts {
    JobKey key;
    std::vector<Address> ranks;  // of the stage, this one included
    uint32_t rank = 0;           // this one
    uint32_t tokens = 0;         // of the job
    model::LayerRange layers;
    model::KvView kv;
    uint32_t latent_bytes = 0;  // model::Shape::kv_latent_bytes
  };
  SequenceExchange(Context& ctx, Party& party, Facts facts, ExchangeCounters& counters)
      : ctx_(ctx), party_(party), facts_(std::move(facts)), counters_(counters) {}

  // Which attention of which chunk; they are passed in this order.
  struct Step {
    uint32_t begin = 0, layer = 0, part = 0;
    auto operator<=>(const Step&) const = default;
  };
  // Sends this rank's rows of the chunk [step.begin, + count).
  void offer(const Step& step, uint32_t count);
  // All others' rows are here.
  bool complete(const Step& step) const;
  // Waits until they are, then puts them into the KV. False: the party is over. After offer().
  Task<bool> collect(Step step, uint32_t count);
  // kOk: kept, or here before. kNoRoom: from a rank too far ahead. kCorrupt: makes no sense here.
  // `rows`: its digest verified.
  proto::Outcome accept(const proto::SequenceKv& message, base::NodeId from,
                        const base::Blob& rows);
  // The party is over: whoever waits in collect() goes on in a turn of its own.
  void interrupt() { tasks_.start(wake_later()); }

  bool idle() const { return unacknowledged_ == 0; }
  uint32_t unacknowledged() const { return unacknowledged_; }

 private:
  static constexpr size_t kSteps = 2;  // that others may be in: this rank's and the one after

  // Bytes [at, at + count) of every row that attention `part` writes.
  struct Bytes {
    uint32_t at = 0, count = 0;
  };
  std::vector<Bytes> parts(uint32_t part) const;
  size_t row_bytes(uint32_t part) const;
  uint32_t rank_of(base::NodeId node) const;
  base::Bytes pack(const Step& step, uint32_t count) const;
  void unpack(const Step& step, uint32_t count, uint32_t rank, base::ByteView rows) const;
  Task<void> send(Address to, proto::SequenceKv message, base::Blob rows);
  Task<void> wake_later();
  void wake();

  // Constant after construction.
  Context& ctx_;
  Party& party_;
  const Facts facts_;
  ExchangeCounters& counters_;
  // Owned state.
  struct Arrived {
    uint32_t count = 0;                 // tokens of the chunk
    std::map<uint32_t, base::Blob> of;  // by rank
  };
  std::map<Step, Arrived> arrived_;
  std::optional<Step> collected_;        // the last one
  base::Slot<bool>* waiting_ = nullptr;  // in the frame of collect()
  uint32_t unacknowledged_ = 0;
  TaskSet tasks_;
};

}  // namespace prefill
