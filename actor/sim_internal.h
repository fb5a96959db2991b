// The inside of SimHost, shared by sim_host.cc, sim_network.cc and sim_context.cc.
//
// Invariants:
//   1. Everything that happens is a closure in State::events, ordered by (time, order of adding).
//   2. A node's code runs only inside State::enter, one node at a time.
//   3. A closure for a node names the life it is meant for; in another life it does nothing. What
//      refers to a coroutine's frame is a SimTimer or a PendingCalls::Entry inside that frame.
//   4. No draw, trace entry or order depends on an address or on an unordered container.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actor/sim_context.h"
#include "actor/sim_host.h"
#include "actor/timer_queue.h"
#include "base/rng.h"

namespace actor {

// A message between nodes: bytes only, shared with nobody.
struct SimWire {
  base::Bytes header;
  std::string body;
  std::vector<base::Bytes> blobs;
  size_t size() const;
};

struct SimHost::Node {
  std::string name;
  uint32_t index = 0;  // in the order of adding
  uint16_t actor_id = 0;
  Factory factory;
  NodeId fixed;

  uint64_t life = 0;                                 // how often it was started
  Time paused_until{};                               // in the past: not paused
  std::deque<std::function<void()>> held;            // input that came during a pause
  bool doomed = false;                               // to be killed when its running event is over
  std::unique_ptr<SimContext> context;               // null while killed
  std::unique_ptr<Actor> actor;                      // null while killed
  std::vector<std::unique_ptr<Injector>> injectors;  // one a life; they outlive it
};

struct SimHost::State {
  explicit State(SimHost& h);

  SimHost& host;
  TimerQueue events;
  std::map<std::string, std::unique_ptr<Node>> nodes;
  Node* running = nullptr;
  std::deque<std::string> recent_log;

  // --- sim_host.cc: lives and events
  Node& node(const std::string& name);
  void start(Node& node);
  void destroy(Node& node);  // REQUIRES: none of its code is running
  void kill(Node& node);     // destroys it, or dooms it when its code is running
  // Runs code of the node now; afterwards reaps its ended tasks and carries out its doom.
  void enter(Node& node, const std::function<void()>& run);
  // Runs code of this life of the node at `at`, or after the pause it is then in.
  void add_input(Node& node, Time at, std::function<void()> run);
  void take_input(Node& node, uint64_t life, std::function<void()> run);
  void drain_held(Node& node);
  void report_peer_down(Node& dead, NodeId id);
  // Reports peers that will be unheard for d from now.
  void watch_silence(Duration d);
  void report_silence();
  void log_line(base::Level level, std::string_view line);

  // --- sim_network.cc
  void send(Node& from, Node* to, SimWire wire);
  void deliver(Node& from, Node& to, Time arrival, SimWire wire);
  void receive(Node& to, SimWire wire);
  bool blocked(const Node& from, const Node& to) const;
  Duration exponential(Duration mean);
  // `arrival`: Time{} when the message is lost.
  void trace(const Node& from, const Node* to, const SimWire& wire, Time arrival);

  using Pair = std::pair<uint32_t, uint32_t>;  // Node::index of sender and receiver
  struct Partition {
    std::set<std::string> side;
    Time until;
  };
  std::vector<Partition> partitions;
  std::map<Pair, Time> cuts, clogs;   // until
  std::map<Pair, double> limits;      // bytes per second
  std::map<Pair, Time> line_free;     // when the bytes sent so far have left
  std::map<Pair, Time> last_arrival;  // order is kept per pair
  base::Rng network_rng, compute_rng;
};

}  // namespace actor
