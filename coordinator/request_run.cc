#include "coordinator/request_run.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "coordinator/admission.h"
#include "coordinator/block_keys.h"
#include "model/kv_pool.h"
#include "model/sampler.h"

namespace coordinator {

using base::Code;
using base::Duration;
using base::FinishReason;
using base::Level;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

constexpr uint32_t kAttempts = 20;  // docs/PROTOCOL.md "A request"
constexpr Duration kBackoffLeast = milliseconds(20), kBackoffMost = seconds(1);
constexpr milliseconds kLeaseMost = seconds(120);
// Attempts that may fail for a missing or bad entry: the stores have dropped a bad one, and one
// that died is out of the view. What fails again is computed.
constexpr uint32_t kCacheFailures = 2;

// So often a request gives way to others before it goes before them all.
constexpr uint32_t kPreemptionsMost = 4;
// Blocks beyond those of its tokens that a sequence needs to start, as ranks count
// (decode_node/sequence_table.h). An estimate: the rank decides.
constexpr uint32_t kTokensAhead = model::kBlockTokens;

// A failure that says the arithmetic went wrong on a rank: not finite, or a broken promise there.
bool is_numerical(const proto::AttemptFailed& message) {
  return message.code == static_cast<uint16_t>(Code::kInternal) ||
         std::string_view(message.what).find("numerical_error") != std::string_view::npos;
}

Code code_of(uint16_t number) {
  const bool known = number >= static_cast<uint16_t>(Code::kInternal) &&
                     number <= static_cast<uint16_t>(Code::kContextLength);
  return known ? static_cast<Code>(number) : Code::kInternal;
}

// The first failover is immediate; what fails again and again is given time.
Duration backoff(uint32_t failures) {
  if (failures < 2) return Duration{0};
  Duration wait = kBackoffLeast;
  for (uint32_t i = 2; i < failures && wait < kBackoffMost; ++i) wait *= 2;
  return std::min(wait, kBackoffMost);
}

std::vector<base::TokenLogprobs> logprobs_of(const proto::TokenEntry& entry) {
  std::vector<base::TokenLogprobs> logprobs;
  logprobs.reserve(entry.logprobs.size());
  for (const proto::LogprobFields& one : entry.logprobs) {
    logprobs.push_back({one.logprob, one.top});
  }
  return logprobs;
}

}  // namespace

RequestRun::RequestRun(RunServices& services, const RunFacts& facts, RunStart start)
    : services_(services),
      facts_(facts),
      id_(start.id),
      arrival_(start.arrival),
      submission_(std::move(start.submission)),
      block_root_(block_root(facts.space, submission_.salt)),
      submitted_(start.submitted),
      deadline_(start.deadline),
      sink_(std::move(start.sink)),
      log_(submission_.sampling.max_tokens) {}

// ------------------------------------------------------------------------------------ the line

Task<void> RequestRun::run() {
  while (!over()) {
    co_await find_place();
    if (going()) co_await look_up();
    if (going()) co_await reserve();
    if (going()) co_await start_prefill();
    while (going()) co_await event();
    if (!over()) co_await recover();
  }
  end();
}

Task<void> RequestRun::find_place() {
  const uint32_t number = attempt_.number + 1;
  attempt_ = Attempt{};
  attempt_.number = number;
  log_.drop_waiting();
  tokens_ = submission_.prompt;
  tokens_.insert(tokens_.end(), log_.emitted().begin(), log_.emitted().end());
  block_keys_ = block_keys(block_root_, tokens_);
  services_.wants_place(*this);
  while (!over() && !attempt_.placement) co_await event();
}

Task<void> RequestRun::look_up() {
  const uint32_t blocks = cacheable_blocks(tokens_.size());
  if (cache_failures_ < kCacheFailures && blocks > 0) {
    ask_stores(blocks);
    while (going() && !attempt_.plan->complete()) co_await event();
    if (!going()) co_return;
    attempt_.cached_blocks = services_.worth_loading(attempt_.plan->blocks(), *attempt_.placement);
  }
  if (!log_.emitted().empty()) co_return;
  const uint32_t cached = attempt_.cached_blocks * model::kBlockTokens;
  cached_tokens_ = std::min(cached_tokens_.value_or(cached), cached);
}

void RequestRun::ask_stores(uint32_t blocks) {
  StorePlan::Facts facts;
  facts.root = block_root_;
  facts.keys.assign(block_keys_.begin(), block_keys_.begin() + blocks);
  facts.tokens = tokens_;
  facts.turn = arrival_;
  const std::vector<size_t> copies = services_.copies(facts.keys);
  attempt_.plan.emplace(facts, services_.stores(), copies);
  const uint64_t lease_ms = std::min(deadline_ms(), static_cast<uint64_t>(kLeaseMost.count()));
  StorePlan::Questions questions = attempt_.plan->take_questions();
  for (auto& [store, message] : questions) {
    message.request = id_;
    message.attempt = attempt_.number;
    message.lease_ms = static_cast<uint32_t>(lease_ms);
    attempt_.leases.push_back(store);
    services_.context().spawn(ask_store(services_, store, std::move(message)));
  }
}

Task<void> RequestRun::reserve() {
  proto::ReserveKv message;
  message.request = id_;
  message.attempt = attempt_.number;
  message.tokens = tokens_;
  message.prompt_tokens = static_cast<uint32_t>(submission_.prompt.size());
  message.sampling = proto::to_wire(submission_.sampling);
  message.deadline_ms = deadline_ms();
  message.block_root = block_root_;
  message.space = facts_.space;
  for (const PlacedShare& share : attempt_.placement->shares)
    attempt_.shares.push_back({share.node, share.begin, share.end, /*credits=*/0});
  message.shares = attempt_.shares;
  message.priority = priority();
  message.whole = facts_.reserve_whole;
  attempt_.reserve_asked = true;
  Task<void> ask = ask_rank(services_, attempt_.placement->decode, std::move(message));
  services_.context().spawn(std::move(ask));
  ask_holders();
  while (going() && !reserved()) co_await event();
  if (!going()) co_return;
  if (attempts_ == 0) services_.latencies().queue.add(services_.context().now() - submitted_);
  ++attempts_;
  ++services_.counters().attempts;
  if (std::exchange(resumes_, false)) ++services_.counters().resumed;
}

Task<void> RequestRun::start_prefill() {
  proto::StartPrefill message;
  message.request = id_;
  message.attempt = attempt_.number;
  message.tokens = tokens_;
  message.prompt_tokens = static_cast<uint32_t>(submission_.prompt.size());
  message.sampling = proto::to_wire(submission_.sampling);
  message.stages = attempt_.placement->stages;
  message.sequence_ranks = attempt_.placement->sequence_ranks;
  message.decode = attempt_.placement->decode;
  message.credits = *attempt_.credits;
  message.shares = attempt_.shares;
  message.cached_blocks = attempt_.cached_blocks;
  message.held_blocks = attempt_.held_blocks;
  message.block_keys = block_keys_;
  message.block_root = block_root_;
  message.space = facts_.space;
  if (attempt_.cached_blocks > 0) {
    message.sources = attempt_.plan->sources(attempt_.cached_blocks);
    message.copy_to = attempt_.plan->copy_to(attempt_.cached_blocks);
  }
  attempt_.plan.reset();
  message.deadline_ms = deadline_ms();
  attempt_.prefill_asked = true;
  attempt_.starts_open = static_cast<uint32_t>(message.stages.size());
  for (NodeId stage : message.stages) {
    Task<void> ask = ask_stage(services_, stage, message);
    services_.context().spawn(std::move(ask));
  }
  while (going() && attempt_.starts_open > 0) co_await event();
  if (going()) services_.started(*this);
}

Task<void> RequestRun::recover() {
  const Failure failure = *attempt_.failure;
  const Level level =
      failure.no_room ? Level::kDebug : (failure.preempted ? Level::kInfo : Level::kWarn);
  services_.context().log(level, "attempt.failed",
                          {{"request", id_.value},
                           {"attempt", attempt_.number},
                           {"emitted", log_.emitted().size()},
                           {"why", base::to_string(failure.error)}});
  abandon_attempt();
  // The end may be known though its message was lost with the rank.
  const FinishReason reason = model::finish_after(log_.emitted(), facts_.eos, submission_.sampling);
  if (reason != FinishReason::kNone) {
    log_.finish(reason);
    co_return;
  }
  judge(failure);
  if (over() || failure.no_room || failure.preempted) co_return;
  const Duration wait = backoff(failures_);
  if (wait == Duration{0}) co_return;
  const Time until = services_.context().now() + wait;
  Task<void> alarm = wake_later(services_, id_, wait);
  services_.context().spawn(std::move(alarm));
  while (!over() && services_.context().now() < until) co_await event();
}

// What a failure means for the attempts to come.
void RequestRun::judge(const Failure& failure) {
  avoid_.clear();
  if (failure.node) avoid_.push_back(failure.node);
  if (failure.no_room) {
    ++services_.counters().no_room;
    services_.no_room();
    return;
  }
  if (failure.preempted) {
    ++preemptions_;
    ++services_.counters().preemptions;
    resumes_ = true;
    return;
  }
  ++failures_;
  ++services_.counters().failovers;
  if (failure.without_cache) ++cache_failures_;
  if (failure.error.code == Code::kUnsupported) {  // of the request, on every rank
    error_ = failure.error;
  } else if (failure.numerical && ++numerical_failures_ > 1) {
    error_ =
        base::Error{Code::kInternal, "the model's arithmetic failed twice: " + failure.error.what};
  } else if (failures_ >= kAttempts) {
    error_ = base::Error{Code::kUnavailable, fmt::format("{} attempts have failed, the last: {}",
                                                         failures_, failure.error.what)};
  }
}

void RequestRun::end() {
  const FinishReason finished = log_.finished();
  if (finished == FinishReason::kNone) {
    abandon_attempt();
  } else if (!attempt_.over) {
    attempt_.over = true;
    release_leases();
    release_holders();
    services_.give_back(*this, attempt_.placement);
  }
  const std::unique_ptr<RequestRun> self = services_.remove(id_);
  RequestCounters& counters = services_.counters();
  const char* how = "error";
  if (cancelled_) {
    ++counters.cancelled;
    how = "cancelled";
  } else if (finished == FinishReason::kStop) {
    ++counters.finished_stop;
    how = "stop";
  } else if (finished == FinishReason::kLength) {
    ++counters.finished_length;
    how = "length";
  } else {
    ++counters.failed;
  }
  services_.context().log(Level::kInfo, "request.ended",
                          {{"request", id_.value},
                           {"how", how},
                           {"prompt", submission_.prompt.size()},
                           {"emitted", log_.emitted().size()},
                           {"attempts", attempts_}});
  if (cancelled_) return;
  Usage usage;
  usage.prompt_tokens = static_cast<uint32_t>(submission_.prompt.size());
  usage.completion_tokens = static_cast<uint32_t>(log_.emitted().size());
  usage.cached_tokens = cached_tokens_.value_or(0);
  counters.cached_tokens += usage.cached_tokens;
  usage.attempts = attempts_;
  if (finished != FinishReason::kNone) {
    services_.latencies().request.add(services_.context().now() - submitted_);
    sink_->end(finished, nullptr, usage);
  } else {
    CHECK(error_.has_value(), "request {} ends without a reason", id_.value);
    sink_->end(FinishReason::kError, &*error_, usage);
  }
}

// -------------------------------------------------------------------------------------- events

void RequestRun::placed(Placement placement) {
  attempt_.placement = std::move(placement);
  wake();
}

void RequestRun::refuse(base::Error error) {
  if (!over()) error_ = std::move(error);
  wake();
}

void RequestRun::cancel() {
  cancelled_ = true;
  if (taking_) return;  // a sink asks while it is called; settle() follows
  sink_.reset();
  wake();
}

void RequestRun::node_gone(NodeId node) {
  if (!attempt_.placement || !going()) return;
  std::erase(attempt_.leases, node);
  if (!is_rank(node) && (!is_stage(node) || attempt_.token_seen)) return;
  Failure failure;
  failure.error = base::Error{
      Code::kPeerGone, fmt::format("the {} died", is_decode(node) ? "decode rank"
                                                  : is_rank(node) ? "holder of a share of its KV"
                                                                  : "prefill stage")};
  fail_attempt(std::move(failure));
  wake();
}

bool RequestRun::attempt_failed(NodeId from, const proto::AttemptFailed& message) {
  if (message.attempt != attempt_.number || !attempt_.placement || !going()) return false;
  if (!is_rank(from) && !is_stage(from)) return false;
  if (is_stage(from) && attempt_.token_seen) return true;  // its part was done
  Failure failure;
  failure.error = base::Error{code_of(message.code), message.what};
  failure.without_cache = message.without_cache;
  failure.numerical = is_numerical(message);
  failure.preempted = message.preempted && is_rank(from);
  if (is_rank(from) && !failure.preempted) {
    failure.node = is_rank(message.blamed) ? message.blamed : from;
  }
  if (is_stage(from) && is_rank(message.blamed)) {
    failure.node = message.blamed;
    services_.cut_off(message.blamed);
  }
  fail_attempt(std::move(failure));
  wake();
  return true;
}

bool RequestRun::token(NodeId from, const proto::TokenEntry& entry) {
  if (entry.attempt != attempt_.number || !attempt_.placement || !going()) return false;
  if (!is_decode(from)) return false;
  taking_ = true;
  take(from, entry);
  taking_ = false;
  return true;
}

void RequestRun::take(NodeId from, const proto::TokenEntry& entry) {
  if (!log_.accept(entry.index, entry.tokens, logprobs_of(entry), entry.finish)) {
    ++services_.counters().malformed_entries;
    Failure failure;
    failure.node = from;
    failure.error = base::Error{Code::kCorrupt, "the decode rank sent tokens beyond the limit"};
    fail_attempt(std::move(failure));
    return;
  }
  if (!attempt_.token_seen && log_.emitted().size() > delivered_) {
    attempt_.token_seen = true;
    release_leases();
    services_.prefilled(*this);
  }
  if (!cancelled_) deliver();
}

void RequestRun::settle() {
  if (going()) return;
  if (cancelled_) sink_.reset();
  wake();
}

// -------------------------------------------------------------------------------------- pieces

bool RequestRun::over() const {
  return cancelled_ || error_.has_value() || log_.finished() != FinishReason::kNone;
}

bool RequestRun::going() const { return !over() && !attempt_.over && !attempt_.failure; }

Task<void> RequestRun::event() {
  if (!woken_) {
    base::Slot<bool> slot;
    waiting_ = &slot;
    co_await slot;
  }
  woken_ = false;
}

void RequestRun::wake() {
  woken_ = true;
  if (base::Slot<bool>* slot = std::exchange(waiting_, nullptr)) slot->set(true);
}

void RequestRun::fail_attempt(Failure failure) {
  if (!attempt_.failure) attempt_.failure = std::move(failure);
}

// Frees the attempt everywhere, here included.
void RequestRun::abandon_attempt() {
  if (attempt_.over) return;
  attempt_.over = true;
  release_leases();
  services_.give_back(*this, attempt_.placement);
  if (!attempt_.placement) return;
  if (attempt_.reserve_asked) {
    services_.cancel_at(attempt_.placement->decode, proto::kDecode, id_, attempt_.number);
    release_holders();
  }
  if (!attempt_.prefill_asked) return;
  for (NodeId stage : attempt_.placement->stages) {
    services_.cancel_at(stage, proto::kPrefill, id_, attempt_.number);
  }
}

void RequestRun::release_leases() {
  for (const NodeId store : std::exchange(attempt_.leases, {}))
    services_.release_lease(store, id_, attempt_.number);
}

// Hands new tokens to the sink, which may cancel() from inside.
void RequestRun::deliver() {
  const std::span<const TokenId> fresh = std::span(log_.emitted()).subspan(delivered_);
  if (fresh.empty()) return;
  const Time now = services_.context().now();
  Latencies& latencies = services_.latencies();
  if (delivered_ == 0) {
    latencies.first_token.add(now - submitted_);
  } else {
    const auto count = static_cast<int64_t>(fresh.size());
    latencies.inter_token.add((now - last_token_) / count, static_cast<uint64_t>(count));
  }
  last_token_ = now;
  services_.counters().tokens += fresh.size();
  const std::span<const base::TokenLogprobs> logprobs = log_.logprobs_from(delivered_);
  delivered_ = log_.emitted().size();
  sink_->tokens(fresh, logprobs);
}

int32_t RequestRun::priority() const {
  constexpr int32_t kBeforeAll = std::numeric_limits<int32_t>::min();  // no client may ask for it
  return preemptions_ >= kPreemptionsMost ? kBeforeAll : submission_.priority;
}

uint64_t RequestRun::tokens_most() const {
  return submission_.prompt.size() + submission_.sampling.max_tokens;
}

uint32_t RequestRun::blocks() const {
  if (facts_.reserve_whole || spread()) return longest_blocks();
  const size_t tokens = submission_.prompt.size() + log_.emitted().size();
  return std::min(longest_blocks(), kv_blocks(tokens, kTokensAhead));
}

uint32_t RequestRun::longest_blocks() const { return kv_blocks(tokens_most(), 0); }

uint32_t RequestRun::prefill_blocks() const { return kv_blocks(tokens_.size(), 0); }

uint64_t RequestRun::deadline_ms() const {
  const auto left = deadline_ - services_.context().now();
  const auto ms = std::chrono::duration_cast<milliseconds>(left).count();
  return static_cast<uint64_t>(std::max<int64_t>(ms, 1));
}

bool RequestRun::is_decode(NodeId node) const { return attempt_.placement->decode == node; }

bool RequestRun::is_rank(NodeId node) const {
  return is_decode(node) || attempt_.placement->holds(node);
}

bool RequestRun::is_stage(NodeId node) const {
  const auto& stages = attempt_.placement->stages;
  return std::find(stages.begin(), stages.end(), node) != stages.end();
}

}  // namespace coordinator
