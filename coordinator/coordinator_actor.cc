#include "coordinator/coordinator_actor.h"

#include <algorithm>
#include <utility>

#include "coordinator/block_keys.h"
#include "coordinator/stage_layers.h"

namespace coordinator {

using actor::Address;
using actor::Context;
using actor::Incoming;
using base::Level;
using std::chrono::milliseconds;

namespace {

constexpr uint32_t kRanksMost = 256;  // of decode; they may join a running cluster

constexpr size_t kEndpointBytes = 1000;

uint32_t context_of(const CoordinatorOptions& options) {
  const uint32_t limit = options.config.max_context;
  return limit == 0 ? options.shape.max_context : std::min(limit, options.shape.max_context);
}

// A node is back well within this, or it will not be soon.
constexpr std::chrono::seconds kFailover{10};

uint16_t actor_of(proto::Role role) { return static_cast<uint16_t>(role); }

}  // namespace

CoordinatorActor::CoordinatorActor(CoordinatorOptions options) : options_(std::move(options)) {}

void CoordinatorActor::start(Context& ctx) {
  ctx_ = &ctx;
  ctx.set_log_node("coordinator");
  whole_at_ = ctx.now();
  const uint64_t life = ctx.random() | 1;

  MembershipOptions membership;
  membership.stages = options_.config.prefill_stages;
  membership.sequence_ranks = options_.config.sequence_parallel;
  membership.ranks = options_.config.decode_ranks;
  membership.ranks_most = kRanksMost;
  membership.stores = options_.config.kvstore_nodes;
  const StageDivision division =
      divide_layers(stage_costs(options_.shape), options_.config.prefill_stages);
  membership.stage_layers = division.stages;
  planned_imbalance_ = division.imbalance;
  membership.heartbeat_ms = options_.config.heartbeat_ms;
  membership.misses = options_.config.heartbeat_misses;
  membership.model = options_.shape.model_digest;
  membership.layout = options_.shape.layout_digest;
  membership.arithmetic = options_.shape.arithmetic_digest;
  membership.coordinator_life = life;
  membership_.emplace(std::move(membership));

  RequestTableOptions requests;
  requests.max_requests = options_.config.max_requests;
  requests.deadline_ms = options_.config.request_deadline_ms;
  requests.vocab = options_.shape.vocab;
  requests.max_context = context_of(options_);
  requests.policy = options_.config.placement;
  requests.kv_row_bytes = options_.shape.kv_row_bytes;
  requests.kv_parallel = options_.config.kv_parallel;
  requests.span = options_.shape.span;
  requests.facts = {options_.shape.eos,
                    block_space(options_.shape.model_digest, options_.shape.layout_digest,
                                options_.shape.arithmetic_digest),
                    options_.config.reserve == "full"};
  requests.coordinator_life = life;
  requests_.emplace(std::move(requests), *membership_, ctx);

  BalanceOptions balance;
  balance.layers = options_.shape.layers;
  balance.experts = options_.shape.experts;
  balance.redundant = options_.config.redundant_experts;
  balance.live = options_.config.eplb == "on";
  balance.interval = milliseconds(options_.config.eplb_interval_ms);
  balance.min_gain = options_.config.eplb_min_gain;
  balance.positions = options_.config.decode_ranks;
  balance_.emplace(balance);
  ctx.spawn(tick());
}

// Several times per heartbeat, so that a death is seen soon after its time.
Task<void> CoordinatorActor::tick() {
  const milliseconds pause(std::clamp(options_.config.heartbeat_ms / 4, 1u, 50u));
  for (;;) {
    Task<void> nap = ctx_->sleep(pause);
    co_await std::move(nap);
    const Membership::Change change = membership_->tick(ctx_->now());
    apply(change);
    if (membership_->missing().empty()) whole_at_ = ctx_->now();
    requests_->tick();
    balance_experts();
  }
}

// --- the experts of the decode ranks

void CoordinatorActor::balance_experts() {
  if (!balance_->on()) return;
  std::vector<NodeId> ready;
  for (const Member* rank : membership_->ready(proto::Role::kDecode)) ready.push_back(rank->node);
  balance_->set_ranks(std::move(ready), ctx_->now());
  if (std::optional<ExpertBalance::Question> question = balance_->due(ctx_->now()))
    ctx_->spawn(plan_experts(std::move(*question)));
  for (const std::string& event : balance_->take_events())
    ctx_->log(Level::kInfo, "expert.plan", {{"what", event}});
  if (!balance_->take_news()) return;
  for (const NodeId rank : balance_->ranks()) tell_plans(rank);
}

Task<void> CoordinatorActor::plan_experts(ExpertBalance::Question question) {
  ExpertBalance::Answer answer;
  std::function<void()> job = [&question, &answer] { answer = ExpertBalance::compute(question); };
  Task<void> run = ctx_->offload(std::move(job));
  co_await std::move(run);
  balance_->planned(question, std::move(answer), ctx_->now());
  balance_experts();
}

void CoordinatorActor::tell_plans(NodeId rank) {
  for (ExpertBalance::Owed& owed : balance_->owed(rank)) {
    ctx_->send(Address{rank, proto::kDecode}, owed.message, std::move(owed.blobs));
  }
}

void CoordinatorActor::on(Context& ctx, const Incoming<proto::ExpertReport>& in) {
  const Member* member = membership_->find(in.from.node);
  if (member == nullptr || member->role != proto::Role::kDecode) return;
  if (!balance_->report(in, ctx.now())) {
    ctx.log(Level::kWarn, "expert.report.corrupt", {{"name", member->name}});
    return;
  }
  tell_plans(in.from.node);
  balance_experts();
}

void CoordinatorActor::apply(const Membership::Change& change) {
  Context& ctx = *ctx_;
  for (const Member& member : change.died) {
    ctx.log(Level::kWarn, "node.dead",
            {{"name", member.name},
             {"node", member.node.value},
             {"role", role_name(member.role)},
             {"position", member.position},
             {"epoch", membership_->epoch()}});
  }
  if (change.epoch_raised) {
    const proto::ClusterView view = membership_->view();
    for (const auto& [id, member] : membership_->members()) {
      ctx.send(Address{id, actor_of(member.role)}, view);
    }
  }
  for (const Member& member : change.died) {
    // Calls to it fail now; it stays linked for a while so that it can be told.
    ctx.unlink(member.node);
    ctx.link(member.node, member.endpoint);
  }
  for (NodeId node : change.unlink) ctx.unlink(node);
  for (const Member& member : change.died) requests_->node_gone(member.node);
  if (change.epoch_raised) requests_->pump();
}

void CoordinatorActor::peer_down(Context& ctx, NodeId node) {
  ctx.log(Level::kDebug, "node.connection_down", {{"node", node.value}});
  membership_->connection_down(node);
}

void CoordinatorActor::on(Context& ctx, const Incoming<proto::Hello>& in) {
  const NodeId from = in.from.node;
  if (!from || from == proto::kCoordinatorNode || in->endpoint.size() > kEndpointBytes) {
    ctx.log(Level::kWarn, "node.nonsense", {{"node", from.value}});
    return;
  }
  const bool known = membership_->find(from) != nullptr;
  if (!known && !in->endpoint.empty()) ctx.link(from, in->endpoint);
  const Membership::HelloAnswer answer = membership_->hello(from, in.msg, ctx.now());
  ctx.reply(in, answer.reply);
  using Verdict = proto::HelloReply::Verdict;
  if (answer.reply.verdict == Verdict::kRefused) {
    ctx.log(Level::kWarn, "node.refused",
            {{"name", in->name}, {"node", from.value}, {"why", answer.reply.reason}});
  } else if (answer.reply.verdict == Verdict::kWelcome && !known) {
    ctx.log(Level::kInfo, "node.joined",
            {{"name", in->name},
             {"node", from.value},
             {"role", role_name(in->role)},
             {"position", answer.reply.position},
             {"version", in->version},
             {"epoch", membership_->epoch()}});
  }
  apply(answer.change);
}

void CoordinatorActor::on(Context& ctx, const Incoming<proto::Heartbeat>& in) {
  const NodeId from = in.from.node;
  const Membership::BeatAnswer answer = membership_->heartbeat(from, in.msg, ctx.now());
  ctx.reply(in, answer.reply);
  if (answer.send_view) ctx.send(in.from, membership_->view());
  if (answer.change.epoch_raised) {
    const Member* member = membership_->find(from);
    ctx.log(Level::kInfo, "node.state",
            {{"name", member->name},
             {"state", state_name(member->state())},
             {"epoch", membership_->epoch()}});
  }
  apply(answer.change);
}

void CoordinatorActor::on(Context& ctx, const Incoming<proto::TokenOut>& in) {
  const proto::TokenAck ack = requests_->tokens(in.from.node, in.msg);
  ctx.reply(in, ack);
}

void CoordinatorActor::on(Context& ctx, const Incoming<proto::AttemptFailed>& in) {
  const proto::Done done = requests_->attempt_failed(in.from.node, in.msg);
  ctx.reply(in, done);
}

// A request that arrives in a failover waits for it to end; one that arrives when the cluster has
// not been whole for longer than that is refused, so that its client may try elsewhere.
RequestId CoordinatorActor::submit(Submission submission, std::unique_ptr<TokenSink> sink) {
  const std::vector<std::string> missing = membership_->missing();
  if (!missing.empty() && ctx_->now() - whole_at_ > kFailover) {
    const base::Error error{base::Code::kUnavailable,
                            fmt::format("the cluster is not ready: {}", missing.front())};
    sink->end(base::FinishReason::kError, &error, Usage{});
    return RequestId{};
  }
  return requests_->submit(std::move(submission), std::move(sink));
}

void CoordinatorActor::cancel(RequestId request) { requests_->cancel(request); }

void CoordinatorActor::drain() {
  ctx_->log(Level::kInfo, "coordinator.draining", {{"running", requests_->running()}});
  requests_->drain();
}

}  // namespace coordinator
