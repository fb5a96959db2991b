// SimHost: a whole cluster in one thread from one seed. Nodes are added with a factory for their
// actor, so that a killed node can start again; every message is encoded, hashed into the trace,
// and parsed again by its receiver.
//
//   SimHost sim({.seed = 7});
//   sim.network().loss = 0.1;
//   sim.add("decode-0", kDecode, [&] { return std::make_unique<DecodeActor>(…); });
//   sim.at(3s, [&] { sim.kill("decode-0"); });
//   sim.run_until([&] { return done; }, 60s);
//   sim.trace_hash();   // equal for equal seeds, on every machine
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/rng.h"

namespace actor {

// What the simulated network does to each message. Probabilities per message; durations are means
// of exponentials on top of the minimum.
struct SimNetwork {
  Duration latency_least = std::chrono::microseconds(50);
  Duration latency_mean = std::chrono::microseconds(100);
  double loss = 0.0;
  double duplicate = 0.0;
  double reorder = 0.0;  // this message is held back by up to 20 ms
  double corrupt = 0.0;  // a bit of one of the message's bulk frames flips
  double bytes_per_second = 1e9;
};

struct SimOptions {
  uint64_t seed = 1;
  uint16_t protocol = 1;
  SimNetwork network{};
  Duration peer_down_after =
      std::chrono::milliseconds(100);  // kill → peer_down at linked nodes; lossy like a message
  // A peer unheard this long (partition, cut, pause) is reported by peer_down though it lives, as
  // the transport's own heartbeats would.
  Duration peer_silence = std::chrono::milliseconds(1100);
  std::set<std::string>
      without_retry{};  // call labels that are sent once only (to show that the retry is needed)
  std::function<void(base::Level, std::string_view line)>
      log{};  // default: kept in a ring, printed on failure
  // What the job that has just run cost, in place of what its caller expected; then jobs run when
  // they begin and not when they end.
  std::function<Duration()> job_cost{};
};

class SimHost {
 public:
  using Factory = std::function<std::unique_ptr<Actor>()>;

  explicit SimHost(SimOptions options);
  ~SimHost();

  // A process of one actor. `name` is its stable name for faults; its endpoint is "sim://name".
  // `fixed`: its node id in every life (the coordinator); else each life draws its own.
  void add(const std::string& name, uint16_t actor_id, Factory factory, NodeId fixed = {});
  Actor* actor(const std::string& name);       // null while killed
  Context* context(const std::string& name);   // null while killed
  size_t open_calls(const std::string& name);  // unanswered; 0 while killed

  // --- faults. Times are virtual. All may be called from at() closures or between runs.
  void kill(const std::string& name);     // actor and its coroutines vanish, queued input is lost
  void restart(const std::string& name);  // a new life of the same name and endpoint
  void pause(const std::string& name, Duration d);  // SIGSTOP: input waits, timers wait
  void partition(const std::set<std::string>& side, Duration d);  // side | the rest, both ways
  void cut(const std::string& from, const std::string& to, Duration d);   // one way
  void clog(const std::string& from, const std::string& to, Duration d);  // delivered after d
  // One way, from now on, whatever the network's own rate; 0: at that again. What is on its way is
  // not hurried.
  void throttle(const std::string& from, const std::string& to, double bytes_per_second);
  SimNetwork& network() { return options_.network; }

  // --- running
  void at(Duration after_start, std::function<void()> run);
  // Runs events in order until done() or virtual `limit` since start has passed; returns done().
  bool run_until(const std::function<bool()>& done, Duration limit);
  void run_for(Duration d);
  Time now() const { return now_; }
  base::Rng& rng() { return rng_; }

  // --- checks
  base::Hash128 trace_hash() const { return trace_; }
  uint64_t error_logs() const { return error_logs_; }  // lines at level error: a clean run has none
  const std::vector<std::string>& error_lines() const { return error_lines_; }
  std::string recent_log() const;  // the last lines, for a failure report

 private:
  friend class SimContext;
  struct Node;
  struct State;
  SimOptions options_;
  Time now_{};
  base::Rng rng_;
  base::Hash128 trace_{};
  uint64_t error_logs_ = 0;
  std::vector<std::string> error_lines_;
  std::unique_ptr<State> state_;
};

}  // namespace actor
