// TokenOutbox: newly emitted tokens on their way to the coordinator. What is added between two
// flushes travels in one message; each message is repeated until it is acknowledged. At most
// kMost are unacknowledged; then entries wait, and the rank does not step.
#pragma once
#include <vector>

#include "actor/context.h"
#include "decode_node/sequence.h"
#include "proto/request.h"

namespace decode {

class TokenOutbox {
 public:
  static constexpr uint32_t kMost = 64;

  class Owner {
   public:
    virtual ~Owner() = default;
    // The coordinator does not want this attempt's tokens (any more).
    virtual void tokens_stale(actor::Context& ctx, const SequenceKey& key) = 0;
    // A message could not be delivered at all: this attempt's tokens have a gap.
    virtual void tokens_lost(actor::Context& ctx, const SequenceKey& key) = 0;
    // A message was acknowledged: there may be room again.
    virtual void outbox_moved(actor::Context& ctx) = 0;
  };
  explicit TokenOutbox(Owner& owner) : owner_(owner) {}

  void add(proto::TokenEntry entry) { entries_.push_back(std::move(entry)); }
  void flush(actor::Context& ctx);
  void clear() { entries_.clear(); }  // a new life: what was not sent is nobody's

  bool full() const { return in_flight_ >= kMost; }
  uint32_t in_flight() const { return in_flight_; }
  size_t waiting() const { return entries_.size(); }

 private:
  base::Task<void> deliver(actor::Context& ctx, proto::TokenOut message);

  Owner& owner_;
  std::vector<proto::TokenEntry> entries_;
  uint32_t in_flight_ = 0;
};

}  // namespace decode
