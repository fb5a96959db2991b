// The local launcher: starts every node of a cluster file as a process, keeps it running (restart
// with backoff), and ends all in order. One log file per node. It is the only parent of the nodes:
// if it dies, the kernel ends them.
//
// Restart: after 0.2 s, doubling to 10 s, from the start again once a node has lived for 30 s; five
// deaths within 60 s open the circuit: the node stays down and the cluster serves on without it as
// far as it can. Decode ranks are added and removed while it runs (`serval scale`); the next `up`
// starts as many as the cluster file says.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cluster/paths.h"

namespace cluster {

class Launcher {
 public:
  explicit Launcher(const LocalCluster& cluster);

  // Starts all nodes and returns when the cluster is ready, failed to become so (an exit code, the
  // reason printed), or was told to stop. 0: ready.
  int bring_up(const std::function<void(const std::string& line)>& progress);
  // Restarts what dies until told to stop (SIGTERM, SIGINT). Then ends all within 5 s.
  void supervise();
  void stop_all();

 private:
  using Instant = std::chrono::steady_clock::time_point;
  struct Node {
    std::string name, executable;
    pid_t pid = 0;
    Instant started{};
    std::optional<Instant> restart_at;
    std::chrono::milliseconds backoff{200};
    std::deque<Instant> deaths;
    bool given_up = false;
    int last_exit = 0;
    std::optional<Instant> leaves_by;  // told to leave; killed then, and never restarted
  };

  void add(const std::string& name, const std::string& executable);
  // What `serval scale` asked for: decode ranks are started, or told to leave (SIGTERM).
  void follow_scale();
  void scale(uint32_t ranks);
  void spawn(Node& node);
  // Collects dead children, schedules and performs restarts. The exit code of a node that must not
  // be restarted (bad configuration, address taken, no model), else nothing.
  std::optional<int> reap_and_restart();
  void note_death(Node& node, int status);
  bool told_to_stop() const;
  void signal_all(int signal, bool coordinator);
  bool all_gone(bool coordinator_only);
  void wait_gone(std::chrono::milliseconds limit, bool coordinator_only);
  std::string last_log_line(const Node& node) const;
  void write_state() const;

  const LocalCluster& cluster_;
  std::vector<Node> nodes_;
};

// What GET /cluster says, as far as the launcher and `status` need it.
struct Readiness {
  bool answered = false, ready = false;
  uint32_t ready_nodes = 0, nodes = 0;
  std::string body;
};
Readiness ask_readiness(const std::string& url);

}  // namespace cluster
