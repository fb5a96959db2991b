// How a decode rank leaves a running cluster: by SIGTERM, in a rolling restart or when the cluster
// shrinks. It tells the coordinator, which places nothing here any more; the view tells the other
// ranks, which take over its experts; the sequences that are here end here. Those that have not by
// config_.leave_within move, as after a death but without its silence. A rank whose coordinator is
// gone stops at once: nobody takes its tokens.
#include "decode_node/decode_actor.h"

namespace decode {

namespace {

constexpr base::Duration kLook = std::chrono::milliseconds(20);
// In which every rank has heard that this one takes no experts' rows any more.
constexpr base::Duration kLinger = std::chrono::milliseconds(500);
constexpr base::Duration kReports = std::chrono::seconds(2);

}  // namespace

void DecodeActor::leave(Context& ctx) {
  if (leaving_) return;
  leaving_ = true;
  ctx.log(base::Level::kInfo, "rank.leaving",
          {{"running", table_.running()}, {"reserved", table_.reservations()}});
  if (!engine_ || !positioned_) return ctx.stop(0);
  membership_.draining(ctx);
  ctx.spawn(finish(ctx));
}

void DecodeActor::peer_down(Context&, NodeId node) {
  if (node == proto::kCoordinatorNode) coordinator_lost_ = true;
}

// For anybody: sequences, shares of others', tokens on their way, blocks for the stores, rows.
bool DecodeActor::serves() const {
  return table_.size() > 0 || outbox_.in_flight() > 0 || outbox_.waiting() > 0 ||
         offers_.pending() > 0 || service_.computing() > 0 || shards_.size() > 0;
}

Task<void> DecodeActor::finish(Context& ctx) {
  const base::Time heard_by_all = ctx.now() + kLinger;
  const base::Time until = ctx.now() + config_.leave_within;
  const auto wait = [&] {
    const bool done = !serves() && ctx.now() >= heard_by_all;
    return !done && !coordinator_lost_ && ctx.now() < until;
  };
  while (wait()) {
    Task<void> pause = ctx.sleep(kLook);
    co_await std::move(pause);
  }
  const std::vector<Sequence*> left = table_.expired(base::Time::max()).overdue;  // all that live
  for (Sequence* sequence : left)
    fail_attempt(ctx, *sequence, base::Code::kUnavailable, "the decode rank leaves the cluster");
  const base::Time told = ctx.now() + kReports;
  while (reports_ > 0 && !coordinator_lost_ && ctx.now() < told) {
    Task<void> pause = ctx.sleep(kLook);
    co_await std::move(pause);
  }
  ctx.log(base::Level::kInfo, "rank.left", {{"moved", left.size()}});
  ctx.stop(0);
}

}  // namespace decode
