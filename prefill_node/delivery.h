// Delivery of one message of a job to a peer, until it is taken, the job is over, or it cannot be.
#pragma once
#include "actor/context.h"
#include "proto/request.h"

namespace prefill {

using actor::Address;
using actor::Context;
using base::Task;

// The job on whose behalf components wait. Each of moved(), stale() and failed() may end the job;
// it stays in memory until the tasks that called them have returned.
class Party {
 public:
  virtual ~Party() = default;
  virtual bool over() const = 0;  // nothing of it is wanted any more
  virtual base::Time deadline() const = 0;
  virtual void moved() = 0;  // something was acknowledged or has arrived
  virtual void stale() = 0;  // a peer knows that the attempt has ended
  virtual void failed(base::Error error, bool without_cache) = 0;
  // A node that lives, as far as the coordinator knows, has answered nothing for long.
  virtual void unreachable(base::NodeId node) = 0;
  // Told now and then while something that was sent to the node is not acknowledged.
  virtual void waits_for(base::NodeId node) = 0;
};

inline constexpr base::Duration kTryAgain = std::chrono::milliseconds(20);
inline constexpr uint32_t kCorruptMost = 8;  // in a row; more is no accident of a wire

struct DeliveryCounters {
  uint64_t corrupt = 0;  // sent again because the bytes did not match their digest
};
struct DeliveryOptions {
  const char* label;
  base::Duration retry = std::chrono::milliseconds(250);
  bool unknown_is_early = false;  // kUnknown: the peer will hear of the request soon
  DeliveryCounters* counters = nullptr;
};

// True: taken. False: the party is over, or was told stale() or failed().
template <class Reply, class M>
Task<bool> deliver(Context& ctx, Party& party, Address to, M message, base::Blobs blobs,
                   DeliveryOptions options) {
  uint32_t corrupt = 0;
  while (!party.over()) {
    const base::Duration left = party.deadline() - ctx.now();
    const actor::CallOptions how{options.label, options.retry, std::max(left, base::Duration{1})};
    auto call = ctx.template call<Reply>(to, message, how, blobs);
    const auto answer = co_await std::move(call);
    if (party.over()) co_return false;
    if (!answer) {
      party.failed(answer.error(), /*without_cache=*/false);
      co_return false;
    }
    const proto::Outcome outcome = answer->msg.outcome;
    if (outcome == proto::Outcome::kOk) co_return true;
    if (outcome == proto::Outcome::kStale) {
      party.stale();
      co_return false;
    }
    const bool early = outcome == proto::Outcome::kUnknown && options.unknown_is_early;
    if (outcome == proto::Outcome::kCorrupt && ++corrupt <= kCorruptMost) {
      if (options.counters != nullptr) ++options.counters->corrupt;
    } else if (outcome == proto::Outcome::kNoRoom || early) {
      Task<void> pause = ctx.sleep(kTryAgain);
      co_await std::move(pause);
    } else {
      base::Error error{base::Code::kUnavailable, fmt::format("{} was refused with outcome {}",
                                                              M::kName, static_cast<int>(outcome))};
      party.failed(std::move(error), /*without_cache=*/false);
      co_return false;
    }
  }
  co_return false;
}

}  // namespace prefill
