// RequestRun: one request from admission to its end, over all its attempts.
//
//   place → look up the prefix → reserve KV → start every stage → tokens until the end
//        ↑____________ an attempt failed: cancel it, go on after what was emitted ____|
//
// One coroutine (run) walks this line; what happens meanwhile (answers, tokens, deaths, cancel,
// deadline) sets state and wakes it. It may end, and this object be destroyed, inside any function
// marked "may end".
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actor/context.h"
#include "coordinator/gateway.h"
#include "coordinator/placement.h"
#include "coordinator/store_plan.h"
#include "coordinator/token_log.h"
#include "proto/request.h"
#include "proto/store.h"

namespace coordinator {

using base::Task;
using base::Time;

class RequestRun;

// What happened, over the coordinator's life.
struct RequestCounters {
  uint64_t admitted = 0, refused = 0, cancelled = 0;
  uint64_t finished_stop = 0, finished_length = 0, failed = 0;
  uint64_t attempts = 0, failovers = 0, no_room = 0;
  uint64_t preemptions = 0, resumed = 0;  // attempts that gave way, and that followed one
  uint64_t prompt_tokens = 0, cached_tokens = 0, tokens = 0;
  uint64_t stale_entries = 0, malformed_entries = 0, cancels_dropped = 0;
};
// Calls that have not come home.
struct OpenCalls {
  uint64_t asks = 0, cancels = 0, releases = 0;
};

// The surroundings of a run: RequestTable.
class RunServices {
 public:
  virtual ~RunServices() = default;
  virtual actor::Context& context() = 0;
  virtual RequestRun* find(RequestId request) = 0;
  // Queues the run; answered by placed() or refuse(), perhaps before it returns.
  virtual void wants_place(RequestRun& run) = 0;
  // Takes the run out of the queue and gives back what place() promised to it.
  virtual void give_back(RequestRun& run, const std::optional<Placement>& placement) = 0;
  // A node had no room though the view said so: nobody is placed for a moment, and from then on
  // one by one until the queue is empty.
  virtual void no_room() = 0;
  // Every node of the run's placement has taken it.
  virtual void started(RequestRun& run) = 0;
  // A stage says that this rank does not answer it.
  virtual void cut_off(NodeId rank) = 0;
  // Its stages are free again.
  virtual void prefilled(RequestRun& run) = 0;
  // Tells a node to free all attempts ≤ attempt; nothing when the node has left the view.
  virtual void cancel_at(NodeId node, uint16_t actor, RequestId request, uint32_t attempt) = 0;
  virtual void release_lease(NodeId store, RequestId request, uint32_t attempt) = 0;
  // The kvstores that are ready.
  virtual node::StoreSites stores() = 0;
  // How many stores should hold each group of these blocks; counts them as asked for.
  virtual std::vector<size_t> copies(std::span<const base::Hash128> keys) = 0;
  // How many of these leading blocks are loaded sooner than computed.
  virtual uint32_t worth_loading(uint32_t blocks, const Placement& placement) = 0;
  virtual RequestCounters& counters() = 0;
  virtual Latencies& latencies() = 0;
  virtual OpenCalls& open_calls() = 0;
  // Off the table; the caller owns it.
  virtual std::unique_ptr<RequestRun> remove(RequestId request) = 0;
};

// Constant facts of the cluster that every run needs.
struct RunFacts {
  std::vector<TokenId> eos;
  base::Hash128 space;         // block_space()
  bool reserve_whole = false;  // KV of the longest answer is held from the start
};

struct RunStart {
  RequestId id;
  uint64_t arrival = 0;   // order of admission
  Submission submission;  // admitted: seed and max_tokens are set
  std::unique_ptr<TokenSink> sink;
  Time submitted{}, deadline{};
};

class RequestRun {
 public:
  RequestRun(RunServices& services, const RunFacts& facts, RunStart start);

  Task<void> run();  // spawned once

  // --- events; each may end the run
  void placed(Placement placement);
  void refuse(base::Error error);  // ends it with this error
  void cancel();                   // the sink is destroyed uncalled
  void node_gone(NodeId node);
  // False: not of the current attempt.
  bool attempt_failed(NodeId from, const proto::AttemptFailed& message);
  // False: not of the current attempt. Does not end the run: call settle() when the entry is done.
  bool token(NodeId from, const proto::TokenEntry& entry);
  void settle();  // may end

  RequestId id() const { return id_; }
  uint64_t arrival() const { return arrival_; }
  Time deadline() const { return deadline_; }
  bool started() const { return attempts_ > 0; }      // some attempt had its KV reserved
  bool again() const { return attempt_.number > 1; }  // had a place before
  // Order among waiting requests and on the rank. One that has given way often goes before all.
  int32_t priority() const;
  const std::string& tenant() const { return submission_.tenant; }
  uint64_t tokens_most() const;     // prompt and longest answer
  uint32_t blocks() const;          // on the rank now, or to begin with; grows with the answer
  uint32_t longest_blocks() const;  // that it may come to
  uint32_t prefill_blocks() const;  // of the attempt's tokens
  uint32_t prefill_tokens() const { return static_cast<uint32_t>(tokens_.size()); }
  // Its KV is on several ranks. Then it has blocks for its longest answer from the start: were it
  // to wait for one rank's memory while it holds another's, two such could wait for each other.
  bool spread() const { return attempt_.placement && !attempt_.placement->shares.empty(); }
  const std::vector<NodeId>& avoid() const { return avoid_; }
  const TokenLog& log() const { return log_; }

 private:
  struct Failure {
    base::Error error;
    NodeId node;  // who let us down; 0: nobody in particular
    bool no_room = false;
    bool without_cache = false;
    bool numerical = false;
    bool preempted = false;
  };
  struct Attempt {
    uint32_t number = 0;
    std::optional<Placement> placement;
    bool reserve_asked = false, prefill_asked = false;
    std::optional<StorePlan> plan;       // of a lookup
    std::vector<NodeId> leases;          // stores that may hold one
    uint32_t cached_blocks = 0;          // to be loaded
    std::optional<uint32_t> credits;     // the reservation's answer
    uint32_t held_blocks = 0;            // of it
    std::vector<proto::KvShare> shares;  // as placed; credits 0: not answered
    uint32_t starts_open = 0;            // stages that have not answered
    bool token_seen = false;             // then the stages have done their part
    bool over = false;                   // cancelled, or the request ended
    std::optional<Failure> failure;
  };

  // --- the line
  Task<void> find_place();
  Task<void> look_up();
  Task<void> reserve();
  Task<void> start_prefill();
  Task<void> recover();
  void end();

  // --- calls: coroutines of their own, which find the run again by id when the answer comes
  static Task<void> ask_store(RunServices& services, NodeId store, proto::LookupPrefix message);
  static Task<void> ask_rank(RunServices& services, NodeId rank, proto::ReserveKv message);
  static Task<void> ask_holder(RunServices& services, NodeId rank, proto::HoldKv message);
  static Task<void> ask_stage(RunServices& services, NodeId stage, proto::StartPrefill message);
  static Task<void> wake_later(RunServices& services, RequestId id, base::Duration after);
  static RequestRun* waiting_run(RunServices& services, RequestId id, uint32_t attempt);

  // --- pieces
  bool over() const;   // the request has its end
  bool going() const;  // neither the request nor the attempt has
  Task<void> event();  // until wake()
  void wake();         // may end
  void fail_attempt(Failure failure);
  void abandon_attempt();
  void ask_stores(uint32_t blocks);
  void release_leases();
  void judge(const Failure& failure);
  void take(NodeId from, const proto::TokenEntry& entry);
  void deliver();
  uint64_t deadline_ms() const;
  void ask_holders();
  bool reserved() const;  // by every rank
  void release_holders();
  void reservation_failed(NodeId rank, const actor::Incoming<proto::KvReserved>* answer,
                          const base::Error* error);
  bool is_decode(NodeId node) const;
  bool is_rank(NodeId node) const;  // that one, or the holder of a share
  bool is_stage(NodeId node) const;

  // Constant after construction.
  RunServices& services_;
  const RunFacts& facts_;
  const RequestId id_;
  const uint64_t arrival_;
  const Submission submission_;
  const base::Hash128 block_root_;
  const Time submitted_, deadline_;
  // Owned state.
  std::unique_ptr<TokenSink> sink_;
  TokenLog log_;
  size_t delivered_ = 0;  // tokens the sink has
  Attempt attempt_;
  std::vector<TokenId> tokens_;            // of the attempt: prompt and what was emitted before it
  std::vector<base::Hash128> block_keys_;  // of tokens_
  uint32_t attempts_ = 0;                  // with KV reserved
  uint32_t failures_ = 0, numerical_failures_ = 0;
  uint32_t preemptions_ = 0;
  bool resumes_ = false;  // the attempt follows one that gave way
  uint32_t cache_failures_ = 0;
  std::optional<uint32_t> cached_tokens_;  // the fewest of the attempts up to the first token
  std::vector<NodeId> avoid_;
  bool cancelled_ = false;
  std::optional<base::Error> error_;
  Time last_token_{};
  bool taking_ = false;  // inside token(): cancel() only marks
  bool woken_ = false;
  base::Slot<bool>* waiting_ = nullptr;  // in the frame of event()
};

}  // namespace coordinator
