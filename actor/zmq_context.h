// ZmqContext: what one actor of a ZmqHost sees of the world, and the turns of its reactor.
//
// Thread safety: everything on the reactor thread; other threads reach it through its Inbox only.
// Invariants:
//   1. The actor and its coroutines run only inside start(), turn() and end(), one at a time.
//   2. What a coroutine waits in (timer, call, job) stands in a table here and leaves it with the
//      coroutine's frame, so nothing resumes a frame that is gone.
//   3. link(), unlink(), renew_life() and sends to oneself never run the actor's code before they
//      return: what follows from them comes with the next turn.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "actor/compute_pool.h"
#include "actor/inbox.h"
#include "actor/pending_calls.h"
#include "actor/timer_queue.h"
#include "actor/zmq_host.h"
#include "actor/zmq_transport.h"
#include "base/rng.h"

namespace actor {

class ZmqContext final : public Context {
 public:
  ZmqContext(ZmqOptions options, std::unique_ptr<ZmqTransport> transport);
  ~ZmqContext() override;

  Time now() const override;
  uint64_t random() override { return rng_.next(); }
  Address self() const override { return {node_, options_.actor_id}; }
  void log(base::Level level, std::string_view event, base::Fields fields) override;
  void set_log_node(const std::string& name) override { options_.log.set_node(name); }
  Task<void> sleep(Duration d) override;
  void spawn(Task<void> task) override;
  void link(NodeId node, const std::string& endpoint) override;
  void unlink(NodeId node) override;
  std::string endpoint() const override { return transport_->endpoint(); }
  NodeId renew_life() override;
  void stop(int exit_code) override;
  Injector& injector() override { return inbox_; }

  // --- for the host
  void start(Actor& actor);
  bool stopped() const { return stopped_; }
  int exit_code() const { return exit_code_; }
  // Waits for something to do, then does a bounded part of all there is.
  void wait();
  void turn();
  // Joins the pool, then destroys the coroutines. The actor is not needed afterwards.
  void end();
  int wake_fd() const { return inbox_.fd(); }
  const TransportCounters& counters() const { return counters_; }

 protected:
  Task<void> compute(ComputeJob job) override;
  void transmit(const Address& to, uint16_t type, uint64_t call, uint32_t flags, std::string body,
                base::Blobs blobs) override;
  Task<base::Result<Envelope>> call_raw(Address to, uint16_t type, std::string body,
                                        base::Blobs blobs, CallOptions options) override;

 private:
  class OutgoingCall;
  class RunningJob;

  NodeId draw_node();
  Task<void> root(uint64_t id, Task<void> task);
  void send_envelope(const Address& to, const Header& header, const std::string& body,
                     const base::Blobs& blobs);
  void send_to_self(const Header& header, const std::string& body, const base::Blobs& blobs);
  void fail_later(const std::vector<uint64_t>& calls, base::Code code, const char* why);
  void jobs_done(const ComputePool::Ids& ids);
  void run_soon();
  void run_changes();
  void run_messages();
  void deliver(Envelope&& envelope);
  void refuse(const std::string& why);
  void reap();

  ZmqOptions options_;
  const std::chrono::steady_clock::time_point started_;
  base::Rng rng_;
  NodeId node_;
  TransportCounters counters_;
  Inbox& inbox_;
  std::unique_ptr<ZmqTransport> transport_;
  Actor* actor_ = nullptr;
  bool stopped_ = false;
  int exit_code_ = 0;

  TimerQueue timers_;
  PendingCalls calls_;
  std::map<uint64_t, base::Slot<bool>*> jobs_;  // offloaded and awaited
  uint64_t last_job_ = 0;
  std::map<NodeId, Timer> lost_;            // links that may come back within kPeerDownAfter
  std::deque<std::function<void()>> soon_;  // for the next turn
  std::map<NodeId, uint64_t> full_;         // messages refused by a full queue since it was not
  size_t to_self_ = 0;                      // messages among soon_

  std::map<uint64_t, base::Future<void>> roots_;  // spawned
  uint64_t last_root_ = 0;
  std::vector<uint64_t> ended_;  // roots to reap
  // Last: its threads are joined before anything they could reach goes.
  ComputePool pool_;
};

}  // namespace actor
