#include "cluster/launcher.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "cluster/http.h"

namespace cluster {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

namespace {

constexpr seconds kUpLimit{300};      // to become ready; a large model loads for minutes
constexpr milliseconds kTurn{20};     // between looks at children and the coordinator
constexpr milliseconds kDrain{2500};  // for running streams after `down`
constexpr milliseconds kKillAfter{4000};
constexpr seconds kLeave{35};  // a decode rank's own bound is 30 s (decode_leave.cc)

volatile sig_atomic_t g_stop = 0;

void on_signal(int) { g_stop = 1; }

void pause_for(milliseconds d) {
  const timespec t{0, static_cast<long>(d.count()) * 1'000'000};
  ::nanosleep(&t, nullptr);  // a signal ends it early, which is wanted
}

// Exit codes that a restart cannot mend (node/process.h).
bool is_final(int code) { return code == 2 || code == 3 || code == 4 || code == 5; }

}  // namespace

Readiness ask_readiness(const std::string& url) {
  Readiness readiness;
  auto answer = http_get(url + "/cluster", 1000);
  if (!answer || answer->status != 200) return readiness;
  const auto json = nlohmann::json::parse(answer->body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return readiness;
  readiness.answered = true;
  readiness.ready = json.value("ready", false);
  for (const auto& node : json.value("nodes", nlohmann::json::array())) {
    ++readiness.nodes;
    if (node.value("state", "") == "ready") ++readiness.ready_nodes;
  }
  readiness.body = std::move(answer->body);
  return readiness;
}

Launcher::Launcher(const LocalCluster& cluster) : cluster_(cluster) {
  add("coordinator", "coordinator");
  const uint32_t prefill = cluster.config.prefill_stages * cluster.config.sequence_parallel;
  for (uint32_t i = 0; i < prefill; ++i) add(fmt::format("prefill-{}", i), "prefill_node");
  for (uint32_t i = 0; i < cluster.config.decode_ranks; ++i)
    add(fmt::format("decode-{}", i), "decode_node");
  for (uint32_t i = 0; i < cluster.config.kvstore_nodes; ++i)
    add(fmt::format("kvstore-{}", i), "kvstore");
}

void Launcher::add(const std::string& name, const std::string& executable) {
  Node node;
  node.name = name;
  node.executable = executable;
  nodes_.push_back(node);
}

void Launcher::follow_scale() {
  if (const std::optional<uint32_t> ranks = cluster_.take_scale()) scale(*ranks);
  for (const Node& node : nodes_) {
    if (node.leaves_by && node.pid > 0 && steady_clock::now() > *node.leaves_by)
      ::kill(node.pid, SIGKILL);
  }
}

void Launcher::scale(uint32_t ranks) {
  std::set<std::string> wanted;
  for (uint32_t i = 0; i < ranks; ++i) wanted.insert(fmt::format("decode-{}", i));
  for (Node& node : nodes_) {
    if (node.executable != "decode_node") continue;
    if (wanted.erase(node.name) > 0) {
      node.leaves_by.reset();  // one that is on its way out comes back when it has left
      continue;
    }
    fmt::print(stderr, "serval: {} leaves\n", node.name);
    node.leaves_by = steady_clock::now() + kLeave;
    if (node.pid > 0) ::kill(node.pid, SIGTERM);
  }
  std::erase_if(nodes_, [](const Node& node) { return node.leaves_by && node.pid == 0; });
  for (const std::string& name : wanted) {
    fmt::print(stderr, "serval: {} joins\n", name);
    add(name, "decode_node");
    const std::ofstream emptied(cluster_.log_of(name), std::ios::trunc);
    spawn(nodes_.back());
  }
  write_state();
}

bool Launcher::told_to_stop() const { return g_stop != 0; }

void Launcher::spawn(Node& node) {
  const std::string executable = bin_folder() + "/" + node.executable;
  const std::string log = cluster_.log_of(node.name);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(70);  // the launcher died in between
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    const int in = ::open("/dev/null", O_RDONLY);
    if (in >= 0) ::dup2(in, 0);
    if (out >= 0) {
      ::dup2(out, 1);
      ::dup2(out, 2);
    }
    ::close_range(3, ~0u, 0);
    if (::chdir(cluster_.run_folder.c_str()) != 0) ::_exit(70);
    ::signal(SIGPIPE, SIG_IGN);
    ::execl(executable.c_str(), executable.c_str(), "--config", cluster_.config_path.c_str(),
            "--name", node.name.c_str(), nullptr);
    fmt::print(stderr, "cannot run {}: {}\n", executable, std::strerror(errno));
    ::_exit(70);
  }
  node.pid = pid > 0 ? pid : 0;
  node.started = steady_clock::now();
  node.restart_at.reset();
  if (pid < 0) note_death(node, 70 << 8);
}

void Launcher::note_death(Node& node, int status) {
  const Instant now = steady_clock::now();
  node.pid = 0;
  node.last_exit = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  if (now - node.started > seconds(30)) {
    node.backoff = milliseconds(200);
    node.deaths.clear();
  }
  node.deaths.push_back(now);
  while (!node.deaths.empty() && now - node.deaths.front() > seconds(60)) node.deaths.pop_front();
  if (node.deaths.size() >= 5) {
    node.given_up = true;
    fmt::print(
        stderr,
        "serval: {} ended {} times within a minute (last code {}) and is left down; its log: {}\n",
        node.name, node.deaths.size(), node.last_exit, cluster_.log_of(node.name));
    return;
  }
  fmt::print(stderr, "serval: {} ended with code {}; starting it again in {} ms\n", node.name,
             node.last_exit, node.backoff.count());
  node.restart_at = now + node.backoff;
  node.backoff = std::min<milliseconds>(node.backoff * 2, seconds(10));
}

std::optional<int> Launcher::reap_and_restart() {
  std::optional<int> final_code;
  bool changed = false;
  int status = 0;
  for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
    for (Node& node : nodes_) {
      if (node.pid != pid) continue;
      changed = true;
      if (node.leaves_by) {
        node.pid = 0;
      } else if (WIFEXITED(status) && is_final(WEXITSTATUS(status)) && !final_code) {
        final_code = WEXITSTATUS(status);
        fmt::print(stderr, "serval: {}\n", last_log_line(node));
        node.pid = 0;
        node.given_up = true;
      } else {
        note_death(node, status);
      }
    }
  }
  std::erase_if(nodes_, [](const Node& node) { return node.leaves_by && node.pid == 0; });
  for (Node& node : nodes_) {
    if (node.restart_at && steady_clock::now() >= *node.restart_at) {
      spawn(node);
      changed = true;
    }
  }
  if (changed) write_state();
  return final_code;
}

std::string Launcher::last_log_line(const Node& node) const {
  std::ifstream in(cluster_.log_of(node.name));
  std::string line, last;
  while (std::getline(in, line)) {
    if (!line.empty()) last = line;
  }
  const std::string own = "serval: ";
  if (last.starts_with(own)) last = last.substr(own.size());
  return fmt::format("{} could not start: {}", node.name, last);
}

void Launcher::write_state() const {
  std::map<std::string, pid_t> pids;
  for (const Node& node : nodes_) {
    if (node.pid > 0) pids[node.name] = node.pid;
  }
  cluster_.write_nodes(pids);
}

int Launcher::bring_up(const std::function<void(const std::string& line)>& progress) {
  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  static_cast<void>(cluster_.take_scale());  // of a former run
  for (Node& node : nodes_) {
    const std::ofstream emptied(cluster_.log_of(node.name), std::ios::trunc);  // this run's log
    spawn(node);
  }
  write_state();
  const Instant begun = steady_clock::now();
  std::string told;
  for (;;) {
    if (told_to_stop()) return 130;
    if (auto code = reap_and_restart()) return *code;
    const Readiness readiness = ask_readiness(cluster_.url());
    if (readiness.ready && readiness.ready_nodes >= nodes_.size()) return 0;
    const std::string line = readiness.answered ? fmt::format("{} of {} nodes ready",
                                                              readiness.ready_nodes, nodes_.size())
                                                : "starting the coordinator";
    if (line != told) progress(line);
    told = line;
    if (steady_clock::now() - begun > kUpLimit) {
      fmt::print(stderr, "serval: not ready after {} s ({}); the logs are in {}/log\n",
                 kUpLimit.count(), line, cluster_.state_folder);
      return 70;
    }
    pause_for(kTurn);
  }
}

void Launcher::supervise() {
  while (!told_to_stop()) {
    reap_and_restart();
    follow_scale();
    pause_for(kTurn);
  }
}

void Launcher::signal_all(int signal, bool coordinator) {
  for (const Node& node : nodes_) {
    if (node.pid > 0 && (node.name == "coordinator") == coordinator) ::kill(node.pid, signal);
  }
}

bool Launcher::all_gone(bool coordinator_only) {
  int status = 0;
  for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
    for (Node& node : nodes_) {
      if (node.pid == pid) node.pid = 0;
    }
  }
  return std::all_of(nodes_.begin(), nodes_.end(), [&](const Node& node) {
    return node.pid == 0 || (coordinator_only && node.name != "coordinator");
  });
}

void Launcher::wait_gone(milliseconds limit, bool coordinator_only) {
  const Instant until = steady_clock::now() + limit;
  while (!all_gone(coordinator_only) && steady_clock::now() < until) pause_for(milliseconds(5));
}

// The coordinator first, so that running streams can end while the nodes still serve them.
void Launcher::stop_all() {
  const Instant begun = steady_clock::now();
  signal_all(SIGTERM, /*coordinator=*/true);
  wait_gone(kDrain, /*coordinator_only=*/true);
  signal_all(SIGTERM, /*coordinator=*/true);  // the second one ends it at once
  signal_all(SIGTERM, /*coordinator=*/false);
  const auto left =
      std::chrono::duration_cast<milliseconds>(begun + kKillAfter - steady_clock::now());
  wait_gone(std::max(left, milliseconds(500)), /*coordinator_only=*/false);
  signal_all(SIGKILL, true);
  signal_all(SIGKILL, false);
  wait_gone(milliseconds(500), /*coordinator_only=*/false);
  cluster_.forget();
}

}  // namespace cluster
