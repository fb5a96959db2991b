// The calls of a RequestRun: each a coroutine of its own that finds the run again by id when the
// answer comes, so that a run may end while its calls are under way.
#include <algorithm>
#include <utility>

#include "coordinator/request_run.h"

namespace coordinator {

using actor::Address;
using actor::CallOptions;
using base::Code;
using base::Duration;
using proto::Outcome;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

// A lookup is asked once: a lost one costs a cache hit, waiting longer for it would cost more.
constexpr milliseconds kLookup{300};

const char* refusal(Outcome outcome) {
  switch (outcome) {
    case Outcome::kNoRoom:
      return "has no room";
    case Outcome::kStale:
      return "knows a later attempt or an end";
    case Outcome::kUnknown:
      return "does not know the request";
    case Outcome::kCorrupt:
      return "found the message corrupt";
    case Outcome::kOk:
    case Outcome::kMissing:
      break;
  }
  return "gave an answer that has no meaning here";
}

base::Error refusal_error(const char* who, Outcome outcome) {
  return {Code::kUnavailable, fmt::format("the {} {}", who, refusal(outcome))};
}

}  // namespace

RequestRun* RequestRun::waiting_run(RunServices& services, RequestId id, uint32_t attempt) {
  RequestRun* run = services.find(id);
  const bool current = run != nullptr && run->attempt_.number == attempt && run->going();
  return current ? run : nullptr;
}

Task<void> RequestRun::ask_store(RunServices& services, NodeId store, proto::LookupPrefix message) {
  const CallOptions options{"store.lookup", kLookup, kLookup};
  const Address to{store, proto::kKvstore};
  const RequestId id = message.request;
  const uint32_t attempt = message.attempt;
  ++services.open_calls().asks;
  auto call = services.context().call<proto::PrefixFound>(to, std::move(message), options);
  auto answer = co_await std::move(call);
  --services.open_calls().asks;
  // The lease is given back when the attempt needs it no more, whatever was answered: a doubled
  // lookup may find and lease what the first one did not, and the store refuses lookups after their
  // release.
  RequestRun* run = waiting_run(services, id, attempt);
  if (run == nullptr || !run->attempt_.plan) co_return;
  if (answer) {
    run->attempt_.plan->answered(store, answer->msg);
  } else {
    run->attempt_.plan->silent(store);
  }
  run->wake();
}

Task<void> RequestRun::ask_rank(RunServices& services, NodeId rank, proto::ReserveKv message) {
  const CallOptions options{"kv.reserve", milliseconds(250), seconds(5)};
  const Address to{rank, proto::kDecode};
  const RequestId id = message.request;
  const uint32_t attempt = message.attempt;
  ++services.open_calls().asks;
  auto call = services.context().call<proto::KvReserved>(to, std::move(message), options);
  auto answer = co_await std::move(call);
  --services.open_calls().asks;
  const bool ok = answer && answer->msg.outcome == Outcome::kOk;
  RequestRun* run = waiting_run(services, id, attempt);
  if (run == nullptr) {
    // Kept after its Cancel had come and gone.
    if (ok) services.cancel_at(rank, proto::kDecode, id, attempt);
    co_return;
  }
  if (ok) {
    run->attempt_.credits = std::max(answer->msg.credits, 1u);
    run->attempt_.held_blocks = answer->msg.held_blocks;
    run->wake();
    co_return;
  }
  run->reservation_failed(rank, answer ? &*answer : nullptr, answer ? nullptr : &answer.error());
}

Task<void> RequestRun::ask_holder(RunServices& services, NodeId rank, proto::HoldKv message) {
  const CallOptions options{"kv.hold", milliseconds(250), seconds(5)};
  const Address to{rank, proto::kDecode};
  const RequestId id = message.request;
  const uint32_t attempt = message.attempt;
  ++services.open_calls().asks;
  auto call = services.context().call<proto::KvReserved>(to, std::move(message), options);
  auto answer = co_await std::move(call);
  --services.open_calls().asks;
  const bool ok = answer && answer->msg.outcome == Outcome::kOk;
  RequestRun* run = waiting_run(services, id, attempt);
  if (run == nullptr) {
    if (ok) services.cancel_at(rank, proto::kDecode, id, attempt);
    co_return;
  }
  if (!ok) {
    run->reservation_failed(rank, answer ? &*answer : nullptr, answer ? nullptr : &answer.error());
    co_return;
  }
  for (proto::KvShare& share : run->attempt_.shares)
    if (share.node == rank) share.credits = std::max(answer->msg.credits, 1u);
  run->wake();
}

// `answer` or `error`: a rank has refused, or not answered.
void RequestRun::reservation_failed(NodeId rank, const actor::Incoming<proto::KvReserved>* answer,
                                    const base::Error* error) {
  Failure failure;
  failure.node = rank;
  if (answer != nullptr) {
    failure.no_room = answer->msg.outcome == Outcome::kNoRoom;
    failure.error = refusal_error("decode rank", answer->msg.outcome);
    // Nothing was kept, unless others were asked as well.
    if (failure.no_room && attempt_.shares.empty()) attempt_.reserve_asked = false;
  } else {
    failure.error = *error;
  }
  fail_attempt(std::move(failure));
  wake();
}

void RequestRun::ask_holders() {
  for (const proto::KvShare& share : attempt_.shares) {
    proto::HoldKv message;
    message.request = id_;
    message.attempt = attempt_.number;
    message.owner = attempt_.placement->decode;
    message.begin = share.begin;
    message.end = share.end;
    message.deadline_ms = deadline_ms();
    Task<void> ask = ask_holder(services_, share.node, std::move(message));
    services_.context().spawn(std::move(ask));
  }
}

bool RequestRun::reserved() const {
  return attempt_.credits && std::ranges::all_of(attempt_.shares, [](const proto::KvShare& share) {
           return share.credits > 0;
         });
}

// The owner knows by itself when a sequence ends; who holds a share of it is told.
void RequestRun::release_holders() {
  for (const proto::KvShare& share : attempt_.shares)
    services_.cancel_at(share.node, proto::kDecode, id_, attempt_.number);
}

Task<void> RequestRun::ask_stage(RunServices& services, NodeId stage, proto::StartPrefill message) {
  const CallOptions options{"prefill.start", milliseconds(250), seconds(5)};
  const Address to{stage, proto::kPrefill};
  const RequestId id = message.request;
  const uint32_t attempt = message.attempt;
  ++services.open_calls().asks;
  auto call = services.context().call<proto::Done>(to, std::move(message), options);
  auto answer = co_await std::move(call);
  --services.open_calls().asks;
  const bool ok = answer && answer->msg.outcome == Outcome::kOk;
  RequestRun* run = waiting_run(services, id, attempt);
  if (run == nullptr) {
    if (ok) services.cancel_at(stage, proto::kPrefill, id, attempt);
    co_return;
  }
  if (run->attempt_.starts_open > 0) --run->attempt_.starts_open;
  if (!ok && !run->attempt_.token_seen) {
    Failure failure;
    failure.no_room = answer && answer->msg.outcome == Outcome::kNoRoom;
    failure.error = answer ? refusal_error("prefill stage", answer->msg.outcome) : answer.error();
    run->fail_attempt(std::move(failure));
  }
  run->wake();
}

Task<void> RequestRun::wake_later(RunServices& services, RequestId id, Duration after) {
  Task<void> nap = services.context().sleep(after);
  co_await std::move(nap);
  if (RequestRun* run = services.find(id)) run->wake();
}

}  // namespace coordinator
