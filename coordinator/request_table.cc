#include "coordinator/request_table.h"

#include <algorithm>

#include "coordinator/admission.h"
#include "model/kv_split.h"

namespace coordinator {

using actor::Address;
using actor::CallOptions;
using base::Code;
using base::Level;
using proto::Outcome;
using proto::Role;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {
constexpr base::Duration kNoRoomPause = milliseconds(50);  // docs/PROTOCOL.md "A request"
// A rank that stages could not reach so often within this time is left alone while there is
// another.
constexpr size_t kCutOffs = 3;
constexpr base::Duration kCutOffWindow = seconds(10);
constexpr uint64_t kCancelsPerRequest = 8;  // open ones, by max_requests; more are left to leases
}  // namespace

RequestTable::RequestTable(RequestTableOptions options, const Membership& membership,
                           actor::Context& ctx)
    : options_(std::move(options)),
      membership_(membership),
      ctx_(ctx),
      policy_(find_policy(options_.policy)) {
  CHECK(policy_ != nullptr, "no placement policy is named {}", options_.policy);
}

// ------------------------------------------------------------------------------------ admission

base::Status RequestTable::may_enter(Submission& submission) const {
  if (draining_) return base::fail(Code::kUnavailable, "the cluster is shutting down");
  if (runs_.size() >= options_.max_requests) {
    return base::fail(Code::kExhausted, "the queue is full: {} requests are running or waiting",
                      runs_.size());
  }
  AdmissionLimits limits;
  limits.vocab = options_.vocab;
  limits.max_context = options_.max_context;
  for (const Member* rank : membership_.ready(Role::kDecode)) {
    const uint64_t tokens = uint64_t{rank->beat.blocks_total} * model::kBlockTokens;
    limits.largest_rank_tokens = std::max(limits.largest_rank_tokens, tokens);
  }
  if (limits.largest_rank_tokens > 0)
    limits.largest_rank_tokens += held_elsewhere(static_cast<uint32_t>(submission.prompt.size()));
  return admit(submission, limits);
}

// Tokens of such a prompt that its owner need not hold.
uint64_t RequestTable::held_elsewhere(uint32_t tokens) const {
  const auto ranks = static_cast<uint32_t>(membership_.ready(Role::kDecode).size());
  if (options_.kv_parallel < 2 || tokens > options_.max_context) return 0;
  const auto shares = model::kv_split(tokens, options_.span, std::min(options_.kv_parallel, ranks));
  return shares.empty() ? 0 : shares.back().end;
}

RequestId RequestTable::next_id() {
  const uint64_t life = options_.coordinator_life & 0xFFFF'FFFFu;
  return RequestId{life << 32 | (++arrivals_ & 0xFFFF'FFFFu)};
}

RequestId RequestTable::submit(Submission submission, std::unique_ptr<TokenSink> sink) {
  if (base::Status status = may_enter(submission); !status) {
    ++counters_.refused;
    ctx_.log(Level::kInfo, "request.refused",
             {{"code", base::name(status.error().code)}, {"prompt", submission.prompt.size()}});
    Usage usage;
    usage.prompt_tokens = static_cast<uint32_t>(submission.prompt.size());
    sink->end(base::FinishReason::kError, &status.error(), usage);
    return {};
  }
  if (!submission.has_seed) submission.sampling.seed = ctx_.random();
  submission.has_seed = true;
  const uint32_t deadline_ms =
      submission.deadline_ms == 0 ? options_.deadline_ms : submission.deadline_ms;
  RunStart start;
  start.id = next_id();
  start.arrival = arrivals_;
  start.sink = std::move(sink);
  start.submitted = ctx_.now();
  start.deadline = ctx_.now() + milliseconds(deadline_ms);
  ++counters_.admitted;
  counters_.prompt_tokens += submission.prompt.size();
  ctx_.log(Level::kInfo, "request.admitted",
           {{"request", start.id.value},
            {"prompt", submission.prompt.size()},
            {"max_tokens", submission.sampling.max_tokens},
            {"seed", submission.sampling.seed}});
  start.submission = std::move(submission);
  const RequestId id = start.id;
  auto run = std::make_unique<RequestRun>(*this, options_.facts, std::move(start));
  RequestRun& live = *run;
  runs_.emplace(id, std::move(run));
  ctx_.spawn(live.run());
  return id;
}

// --------------------------------------------------------------------------------------- events

RequestRun* RequestTable::find(RequestId request) {
  const auto it = runs_.find(request);
  return it == runs_.end() ? nullptr : it->second.get();
}

void RequestTable::cancel(RequestId request) {
  if (RequestRun* run = find(request)) run->cancel();
}

void RequestTable::node_gone(NodeId node) {
  cut_off_.erase(node);
  std::vector<RequestId> ids;
  for (const auto& [id, run] : runs_) ids.push_back(id);
  for (RequestId id : ids) {
    if (RequestRun* run = find(id)) run->node_gone(node);
  }
}

proto::Done RequestTable::attempt_failed(NodeId from, const proto::AttemptFailed& message) {
  proto::Done done;
  RequestRun* run = find(message.request);
  if (run == nullptr || !run->attempt_failed(from, message)) done.outcome = Outcome::kStale;
  return done;
}

proto::TokenAck RequestTable::tokens(NodeId from, const proto::TokenOut& message) {
  proto::TokenAck ack;
  for (const proto::TokenEntry& entry : message.entries) {
    RequestRun* run = find(entry.request);
    const uint32_t held = run != nullptr ? run->blocks() : 0;
    if (run == nullptr || !run->token(from, entry)) {
      ++counters_.stale_entries;
      ack.stale.push_back(entry.request);
      continue;
    }
    promised_.at(from).blocks += run->blocks() - held;  // its answer has grown
    run->settle();
  }
  return ack;
}

base::Error RequestTable::late(const RequestRun& run) const {
  const std::vector<std::string> missing = membership_.missing();
  if (!run.started() && !missing.empty()) {
    return {Code::kUnavailable, "the cluster was not ready in time: " + missing.front()};
  }
  return {Code::kDeadline, "the request's deadline has passed"};
}

void RequestTable::tick() {
  std::vector<RequestId> overdue;
  for (const auto& [id, run] : runs_) {
    if (ctx_.now() >= run->deadline()) overdue.push_back(id);
  }
  for (RequestId id : overdue) {
    if (RequestRun* run = find(id)) run->refuse(late(*run));
  }
  pump();
}

// ------------------------------------------------------------------------------------ placement

PlacementView RequestTable::view() const {
  PlacementView view;
  for (uint32_t stage = 0; stage < membership_.options().stages; ++stage) {
    std::vector<StageLoad>& ranks = view.stages.emplace_back();
    for (const Member* member : membership_.ready_in_stage(stage))
      ranks.push_back(StageLoad{member->node, member->beat.blocks_total});
  }
  for (const Member* member : membership_.ready(Role::kDecode)) {
    RankLoad load;
    load.node = member->node;
    load.rank = member->position;
    load.blocks_total = member->beat.blocks_total;
    if (const auto it = promised_.find(member->node); it != promised_.end()) {
      load.requests = it->second.requests;
      load.blocks_held = it->second.blocks;
    }
    view.ranks.push_back(load);
  }
  return view;
}

void RequestTable::pump() {
  if (pumping_) {
    pump_again_ = true;
    return;
  }
  pumping_ = true;
  do {
    pump_again_ = false;
    while (!queue_.empty() && ctx_.now() >= hold_until_) {
      if (one_by_one_ && !starting_.empty()) break;
      if (!place_first()) break;
    }
  } while (pump_again_);
  if (queue_.empty()) one_by_one_ = false;
  pumping_ = false;
}

namespace {
base::Error too_large(const PlacementView& view, const PlacementRequest& request) {
  uint32_t rank = 0;
  for (const RankLoad& load : view.ranks) rank = std::max(rank, load.blocks_total);
  uint32_t stage = UINT32_MAX;
  for (const auto& ranks : view.stages) {
    for (const StageLoad& load : ranks) stage = std::min(stage, load.blocks_total);
  }
  return {Code::kContextLength,
          fmt::format("This request needs {} KV blocks of {} tokens on a decode rank, the largest "
                      "of which has {}, and {} on each prefill stage, the smallest of which has "
                      "{}. Please reduce the length of the messages or completion.",
                      request.longest, model::kBlockTokens, rank, request.prefill_blocks, stage)};
}
}  // namespace

bool RequestTable::place_first() {
  RequestRun* run = find(queue_.first());
  CHECK(run != nullptr, "request {} is queued and unknown", queue_.first().value);
  PlacementRequest request;
  request.blocks = run->blocks();
  request.longest = run->longest_blocks();
  request.prefill_blocks = run->prefill_blocks();
  request.kv_parallel = options_.kv_parallel;
  request.tokens = run->prefill_tokens();
  request.span = options_.span;
  request.turn = turns_;
  request.draw = policy_->draws ? ctx_.random() : 0;
  request.avoid = run->avoid();
  const std::vector<NodeId> others = shunned();
  request.avoid.insert(request.avoid.end(), others.begin(), others.end());
  const PlacementView now = view();
  PlaceAnswer answer = place(now, request, policy_->pick);
  switch (answer.verdict) {
    case PlaceVerdict::kNotReady:
    case PlaceVerdict::kNoRoom:
      return false;
    case PlaceVerdict::kNeverFits: {
      queue_.remove(run->id());
      run->refuse(too_large(now, request));
      return true;
    }
    case PlaceVerdict::kPlaced:
      break;
  }
  queue_.take_first();
  ++turns_;
  const bool spread = !answer.placement.shares.empty();
  const uint32_t all = spread ? request.longest : request.blocks;
  for (const auto& [node, blocks] : answer.placement.promises(all)) {
    Promised& promised = promised_[node];
    ++promised.requests;
    promised.blocks += blocks;
  }
  starting_.insert(run->id());
  run->placed(std::move(answer.placement));
  return true;
}

void RequestTable::wants_place(RequestRun& run) {
  queue_.add({.id = run.id(),
              .arrival = run.arrival(),
              .priority = run.priority(),
              .again = run.again(),
              .tenant = run.tenant(),
              .cost = run.tokens_most()});
  pump();
}

void RequestTable::give_back(RequestRun& run, const std::optional<Placement>& placement) {
  queue_.remove(run.id());
  starting_.erase(run.id());
  if (!placement) return;
  const uint32_t all = placement->shares.empty() ? run.blocks() : run.longest_blocks();
  for (const auto& [node, blocks] : placement->promises(all)) {
    const auto it = promised_.find(node);
    CHECK(it != promised_.end() && it->second.requests > 0 && it->second.blocks >= blocks,
          "request {} gives back what it was not given", run.id().value);
    --it->second.requests;
    it->second.blocks -= blocks;
    if (it->second.requests == 0) promised_.erase(it);
  }
}

void RequestTable::no_room() {
  one_by_one_ = true;
  hold_until_ = ctx_.now() + kNoRoomPause;
}

void RequestTable::started(RequestRun& run) {
  starting_.erase(run.id());
  if (one_by_one_) pump();
}

void RequestTable::prefilled(RequestRun& run) {
  starting_.erase(run.id());
  hold_until_ = {};
  if (one_by_one_) pump();
}

void RequestTable::cut_off(NodeId rank) {
  std::deque<Time>& times = cut_off_[rank];
  times.push_back(ctx_.now());
  if (times.size() > kCutOffs) times.pop_front();
}

std::vector<NodeId> RequestTable::shunned() const {
  std::vector<NodeId> ranks;
  for (const auto& [rank, times] : cut_off_) {
    if (times.size() == kCutOffs && ctx_.now() - times.front() < kCutOffWindow)
      ranks.push_back(rank);
  }
  for (uint32_t stage = 0; stage < membership_.options().stages; ++stage) {
    for (const Member* member : membership_.ready_in_stage(stage))
      ranks.insert(ranks.end(), member->beat.slow_ranks.begin(), member->beat.slow_ranks.end());
  }
  return ranks;
}

std::unique_ptr<RequestRun> RequestTable::remove(RequestId request) {
  auto entry = runs_.extract(request);
  CHECK(!entry.empty(), "request {} ends twice", request.value);
  hold_until_ = {};  // its blocks are free, or will be before the next request asks
  pump();            // the run itself is off the table already
  return std::move(entry.mapped());
}

// ---------------------------------------------------------------------------------- the stores

node::StoreSites RequestTable::stores() {
  node::StoreSites sites;
  for (const Member* store : membership_.ready(Role::kKvstore)) sites.add(store->node, store->name);
  return sites;
}

std::vector<size_t> RequestTable::copies(std::span<const base::Hash128> keys) {
  const size_t stores = membership_.ready(Role::kKvstore).size();
  std::vector<size_t> copies;
  for (size_t first = 0; first < keys.size(); first += base::kBlocksOfGroup)
    copies.push_back(base::copies_of(hot_.use(keys[first], ctx_.now()), stores));
  return copies;
}

uint32_t RequestTable::worth_loading(uint32_t blocks, const Placement& placement) {
  std::vector<LoadCosts> costs;
  for (const NodeId stage : placement.stages) {
    const Member* member = membership_.find(stage);
    if (member == nullptr) continue;  // the attempt ends
    const MembershipOptions& positions = membership_.options();
    const model::LayerRange layers =
        positions.stage_layers[member->position / positions.sequence_ranks];
    LoadCosts& of_stage = costs.emplace_back();
    of_stage.bytes_of_token = uint64_t{layers.count()} * options_.kv_row_bytes;
    of_stage.load_rate = member->beat.load_rate;
    // A rank's own tokens; the ranks of a stage share a chunk evenly.
    of_stage.prefill_rate = member->beat.prefill_rate * placement.sequence_ranks;
  }
  return coordinator::worth_loading(blocks, costs);
}

// --------------------------------------------------------------------------------- small calls

void RequestTable::cancel_at(NodeId node, uint16_t actor, RequestId request, uint32_t attempt) {
  if (membership_.find(node) == nullptr) return;
  if (open_.cancels >= kCancelsPerRequest * options_.max_requests) {
    ++counters_.cancels_dropped;
    return;
  }
  proto::Cancel message;
  message.request = request;
  message.attempt = attempt;
  ctx_.spawn(call_cancel(*this, node, actor, message));
}

Task<void> RequestTable::call_cancel(RequestTable& table, NodeId node, uint16_t actor,
                                     proto::Cancel message) {
  const CallOptions options{"cancel", milliseconds(250), seconds(30)};
  const Address to{node, actor};
  ++table.open_.cancels;
  auto call = table.ctx_.call<proto::Done>(to, message, options);
  auto answer = co_await std::move(call);
  --table.open_.cancels;
  if (!answer && answer.error().code != Code::kPeerGone) {
    table.ctx_.log(Level::kWarn, "cancel.unanswered",
                   {{"request", message.request.value}, {"node", node.value}});
  }
}

void RequestTable::release_lease(NodeId store, RequestId request, uint32_t attempt) {
  if (membership_.find(store) == nullptr) return;
  proto::ReleaseLease message;
  message.request = request;
  message.attempt = attempt;
  ctx_.spawn(call_release(*this, store, message));
}

Task<void> RequestTable::call_release(RequestTable& table, NodeId store,
                                      proto::ReleaseLease message) {
  const CallOptions options{"store.release", milliseconds(250), seconds(30)};
  const Address to{store, proto::kKvstore};
  ++table.open_.releases;
  auto call = table.ctx_.call<proto::Done>(to, message, options);
  auto answer = co_await std::move(call);
  --table.open_.releases;
  if (!answer) {
    table.ctx_.log(Level::kDebug, "lease.left_to_run_out", {{"request", message.request.value}});
  }
}

// --------------------------------------------------------------------------------------- counts

uint32_t RequestTable::running() const {
  return static_cast<uint32_t>(runs_.size() - queue_.size());
}

Ledger RequestTable::ledger() const {
  Ledger ledger;
  ledger.requests = runs_.size();
  ledger.queued = queue_.size();
  for (const auto& [id, run] : runs_) ledger.waiting_tokens += run->log().waiting();
  for (const auto& [node, promised] : promised_) {
    ledger.promised_requests += promised.requests;
    ledger.promised_blocks += promised.blocks;
  }
  ledger.open_asks = open_.asks;
  ledger.open_cancels = open_.cancels;
  ledger.open_releases = open_.releases;
  return ledger;
}

}  // namespace coordinator
