#include "node/membership_client.h"

#include <algorithm>
#include <utility>

namespace node {

namespace {
constexpr base::Duration kSilence = std::chrono::seconds(3);  // of the coordinator, then ask again
constexpr base::Duration kSpareAsksAgain = std::chrono::seconds(1);
constexpr base::Duration kLoadLogEvery = std::chrono::seconds(2);
constexpr int kExitRefused = 3;

uint64_t read_bytes(const proto::Heartbeat& beat) {
  for (const auto& [name, value] : beat.counters)
    if (name == kReadBytes) return static_cast<uint64_t>(value);
  return 0;
}

// "812", of decimal megabytes.
std::string megabytes_per_second(uint64_t bytes, base::Duration over) {
  const double seconds = std::chrono::duration<double>(over).count();
  return fmt::format("{:.0f}", seconds > 0 ? static_cast<double>(bytes) / 1e6 / seconds : 0.0);
}
}  // namespace

std::vector<const proto::ViewNode*> View::ready(proto::Role role) const {
  std::vector<const proto::ViewNode*> found;
  for (const auto& [id, entry] : nodes) {
    if (entry.role == role && entry.state == proto::NodeState::kReady) found.push_back(&entry);
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto* a, const auto* b) { return a->position < b->position; });
  return found;
}

void MembershipClient::start(Context& ctx) {
  ctx.link(proto::kCoordinatorNode, identity_.coordinator);
  begin_life(ctx, /*lost=*/false);
  ctx.spawn(beat(ctx));
}

void MembershipClient::begin_life(Context& ctx, bool lost) {
  ++life_;
  heard_ = ctx.now();
  if (lost) {
    ctx.log(base::Level::kWarn, "membership.life_lost", {{"node", ctx.self().node.value}});
    coordinator_life_ = 0;
    state_ = proto::NodeState::kLoading;
    for (const auto& [id, entry] : view_.nodes) {
      if (id != ctx.self().node && id != proto::kCoordinatorNode) ctx.unlink(id);
    }
    view_ = View{};
    owner_.life_lost(ctx);
    ctx.renew_life();
  }
  ctx.spawn(register_node(ctx, life_));
}

Task<void> MembershipClient::register_node(Context& ctx, uint64_t life) {
  registering_ = true;
  while (life == life_) {
    proto::Hello hello;
    hello.role = identity_.role;
    hello.name = identity_.name;
    hello.endpoint = ctx.endpoint();
    hello.model = identity_.model;
    hello.layout = identity_.layout;
    hello.arithmetic = identity_.arithmetic;
    hello.version = identity_.version;
    hello.pid = identity_.pid;
    const actor::CallOptions options{"hello", std::chrono::milliseconds(250),
                                     std::chrono::seconds(10)};
    auto answer =
        co_await ctx.call<proto::HelloReply>(coordinator_address(), std::move(hello), options);
    if (life != life_) co_return;
    if (!answer) continue;  // the coordinator is away; calling again is all there is to do
    heard_ = ctx.now();
    const proto::HelloReply& reply = answer->msg;
    using Verdict = proto::HelloReply::Verdict;
    if (reply.verdict == Verdict::kRefused) {
      ctx.log(base::Level::kError, "membership.refused", {{"why", reply.reason}});
      ctx.stop(kExitRefused);
      co_return;
    }
    if (reply.verdict == Verdict::kNewLife) {
      registering_ = false;
      begin_life(ctx, /*lost=*/true);
      co_return;
    }
    if (reply.verdict == Verdict::kNoPosition) {
      co_await ctx.sleep(kSpareAsksAgain);
      continue;
    }
    registering_ = false;
    heartbeat_ms_ = std::max(reply.heartbeat_ms, 10u);
    const bool first = coordinator_life_ == 0;
    if (!first && reply.coordinator_life != coordinator_life_) {  // a new coordinator
      begin_life(ctx, /*lost=*/true);
      co_return;
    }
    coordinator_life_ = reply.coordinator_life;
    if (first) {
      ctx.log(base::Level::kInfo, "membership.welcomed",
              {{"position", reply.position}, {"of", reply.positions}});
      load_begun_ = load_logged_ = ctx.now();
      load_first_ = load_bytes_ = read_so_far();
      owner_.welcomed(ctx, reply);
    }
    co_return;
  }
}

void MembershipClient::on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) {
  if (in.from.node != proto::kCoordinatorNode || registering_) return;
  heard_ = ctx.now();
  if (!in->known || in->coordinator_life != coordinator_life_) begin_life(ctx, /*lost=*/true);
}

void MembershipClient::on(Context& ctx, const Incoming<proto::ClusterView>& in) {
  if (in.from.node != proto::kCoordinatorNode) return;
  if (in->coordinator_life != coordinator_life_ || in->epoch <= view_.epoch) return;
  heard_ = ctx.now();
  View next;
  next.epoch = in->epoch;
  for (const proto::ViewNode& entry : in->nodes) next.nodes[entry.node] = entry;
  std::vector<NodeId> gone;
  for (const auto& [id, entry] : view_.nodes) {
    if (!next.has(id)) gone.push_back(id);
  }
  for (const auto& [id, entry] : next.nodes) {
    const bool other = id != ctx.self().node && id != proto::kCoordinatorNode;
    if (other && !view_.has(id)) ctx.link(id, entry.endpoint);
  }
  view_ = std::move(next);
  for (NodeId id : gone) {
    if (id != proto::kCoordinatorNode) ctx.unlink(id);  // pending calls to it fail now
  }
  ctx.log(base::Level::kInfo, "membership.view",
          {{"epoch", view_.epoch}, {"nodes", view_.nodes.size()}});
  owner_.view_changed(ctx, view_);
}

void MembershipClient::ready(Context& ctx) {
  state_ = proto::NodeState::kReady;
  load_percent_ = 100;
  if (const uint64_t bytes = read_so_far() - load_first_; bytes > 0) {
    const base::Duration took = ctx.now() - load_begun_;
    ctx.log(base::Level::kInfo, "model.loaded",
            {{"mb", bytes / 1'000'000}, {"mb_per_s", megabytes_per_second(bytes, took)}});
  }
  send_beat(ctx);
}

void MembershipClient::draining(Context& ctx) {
  state_ = proto::NodeState::kDraining;
  send_beat(ctx);
}

uint64_t MembershipClient::read_so_far() const {
  proto::Heartbeat beat;
  owner_.fill(beat);
  return read_bytes(beat);
}

void MembershipClient::send_beat(Context& ctx) {
  proto::Heartbeat beat;
  beat.state = state_;
  beat.progress = progress_;
  beat.view_epoch = view_.epoch;
  beat.load_percent = load_percent_;
  owner_.fill(beat);
  if (state_ == proto::NodeState::kLoading) log_load(ctx, beat);
  ctx.send(coordinator_address(), beat);
}

// A line every two seconds, and how fast these went.
void MembershipClient::log_load(Context& ctx, const proto::Heartbeat& beat) {
  const base::Duration since = ctx.now() - load_logged_;
  if (since < kLoadLogEvery) return;
  const uint64_t bytes = read_bytes(beat);
  ctx.log(base::Level::kInfo, "model.loading",
          {{"percent", beat.load_percent},
           {"mb", bytes / 1'000'000},
           {"mb_per_s", megabytes_per_second(bytes - load_bytes_, since)}});
  load_logged_ = ctx.now();
  load_bytes_ = bytes;
}

Task<void> MembershipClient::beat(Context& ctx) {
  for (;;) {
    co_await ctx.sleep(std::chrono::milliseconds(heartbeat_ms_));
    ++progress_;
    if (coordinator_life_ == 0) continue;  // nobody yet
    send_beat(ctx);
    if (!registering_ && ctx.now() - heard_ > kSilence) {
      heard_ = ctx.now();
      ctx.spawn(register_node(ctx, life_));
    }
  }
}

}  // namespace node
