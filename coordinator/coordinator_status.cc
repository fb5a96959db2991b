// What people and dashboards see of the coordinator.
#include <algorithm>
#include <iterator>

#include "coordinator/coordinator_actor.h"

namespace coordinator {

namespace {

NodeStatus status_of(const Member& member, Time now) {
  NodeStatus node;
  node.name = member.name;
  node.role = role_name(member.role);
  node.state = state_name(member.state());
  node.endpoint = member.endpoint;
  node.node = member.node.value;
  node.position = member.position;
  node.pid = member.pid;
  node.load_percent = member.beat.load_percent;
  node.running = member.beat.running;
  node.waiting = member.beat.waiting;
  node.blocks_used = member.beat.blocks_used;
  node.blocks_total = member.beat.blocks_total;
  node.heartbeat_age_s = base::seconds(now - member.heard);
  node.counters = member.beat.counters;
  return node;
}

std::string last_name(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path;
  const size_t slash = path.find_last_of('/', end);
  const size_t begin = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(begin, end + 1 - begin);
}

double real(uint64_t count) { return static_cast<double>(count); }

// What the busiest stage has over the mean, in seconds of compute for a token: 0 when all are
// equal.
double stage_imbalance(const Membership& membership) {
  double most = 0, sum = 0;
  uint32_t stages = 0;
  for (const Member* member : membership.ready(proto::Role::kPrefill)) {
    const auto told = [member](std::string_view name) {
      const auto& counters = member->beat.counters;
      const auto found = std::ranges::find(counters, name, &std::pair<std::string, double>::first);
      return found == counters.end() ? 0.0 : found->second;
    };
    const double tokens = told("prefill_tokens_total");
    if (tokens == 0) continue;
    const double cost = told("prefill_busy_seconds_total") / tokens;
    most = std::max(most, cost);
    sum += cost;
    ++stages;
  }
  return sum == 0 ? 0 : most * stages / sum - 1;
}

}  // namespace

ClusterStatus CoordinatorActor::status() const {
  const base::ClusterConfig& config = options_.config;
  ClusterStatus status;
  status.name = config.name;
  status.model =
      config.served_model_name.empty() ? last_name(config.model) : config.served_model_name;
  status.epoch = membership_->epoch();
  status.missing = membership_->missing();
  status.ready = status.missing.empty();
  status.draining = requests_->draining();
  status.running = requests_->running();
  status.waiting = requests_->waiting();

  NodeStatus self;
  self.name = "coordinator";
  self.role = role_name(proto::Role::kCoordinator);
  self.state = status.draining ? "draining" : "ready";
  self.endpoint = ctx_->endpoint();
  self.node = proto::kCoordinatorNode.value;
  self.pid = options_.pid;
  self.load_percent = 100;
  self.running = status.running;
  self.waiting = status.waiting;
  status.nodes.push_back(std::move(self));
  for (const proto::Role role :
       {proto::Role::kPrefill, proto::Role::kDecode, proto::Role::kKvstore}) {
    std::vector<const Member*> members;
    for (const auto& [id, member] : membership_->members()) {
      if (member.role == role) members.push_back(&member);
    }
    std::sort(members.begin(), members.end(),
              [](const Member* a, const Member* b) { return a->position < b->position; });
    for (const Member* member : members) {
      status.nodes.push_back(status_of(*member, ctx_->now()));
    }
  }
  status.counters = counters();
  status.expert_imbalance = balance_->imbalance();
  status.latency = requests_->measured();
  return status;
}

std::vector<std::pair<std::string, double>> CoordinatorActor::counters() const {
  const RequestCounters& c = requests_->counted();
  const Ledger ledger = requests_->ledger();
  std::vector<std::pair<std::string, double>> all{
      {"requests_admitted_total", real(c.admitted)},
      {"requests_refused_total", real(c.refused)},
      {"requests_finished_stop_total", real(c.finished_stop)},
      {"requests_finished_length_total", real(c.finished_length)},
      {"requests_failed_total", real(c.failed)},
      {"requests_cancelled_total", real(c.cancelled)},
      {"attempts_total", real(c.attempts)},
      {"failovers_total", real(c.failovers)},
      {"no_room_total", real(c.no_room)},
      {"preemptions_total", real(c.preemptions)},
      {"resumed_total", real(c.resumed)},
      {"prompt_tokens_total", real(c.prompt_tokens)},
      {"cached_tokens_total", real(c.cached_tokens)},
      {"generation_tokens_total", real(c.tokens)},
      {"stale_entries_total", real(c.stale_entries)},
      {"malformed_entries_total", real(c.malformed_entries)},
      {"cancels_dropped_total", real(c.cancels_dropped)},
      {"node_deaths_total", real(membership_->deaths())},
      {"node_refusals_total", real(membership_->refusals())},
      {"requests_live", real(ledger.requests)},
      {"requests_queued", real(ledger.queued)},
      {"waiting_tokens", real(ledger.waiting_tokens)},
      {"promised_blocks", real(ledger.promised_blocks)},
      {"open_calls", real(ledger.open_asks + ledger.open_cancels + ledger.open_releases)},
      {"view_epoch", real(membership_->epoch())},
      {"prefill_stage_imbalance", stage_imbalance(*membership_)},
      {"prefill_stage_imbalance_planned", planned_imbalance_},
  };
  if (!balance_->on()) return all;
  const BalanceCounters& b = balance_->counters();
  const std::pair<std::string, double> balance[] = {
      {"expert_plan_epoch", real(balance_->epoch())},
      {"expert_plans_total", real(b.plans)},
      {"expert_plans_skipped_total", real(b.skipped)},
      {"expert_plans_aborted_total", real(b.aborted)},
      {"expert_reports_corrupt_total", real(b.corrupt)},
      {"expert_plan_progress", balance_->progress()},
      {"expert_plan_seconds", balance_->prepare_seconds()},
      {"expert_balancedness", balance_->measured()},
      {"expert_balancedness_predicted", balance_->predicted()},
  };
  all.insert(all.end(), std::begin(balance), std::end(balance));
  return all;
}

}  // namespace coordinator
