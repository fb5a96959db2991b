#include "actor/sim_context.h"

#include <algorithm>
#include <utility>

#include "actor/job_queue.h"
#include "actor/sim_internal.h"

namespace actor {
namespace {

constexpr std::string_view kScheme = "sim://";
constexpr uint64_t kFixedIds = 1024;  // ids below are given, not drawn

}  // namespace

// A timer in the frame that waits for it: gone from the events when the frame goes, and late by
// what is left of a pause.
class SimContext::SimTimer {
 public:
  explicit SimTimer(SimContext& context)
      : state_(context.state_), node_(context.node_), timer_(state_.events) {}

  void set(Time due, std::function<void()> run) {
    run_ = std::move(run);
    arm(due);
  }

 private:
  void arm(Time due) {
    timer_.set(due, [this] {
      if (state_.host.now_ < node_.paused_until) return arm(node_.paused_until);
      // On the stack: the closure may destroy this timer and the frame around it.
      const std::function<void()> run = std::move(run_);
      state_.enter(node_, run);
    });
  }

  SimHost::State& state_;
  SimHost::Node& node_;
  std::function<void()> run_;
  Timer timer_;
};

// A call on its way, in the frame of call_raw: sends, sends again, gives up.
class SimContext::OutgoingCall {
 public:
  OutgoingCall(SimContext& context, Address to, uint16_t type, std::string body, base::Blobs blobs,
               const CallOptions& options)
      : context_(context),
        to_(to),
        type_(type),
        body_(std::move(body)),
        blobs_(std::move(blobs)),
        options_(options),
        again_(!context.state_.host.options_.without_retry.contains(options.label)),
        entry_(context.calls_, to.node),
        retry_(context),
        deadline_(context) {}

  void begin() {
    CHECK(options_.retry > Duration::zero(), "call '{}' would be sent without end", options_.label);
    deadline_.set(context_.now() + options_.deadline, [this] { give_up(); });
    send();
  }
  base::Slot<PendingCalls::Answer>& slot() { return entry_.slot; }

 private:
  void send() {
    context_.transmit(to_, type_, entry_.number(), 0, body_, blobs_);
    if (!again_) return;
    retry_.set(context_.now() + options_.retry, [this] {
      context_.log(base::Level::kDebug, "call.retry",
                   {{"label", options_.label}, {"to", to_.node.value}});
      send();
    });
  }
  void give_up() {
    entry_.resolve(base::fail(base::Code::kDeadline, "call '{}' had no answer from node {} in {} s",
                              options_.label, to_.node.value, base::seconds(options_.deadline)));
  }

  SimContext& context_;
  const Address to_;
  const uint16_t type_;
  const std::string body_;
  const base::Blobs blobs_;
  const CallOptions options_;
  const bool again_;
  PendingCalls::Entry entry_;
  SimTimer retry_;
  SimTimer deadline_;
};

// The one modelled compute thread of a node. Jobs run, in no virtual time, when they would have
// ended; where they tell their cost (SimOptions::job_cost), when they begin.
class SimContext::ComputeThread {
 public:
  explicit ComputeThread(SimContext& context)
      : state_(context.state_), end_(context), context_(context) {}

  uint64_t add(ComputeJob job, base::Slot<bool>& done) {
    const uint64_t id = job.id = ++last_id_;
    slots_.emplace(id, &done);
    waiting_.add(std::move(job));
    if (!busy_) begin();
    return id;
  }
  void withdraw(uint64_t id) {
    slots_.erase(id);
    waiting_.erase(id);
    std::erase_if(running_, [id](const ComputeJob& job) { return job.id == id; });
  }

 private:
  void begin() {
    if (waiting_.empty()) return;
    busy_ = true;
    running_ = waiting_.take();
    const std::function<Duration()>& told = state_.host.options_.job_cost;
    if (told) {
      run_together(running_);
      took_ = told();
    } else {
      Duration sum{};
      for (const ComputeJob& job : running_) sum += job.cost.modelled;
      const double jitter = 0.8 + 0.4 * state_.compute_rng.uniform();
      took_ = Duration(static_cast<int64_t>(static_cast<double>(sum.count()) * jitter));
    }
    end_.set(context_.now() + took_, [this] { end(); });
  }
  void end() {
    if (!state_.host.options_.job_cost) run_together(running_);
    const std::vector<ComputeJob> ended = std::exchange(running_, {});
    if (!ended.empty() && ended.front().joint != nullptr) ended.front().joint->took = took_;
    busy_ = false;
    begin();
    for (const ComputeJob& job : ended) {  // what one resumes may let the frame of another go
      const auto found = slots_.find(job.id);
      if (found != slots_.end()) found->second->set(true);
    }
  }

  SimHost::State& state_;
  SimTimer end_;
  SimContext& context_;
  JobQueue waiting_;
  std::vector<ComputeJob> running_;  // together
  std::map<uint64_t, base::Slot<bool>*> slots_;
  uint64_t last_id_ = 0;
  Duration took_{};
  bool busy_ = false;
};

// An offloaded job, in the frame that waits for it.
class SimContext::RunningJob {
 public:
  RunningJob(SimContext& context, ComputeJob job)
      : thread_(*context.thread_), id_(thread_.add(std::move(job), done)) {}
  ~RunningJob() { thread_.withdraw(id_); }
  RunningJob(const RunningJob&) = delete;
  RunningJob& operator=(const RunningJob&) = delete;

  base::Slot<bool> done;

 private:
  ComputeThread& thread_;
  const uint64_t id_;
};

// Each life draws from its own stream, so that what one node draws does not move another's draws.
SimContext::SimContext(SimHost::State& state, SimHost::Node& node)
    : state_(state),
      node_(node),
      rng_(state.host.options_.seed, base::hash64(base::as_bytes(node.name), node.life)),
      id_(node.fixed ? node.fixed : draw_node()),
      log_(node.name, base::LogFormat::kText,
           state.host.options_.log ? base::Level::kDebug : base::Level::kInfo,
           [&state](base::Level level, std::string_view line) { state.log_line(level, line); }),
      calls_(rng_.next() >> 1),
      thread_(std::make_unique<ComputeThread>(*this)) {}

SimContext::~SimContext() = default;

Time SimContext::now() const { return state_.host.now_; }

Address SimContext::self() const { return {id_, node_.actor_id}; }

void SimContext::log(base::Level level, std::string_view event, base::Fields fields) {
  log_.write(now(), level, event, fields);
}

NodeId SimContext::draw_node() {
  NodeId id;
  while (id.value < kFixedIds) id.value = rng_.next();
  return id;
}

// --- waiting and running

Task<void> SimContext::sleep(Duration d) {
  base::Slot<bool> due;
  SimTimer timer(*this);
  timer.set(now() + std::max(d, Duration::zero()), [&due] { due.set(true); });
  co_await due;
}

Task<void> SimContext::compute(ComputeJob job) {
  RunningJob running(*this, std::move(job));
  co_await running.done;
}

void SimContext::spawn(Task<void> task) {
  if (ended_life_) return;
  state_.enter(node_, [this, &task] {
    const uint64_t id = ++last_root_;
    base::Future<void> future = base::start(root(id, std::move(task)));
    if (!future.done()) roots_.emplace(id, std::move(future));
  });
}

Task<void> SimContext::root(uint64_t id, Task<void> task) {
  co_await std::move(task);
  ended_.push_back(id);
}

// A frame is not destroyed from within its own resume, hence after the event.
void SimContext::reap() {
  while (!ended_.empty()) {
    for (const uint64_t id : std::exchange(ended_, {})) roots_.erase(id);
  }
}

void SimContext::end() {
  ended_life_ = true;
  roots_.clear();
}

// --- who is where

void SimContext::link(NodeId node, const std::string& endpoint) {
  if (node == id_ || ended_life_) return;
  const std::string first = endpoint.substr(0, endpoint.find(' '));
  if (!first.starts_with(kScheme)) {
    log(base::Level::kWarn, "transport.no_link", {{"node", node.value}, {"endpoint", endpoint}});
    return;
  }
  links_[node] = first.substr(kScheme.size());
}

void SimContext::unlink(NodeId node) {
  links_.erase(node);
  fail_later(calls_.to(node), base::Code::kPeerGone, "the node left while its answer was awaited");
}

SimHost::Node* SimContext::linked(NodeId node) const {
  const auto link = links_.find(node);
  if (link == links_.end()) return nullptr;
  const auto found = state_.nodes.find(link->second);
  return found == state_.nodes.end() ? nullptr : found->second.get();
}

std::vector<NodeId> SimContext::links() const {
  std::vector<NodeId> nodes;
  for (const auto& [node, name] : links_) nodes.push_back(node);
  return nodes;
}

std::string SimContext::endpoint() const { return std::string(kScheme) + node_.name; }

NodeId SimContext::renew_life() {
  fail_later(calls_.all(), base::Code::kStale, "this node began a new life before the answer");
  id_ = draw_node();
  return id_;
}

void SimContext::fail_later(const std::vector<uint64_t>& calls, base::Code code, const char* why) {
  if (ended_life_) return;
  for (const uint64_t call : calls) {
    state_.add_input(node_, now(), [this, call, code, why] {
      calls_.fail(call, base::Error{code, why});
    });
  }
}

void SimContext::stop(int exit_code) {
  log(base::Level::kInfo, "sim.stop", {{"exit_code", exit_code}});
  if (ended_life_) return;
  if (state_.running == &node_) {
    state_.kill(node_);  // after this event
  } else {
    state_.add_input(node_, now(), [this] { state_.kill(node_); });
  }
}

Injector& SimContext::injector() { return *node_.injectors.back(); }

// --- messages

Task<base::Result<Envelope>> SimContext::call_raw(Address to, uint16_t type, std::string body,
                                                  base::Blobs blobs, CallOptions options) {
  OutgoingCall call(*this, to, type, std::move(body), std::move(blobs), options);
  call.begin();
  base::Slot<PendingCalls::Answer>& slot = call.slot();
  PendingCalls::Answer answer = co_await slot;
  co_return answer;
}

void SimContext::transmit(const Address& to, uint16_t type, uint64_t call, uint32_t flags,
                          std::string body, base::Blobs blobs) {
  if (ended_life_) return;
  Header header;
  header.protocol = state_.host.options_.protocol;
  header.type = type;
  header.from_actor = node_.actor_id;
  header.to_actor = to.actor;
  header.from_node = id_.value;
  header.to_node = to.node.value;
  header.call = call;
  header.flags = flags;
  SimWire wire{base::Bytes(Header::kBytes), std::move(body), {}};
  header.write(wire.header.data());
  for (const base::Blob& blob : blobs) {
    wire.blobs.emplace_back(blob.view().begin(), blob.view().end());
  }
  if (to.node == id_) {  // never crosses the network
    state_.trace(node_, &node_, wire, now());
    state_.deliver(node_, node_, now(), std::move(wire));
  } else {
    state_.send(node_, linked(to.node), std::move(wire));
  }
}

void SimContext::receive(Envelope&& envelope) {
  const Header& header = envelope.header;
  if ((header.flags & Header::kReply) != 0 && header.call != 0) {
    const uint64_t call = header.call;
    const NodeId from{header.from_node};
    calls_.answer(call, from, std::move(envelope));  // an answer nobody waits for is a late one
    return;
  }
  node_.actor->receive(*this, std::move(envelope));
}

}  // namespace actor
