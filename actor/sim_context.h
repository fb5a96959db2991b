// SimContext: what one life of one simulated node sees of the world.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actor/pending_calls.h"
#include "actor/sim_host.h"
#include "actor/timer_queue.h"
#include "base/rng.h"

namespace actor {

class SimContext final : public Context {
 public:
  SimContext(SimHost::State& state, SimHost::Node& node);
  ~SimContext() override;

  Time now() const override;
  uint64_t random() override { return rng_.next(); }
  Address self() const override;
  void log(base::Level level, std::string_view event, base::Fields fields) override;
  void set_log_node(const std::string& name) override { log_.set_node(name); }
  Task<void> sleep(Duration d) override;
  void spawn(Task<void> task) override;
  void link(NodeId node, const std::string& endpoint) override;
  void unlink(NodeId node) override;
  std::string endpoint() const override;
  NodeId renew_life() override;
  void stop(int exit_code) override;
  Injector& injector() override;

  // --- for the host
  NodeId id() const { return id_; }
  // The node that listens where `node` is linked to; null when it is not linked.
  SimHost::Node* linked(NodeId node) const;
  std::vector<NodeId> links() const;
  size_t open_calls() const { return calls_.size(); }
  void receive(Envelope&& envelope);
  void reap();
  // Destroys the coroutines; from here on nothing they or the actor do has an effect.
  void end();

 protected:
  Task<void> compute(ComputeJob job) override;
  void transmit(const Address& to, uint16_t type, uint64_t call, uint32_t flags, std::string body,
                base::Blobs blobs) override;
  Task<base::Result<Envelope>> call_raw(Address to, uint16_t type, std::string body,
                                        base::Blobs blobs, CallOptions options) override;

 private:
  class SimTimer;
  class OutgoingCall;
  class ComputeThread;
  class RunningJob;

  NodeId draw_node();
  Task<void> root(uint64_t id, Task<void> task);
  void fail_later(const std::vector<uint64_t>& calls, base::Code code, const char* why);

  SimHost::State& state_;
  SimHost::Node& node_;
  base::Rng rng_;
  NodeId id_;
  base::Log log_;
  bool ended_life_ = false;
  std::map<NodeId, std::string> links_;
  PendingCalls calls_;
  std::unique_ptr<ComputeThread> thread_;
  std::map<uint64_t, base::Future<void>> roots_;  // spawned
  uint64_t last_root_ = 0;
  std::vector<uint64_t> ended_;  // roots to reap
};

}  // namespace actor
