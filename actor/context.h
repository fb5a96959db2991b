// Context: the one door from an actor to the world. Two hosts implement it: ZmqHost (sockets,
// threads, the real clock) and SimHost (one thread, one seed, virtual time, injected faults).
//
// Everything here is called on the host's reactor thread, by the actor or by its coroutines, except
// Injector.
#pragma once
#include <functional>
#include <string>

#include "actor/compute_job.h"
#include "actor/message.h"
#include "base/log.h"
#include "base/task.h"
#include "base/time.h"

namespace actor {

using base::Duration;
using base::Task;
using base::Time;

// How a call waits. A call is sent, sent again every `retry` until it is answered, and fails with
// kDeadline after `deadline`, or with kPeerGone as soon as the node is unlinked. Handlers of calls
// are therefore idempotent. `label` names the retry in logs and in the simulation, which can switch
// each one off (docs/SIMULATION.md).
struct CallOptions {
  const char* label;
  Duration retry = std::chrono::milliseconds(250);
  Duration deadline = std::chrono::seconds(10);
};

// Puts a closure on the reactor thread from any other thread (the HTTP front end). Outlives the
// host safely: after the host stopped, closures are dropped.
class Injector {
 public:
  virtual ~Injector() = default;
  virtual void post(std::function<void()> run) = 0;
};

class Context {
 public:
  virtual ~Context() = default;

  virtual Time now() const = 0;
  virtual uint64_t random() = 0;  // per host; from the seed in simulation
  virtual Address self() const = 0;
  virtual void log(base::Level, std::string_view event, base::Fields fields) = 0;
  virtual void set_log_node(const std::string& name) = 0;  // once the role position is known

  // --- messages. send() is at most once, in order per pair of nodes while the connection lasts,
  // silently lost otherwise.
  template <Message M>
  void send(const Address& to, const M& m, base::Blobs blobs = {}) {
    transmit(to, M::kType, 0, 0, encode(m), std::move(blobs));
  }
  // Answers a call; a message that was not a call (call == 0) is answered like a send.
  template <Message M, class Asked>
  void reply(const Incoming<Asked>& to, const M& m, base::Blobs blobs = {}) {
    transmit(to.from, M::kType, to.call, Header::kReply, encode(m), std::move(blobs));
  }
  // co_await ctx.call<Reply>(to, message, {.label = "kv.layer"}) → Result<Incoming<Reply>>.
  // An answer of another type than Reply is kMismatch; see proto::Failed for errors from the peer.
  template <Message Reply, Message M>
  Task<base::Result<Incoming<Reply>>> call(Address to, M m, CallOptions options,
                                           base::Blobs blobs = {});

  // --- waiting and running
  // co_await ctx.sleep(200ms): a timer.
  virtual Task<void> sleep(Duration d) = 0;
  // co_await ctx.offload(job): runs it on the compute pool while the reactor goes on. The job
  // touches nothing that anybody else may touch until it is done. Anything above 1 ms of CPU
  // belongs here.
  Task<void> offload(std::function<void()> job, Cost cost = {}) {
    return compute({.cost = cost, .run = std::move(job)});
  }
  // As offload(), together with what of its company waits when a thread is free. The job lives
  // until then.
  Task<void> offload_joint(JointJob& job, JointJob::Company company, Cost cost) {
    return compute({.cost = cost, .joint = &job, .company = company});
  }
  // Runs the task now, up to its first wait, and owns it until it ends or the actor dies.
  virtual void spawn(Task<void> task) = 0;

  // --- who is where
  // Where a node listens; sends to a node never linked are lost. An endpoint is
  // "tcp://10.0.0.1:7001", optionally followed by " ipc:///run/…@HOSTID" used when HOSTID is our
  // own.
  virtual void link(NodeId node, const std::string& endpoint) = 0;
  virtual void unlink(NodeId node) = 0;  // drops its queue; its pending calls fail with kPeerGone
  virtual std::string endpoint() const = 0;  // our own, to tell others
  // Begins a new life: a new NodeId. Every pending call fails with kStale. For a node that was
  // declared dead.
  virtual NodeId renew_life() = 0;
  // Ends the process in good order with this exit code (main returns it); in simulation the node
  // stops.
  virtual void stop(int exit_code) = 0;
  virtual Injector& injector() = 0;

 protected:
  // Runs the job when its turn has come; its id is the host's to give.
  virtual Task<void> compute(ComputeJob job) = 0;
  // One frame-encoded message on its way. Bounded: a full queue to a peer drops the message (it
  // counts as lost) and counts it as `transport.dropped`.
  virtual void transmit(const Address& to, uint16_t type, uint64_t call, uint32_t flags,
                        std::string body, base::Blobs blobs) = 0;
  // The type-erased call; resolves with the reply's envelope.
  virtual Task<base::Result<Envelope>> call_raw(Address to, uint16_t type, std::string body,
                                                base::Blobs blobs, CallOptions options) = 0;
};

template <Message Reply, Message M>
Task<base::Result<Incoming<Reply>>> Context::call(Address to, M m, CallOptions options,
                                                  base::Blobs blobs) {
  base::Result<Envelope> answer =
      co_await call_raw(to, M::kType, encode(m), std::move(blobs), options);
  if (!answer) co_return base::fail(std::move(answer.error()));
  if (answer->header.type != Reply::kType) {
    co_return base::fail(base::Code::kMismatch, "{} was answered with message {}", M::kName,
                         answer->header.type);
  }
  Incoming<Reply> in{answer->from(), 0, {}, std::move(answer->blobs)};
  if (base::Status status = decode(base::as_bytes(answer->body), in.msg); !status) {
    co_return base::fail(std::move(status.error()));
  }
  co_return in;
}

}  // namespace actor
