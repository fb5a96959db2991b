#include "cluster/commands.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>  // std::cin
#include <nlohmann/json.hpp>

#include "cluster/http.h"
#include "cluster/launcher.h"
#include "cluster/paths.h"
#include "model/verify.h"
#include "node/process.h"

namespace cluster {

using nlohmann::json;

namespace {

int complain(const base::Error& error) {
  fmt::print(stderr, "serval: {}\n", error.what);
  switch (error.code) {
    case base::Code::kNotFound:
      return node::kExitModel;
    case base::Code::kConfig:
    case base::Code::kUnsupported:
      return node::kExitConfig;
    default:
      return node::kExitInternal;
  }
}

// Whether somebody listens on "127.0.0.1:8000" already.
bool taken(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoul(address.substr(colon + 1))));
  std::string host = address.substr(0, colon);
  if (host == "0.0.0.0" || host == "localhost") host = "127.0.0.1";
  if (::inet_pton(AF_INET, host.c_str(), &to.sin_addr) != 1) return false;
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool connected = ::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
  ::close(fd);
  return connected;
}

void print_ready(const LocalCluster& cluster, double seconds) {
  fmt::print("ready in {:.1f} s: {}  (logs in {}/log)\n\n", seconds, cluster.url(),
             cluster.state_folder);
  fmt::print(
      "curl -N {}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "  -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Write a function that reads a "
      "file.\"}}], \"stream\": true}}'\n",
      cluster.url());
  std::fflush(stdout);
}

// Runs in the process that stays: starts, tells `result` the outcome through the pipe (if any),
// supervises.
int serve(const LocalCluster& cluster, int report) {
  const auto begun = std::chrono::steady_clock::now();
  Launcher launcher(cluster);
  if (base::Status written = cluster.write_launcher(::getpid()); !written)
    return complain(written.error());
  const int code =
      launcher.bring_up([&](const std::string& line) { fmt::print(stderr, "serval: {}\n", line); });
  if (code == 0) {
    const double took =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    print_ready(cluster, took);
    if (report >= 0) {
      const char ok = 0;
      [[maybe_unused]] const ssize_t n = ::write(report, &ok, 1);
      ::close(report);
      // From here on the terminal is not ours.
      const int log = ::open((cluster.state_folder + "/log/launcher.log").c_str(),
                             O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
      ::dup2(log, 1);
      ::dup2(log, 2);
    }
    launcher.supervise();
    fmt::print(stderr, "serval: stopping\n");
  }
  launcher.stop_all();
  return code;
}

int detached(const LocalCluster& cluster) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return node::kExitInternal;
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return node::kExitInternal;
  if (child == 0) {
    ::close(ends[0]);
    ::setsid();
    const int none = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    ::dup2(none, 0);
    const int code = serve(cluster, ends[1]);
    std::fflush(nullptr);
    ::_exit(code);
  }
  ::close(ends[1]);
  char byte = 1;
  const bool ready = ::read(ends[0], &byte, 1) == 1;
  ::close(ends[0]);
  if (ready) return 0;
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : node::kExitInternal;
}

}  // namespace

int show_config(const std::string& config, bool print) {
  auto text = base::ClusterConfig::describe(config);
  if (!text) {
    fmt::print(stderr, "serval: {}\n", text.error().what);
    return node::kExitConfig;
  }
  if (print) {
    fmt::print("{}", *text);
  } else {
    fmt::print("{}: ok\n", config);
  }
  return 0;
}

int up(const std::string& config, bool detach) {
  auto cluster = LocalCluster::open(config);
  if (!cluster) return complain(cluster.error());
  if (base::Status model = cluster->check_model(); !model) return complain(model.error());
  if (pid_t running = cluster->launcher()) {
    fmt::print("already up (launcher {}): {}\n", running, cluster->url());
    return 0;
  }
  for (const std::string& address : {cluster->config.http, cluster->config.coordinator}) {
    if (taken(address)) {
      fmt::print(stderr,
                 "serval: {} is taken by another program; end it or choose another address in {}\n",
                 address, cluster->config_path);
      return node::kExitAddress;
    }
  }
  return detach ? detached(*cluster) : serve(*cluster, -1);
}

int down(const std::string& config) {
  auto cluster = LocalCluster::open(config);
  if (!cluster) return complain(cluster.error());
  const pid_t launcher = cluster->launcher();
  const auto nodes = cluster->nodes();
  if (launcher == 0 && nodes.empty()) {
    fmt::print("not running\n");
    return 0;
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(6);
  if (launcher > 0) ::kill(launcher, SIGTERM);
  while (alive(launcher) && std::chrono::steady_clock::now() < until) ::poll(nullptr, 0, 10);
  for (const auto& [name, pid] : nodes) {
    // Only after a launcher that died without its children. Name and file tell a reused id.
    std::ifstream in("/proc/" + std::to_string(pid) + "/cmdline");
    const std::string line((std::istreambuf_iterator<char>(in)), {});
    if (line.find(name) != std::string::npos &&
        line.find(cluster->config_path) != std::string::npos)
      ::kill(pid, SIGKILL);
  }
  if (alive(launcher)) ::kill(launcher, SIGKILL);
  cluster->forget();
  fmt::print("down\n");
  return 0;
}

namespace {

// Ready decode ranks, and all of them.
std::pair<uint32_t, uint32_t> decode_ranks(const std::string& url) {
  const json body = json::parse(ask_readiness(url).body, nullptr, false);
  uint32_t ready = 0, all = 0;
  if (!body.is_object()) return {0, 0};
  for (const json& node : body.value("nodes", json::array())) {
    if (node.value("role", "") != "decode") continue;
    ++all;
    ready += node.value("state", "") == "ready" ? 1 : 0;
  }
  return {ready, all};
}

}  // namespace

int scale(const std::string& config, const std::string& what) {
  auto cluster = LocalCluster::open(config);
  if (!cluster) return complain(cluster.error());
  const std::string prefix = "decode=";
  const std::string number = what.starts_with(prefix) ? what.substr(prefix.size()) : "";
  uint32_t ranks = 0;
  const auto [rest, failed] = std::from_chars(number.data(), number.data() + number.size(), ranks);
  if (failed != std::errc{} || rest != number.data() + number.size() || ranks < 1 || ranks > 256) {
    fmt::print(stderr, "serval: scale takes decode=N with N from 1 to 256, not {}\n", what);
    return node::kExitUsage;
  }
  if (cluster->launcher() == 0) {
    fmt::print(stderr, "serval: no cluster of {} runs; start it with ./serval up\n",
               cluster->config_path);
    return 1;
  }
  if (base::Status asked = cluster->write_scale(ranks); !asked) return complain(asked.error());
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(300);
  while (std::chrono::steady_clock::now() < until) {
    const auto [ready, all] = decode_ranks(cluster->url());
    if (ready == ranks && all == ranks) {
      fmt::print("{} decode ranks\n", ranks);
      return 0;
    }
    if (cluster->launcher() == 0) break;
    ::poll(nullptr, 0, 50);
  }
  fmt::print(stderr, "serval: there are not {} decode ranks; see ./serval status and {}/log\n",
             ranks, cluster->state_folder);
  return 1;
}

int status(const std::string& config, bool as_json) {
  auto cluster = LocalCluster::open(config);
  if (!cluster) return complain(cluster.error());
  const Readiness readiness = ask_readiness(cluster->url());
  if (!readiness.answered) {
    fmt::print(stderr, "serval: nothing answers on {}; start it with ./serval up\n",
               cluster->url());
    return 1;
  }
  if (as_json) {
    fmt::print("{}\n", readiness.body);
    return readiness.ready ? 0 : 1;
  }
  const json body = json::parse(readiness.body, nullptr, false);
  fmt::print("{}  {}  {}  view {}\n", cluster->url(), body.value("model", ""),
             readiness.ready ? "ready" : "not ready", body.value("epoch", 0));
  fmt::print("{:<14}{:<13}{:<10}{:>8}{:>9}{:>9}{:>16}{:>8}{:>6}\n", "node", "role", "state", "pid",
             "running", "waiting", "KV blocks", "beat", "used");
  for (const json& node : body.value("nodes", json::array())) {
    // Of the time with requests; the rest of it is the pipeline's bubble.
    const json counters = node.value("counters", json::object());
    const double used = counters.value("prefill_utilisation", -1.0);
    fmt::print("{:<14}{:<13}{:<10}{:>8}{:>9}{:>9}{:>16}{:>7.2f}s{:>6}\n", node.value("name", ""),
               node.value("role", ""), node.value("state", ""), node.value("pid", 0),
               node.value("running", 0), node.value("waiting", 0),
               fmt::format("{}/{}", node.value("blocks_used", 0), node.value("blocks_total", 0)),
               node.value("heartbeat_age_s", 0.0),
               used < 0 ? "" : fmt::format("{:.0f}%", 100 * used));
  }
  const json own = body.value("counters", json::object());
  fmt::print("prefill stages: imbalance {:.1f} % measured, {:.1f} % planned\n",
             100 * own.value("prefill_stage_imbalance", 0.0),
             100 * own.value("prefill_stage_imbalance_planned", 0.0));
  for (const json& reason : body.value("missing", json::array()))
    fmt::print("missing: {}\n", reason.get<std::string>());
  return readiness.ready ? 0 : 1;
}

namespace {

// Streams one answer to the terminal; appends it to the conversation. The exit code.
int converse(const std::string& url, json& messages, uint32_t max_tokens) {
  json request = {{"messages", messages}, {"stream", true}};
  if (max_tokens > 0) request["max_tokens"] = max_tokens;
  std::string text, failure;
  auto answer =
      http_stream(url + "/v1/chat/completions", request.dump(), [&](std::string_view payload) {
        if (payload == "[DONE]") return true;
        const json chunk = json::parse(payload, nullptr, false);
        if (chunk.contains("error")) failure = chunk["error"].value("message", "");
        for (const json& choice : chunk.value("choices", json::array())) {
          const json delta = choice.value("delta", json::object());
          if (!delta.contains("content") || !delta["content"].is_string()) continue;
          const std::string piece = delta["content"];
          text += piece;
          fmt::print("{}", piece);
          std::fflush(stdout);
        }
        return true;
      });
  if (!answer) {
    fmt::print(stderr, "serval: {}; start a cluster with ./serval up\n", answer.error().what);
    return 1;
  }
  fmt::print("\n");
  if (answer->status != 200) {
    const json body = json::parse(answer->body, nullptr, false);
    failure = body.is_object() && body.contains("error") ? body["error"].value("message", "")
                                                         : answer->body;
  }
  if (!failure.empty()) {
    fmt::print(stderr, "serval: {}\n", failure);
    return 1;
  }
  messages.push_back({{"role", "assistant"}, {"content", text}});
  return 0;
}

}  // namespace

int chat(const std::string& config, const std::string& prompt, uint32_t max_tokens) {
  auto cluster = LocalCluster::open(config);
  if (!cluster) return complain(cluster.error());
  json messages = json::array();
  if (!prompt.empty()) {
    messages.push_back({{"role", "user"}, {"content", prompt}});
    return converse(cluster->url(), messages, max_tokens);
  }
  std::string line;
  while (fmt::print("> "), std::fflush(stdout), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    messages.push_back({{"role", "user"}, {"content", line}});
    if (int code = converse(cluster->url(), messages, max_tokens); code != 0) return code;
  }
  fmt::print("\n");
  return 0;
}

int verify(const std::string& folder, const std::string& engine) {
  const auto kind =
      engine == "reference" ? model::EngineKind::kReference : model::EngineKind::kLocal;
  auto report = model::verify(folder, kind);
  if (!report) return complain(report.error());
  fmt::print("{:<44}{:>14}{:>12}  {}\n", "tensor", "largest diff", "tolerance", "verdict");
  uint32_t failed = 0, later = 0;
  for (const model::VerifyRow& row : report->rows) {
    using Verdict = model::VerifyRow::Verdict;
    failed += row.verdict == Verdict::kFailed;
    later += row.verdict == Verdict::kNotYetChecked;
    const bool checked = row.verdict != Verdict::kNotYetChecked;
    const char* verdict = row.verdict == Verdict::kPassed ? "ok"
                          : checked                       ? "FAILED"
                                                          : "not yet checked";
    const std::string tolerance =
        row.tolerance > 0 ? fmt::format("{:.1e}", row.tolerance) : "equal";
    fmt::print("{:<44}{:>14}{:>12}  {}{}{}\n", row.tensor,
               checked ? fmt::format("{:.2e}", row.largest_difference) : "-",
               checked ? tolerance : "-", verdict, row.note.empty() ? "" : ": ", row.note);
  }
  fmt::print("{} tensors: {} ok, {} failed, {} not yet checked ({} engine, f32 KV)\n",
             report->rows.size(), report->rows.size() - failed - later, failed, later, engine);
  return report->passed() ? 0 : 1;
}

}  // namespace cluster
