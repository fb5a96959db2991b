// RequestTable: every live request, the queue of those that wait for a place, and what has been
// promised to which rank.
//
// Requests are placed in the order of waiting_queue.h: when the first does not fit, the ones behind
// it wait, so that small requests cannot starve a large one. Normally many are on their way to
// their nodes at once; after a node refused one for lack of room they go one by one, so that a long
// queue costs a full cluster one question per change and not one per request.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/hot_groups.h"
#include "coordinator/load_choice.h"
#include "coordinator/membership.h"
#include "coordinator/request_run.h"
#include "coordinator/waiting_queue.h"

namespace coordinator {

// What must be zero when nothing runs.
struct Ledger {
  uint64_t requests = 0, queued = 0;
  uint64_t waiting_tokens = 0;  // behind gaps
  uint64_t promised_requests = 0, promised_blocks = 0;
  uint64_t open_asks = 0, open_cancels = 0, open_releases = 0;
  bool operator==(const Ledger&) const = default;
};

struct RequestTableOptions {
  uint32_t max_requests = 1024;
  uint32_t deadline_ms = 600'000;
  uint32_t vocab = 0, max_context = 0;
  uint32_t kv_row_bytes = 0;  // of a token in a layer
  std::string policy = "kv_aware";
  uint32_t kv_parallel = 1;  // decode ranks of a sequence, at most
  uint32_t span = 0;         // model::Shape
  RunFacts facts;
  uint64_t coordinator_life = 0;  // the high half of every request id
};

class RequestTable final : public RunServices {
 public:
  RequestTable(RequestTableOptions options, const Membership& membership, actor::Context& ctx);

  // Admits and starts, or ends the sink with the reason and returns no id.
  RequestId submit(Submission submission, std::unique_ptr<TokenSink> sink);
  void cancel(RequestId request);
  void node_gone(NodeId node);
  proto::Done attempt_failed(NodeId from, const proto::AttemptFailed& message);
  proto::TokenAck tokens(NodeId from, const proto::TokenOut& message);
  // Places who can be placed. After every change that may make room or bring a node.
  void pump();
  // Ends what is past its deadline; pumps.
  void tick();
  void drain() { draining_ = true; }

  bool draining() const { return draining_; }
  uint32_t running() const;
  uint32_t waiting() const { return static_cast<uint32_t>(queue_.size()); }
  Ledger ledger() const;
  const RequestCounters& counted() const { return counters_; }
  const Latencies& measured() const { return latencies_; }

  // --- RunServices
  actor::Context& context() override { return ctx_; }
  RequestRun* find(RequestId request) override;
  void wants_place(RequestRun& run) override;
  void give_back(RequestRun& run, const std::optional<Placement>& placement) override;
  void no_room() override;
  void started(RequestRun& run) override;
  void prefilled(RequestRun& run) override;
  void cut_off(NodeId rank) override;
  void cancel_at(NodeId node, uint16_t actor, RequestId request, uint32_t attempt) override;
  void release_lease(NodeId store, RequestId request, uint32_t attempt) override;
  node::StoreSites stores() override;
  std::vector<size_t> copies(std::span<const base::Hash128> keys) override;
  uint32_t worth_loading(uint32_t blocks, const Placement& placement) override;
  RequestCounters& counters() override { return counters_; }
  Latencies& latencies() override { return latencies_; }
  OpenCalls& open_calls() override { return open_; }
  std::unique_ptr<RequestRun> remove(RequestId request) override;

 private:
  struct Promised {
    uint32_t requests = 0;
    uint64_t blocks = 0;
  };
  base::Status may_enter(Submission& submission) const;
  uint64_t held_elsewhere(uint32_t tokens) const;
  PlacementView view() const;
  bool place_first();  // false: it has to wait
  std::vector<NodeId> shunned() const;
  base::Error late(const RequestRun& run) const;
  RequestId next_id();
  static Task<void> call_cancel(RequestTable& table, NodeId node, uint16_t actor,
                                proto::Cancel message);
  static Task<void> call_release(RequestTable& table, NodeId store, proto::ReleaseLease message);

  // Constant after construction.
  const RequestTableOptions options_;
  const Membership& membership_;
  actor::Context& ctx_;
  const PolicyEntry* const policy_;
  // Owned state.
  std::map<RequestId, std::unique_ptr<RequestRun>> runs_;
  WaitingQueue queue_;
  std::map<NodeId, Promised> promised_;  // no zero entries
  uint64_t arrivals_ = 0;
  uint64_t turns_ = 0;
  std::set<RequestId> starting_;  // placed, and not yet taken by all its nodes
  bool one_by_one_ = false;
  Time hold_until_{};
  bool pumping_ = false, pump_again_ = false;
  bool draining_ = false;
  HotGroups hot_;
  std::map<NodeId, std::deque<Time>> cut_off_;  // the last times, at most kCutOffs each
  RequestCounters counters_;
  Latencies latencies_;
  OpenCalls open_;
};

}  // namespace coordinator
