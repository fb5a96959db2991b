#include "coordinator/metrics_text.h"

#include <fmt/format.h>

#include <cctype>
#include <set>
#include <vector>

namespace coordinator {

namespace {

using Labels = std::vector<std::pair<std::string_view, std::string>>;

std::string escaped(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

// Only what a metric name may hold; a counter of a node is named by the node.
std::string safe_name(std::string_view name) {
  std::string out = "serval_";
  for (const char c : name) {
    const bool good = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
    out += good ? static_cast<char>(std::tolower(static_cast<unsigned char>(c))) : '_';
  }
  return out;
}

class Text {
 public:
  // A family stands once; what nodes report under a name already taken is left out.
  bool has(std::string_view name) const { return families_.contains(name); }
  void family(std::string_view name, std::string_view type, std::string_view help) {
    families_.emplace(name);
    fmt::format_to(std::back_inserter(out_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name,
                   type);
  }
  void sample(std::string_view name, const Labels& labels, double value) {
    out_ += name;
    for (size_t i = 0; i < labels.size(); ++i) {
      fmt::format_to(std::back_inserter(out_), "{}{}=\"{}\"", i == 0 ? "{" : ",", labels[i].first,
                     escaped(labels[i].second));
    }
    if (!labels.empty()) out_ += '}';
    fmt::format_to(std::back_inserter(out_), " {}\n", value);
  }
  void single(std::string_view name, std::string_view type, std::string_view help, double value) {
    family(name, type, help);
    sample(name, {}, value);
  }
  void histogram(const std::string& name, std::string_view help, const Histogram& histogram) {
    family(name, "histogram", help);
    uint64_t below = 0;
    for (size_t i = 0; i < histogram.counts.size(); ++i) {
      below += histogram.counts[i];
      const bool last = i == Histogram::kBounds.size();
      sample(name + "_bucket", {{"le", last ? "+Inf" : fmt::format("{}", Histogram::kBounds[i])}},
             static_cast<double>(below));
    }
    sample(name + "_sum", {}, histogram.sum);
    sample(name + "_count", {}, static_cast<double>(histogram.count));
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
  std::set<std::string, std::less<>> families_;
};

double real(uint64_t value) { return static_cast<double>(value); }

void write_http(Text& text, const HttpMetrics& http) {
  text.family("serval_http_requests_total", "counter", "HTTP requests answered.");
  for (const auto& [key, count] : http.requests) {
    text.sample("serval_http_requests_total",
                {{"route", std::string(key.first)}, {"status", fmt::format("{}", key.second)}},
                real(count));
  }
  text.family("serval_request_success_total", "counter",
              "Generations by how they ended; abort: the client left.");
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    const auto it = http.finished.find(reason);
    text.sample("serval_request_success_total", {{"finished_reason", reason}},
                it == http.finished.end() ? 0.0 : real(it->second));
  }
  text.single("serval_http_disconnects_total", "counter",
              "Clients that left before their answer was complete.", real(http.disconnects));
  text.single("serval_http_slow_readers_total", "counter",
              "Connections closed because the client did not read.", real(http.slow_readers));
  text.single("serval_http_timeouts_total", "counter", "Requests that did not arrive in time.",
              real(http.timeouts));
  text.single("serval_http_refused_connections_total", "counter",
              "Connections refused at the limit.", real(http.refused_connections));
  text.single("serval_http_connections", "gauge", "Open client connections.",
              real(http.connections));
  text.single("serval_http_generations", "gauge", "Generation requests in progress.",
              real(http.generations));
}

// Counters end in _total, everything else is a gauge.
std::string_view type_of(std::string_view name) {
  return name.ends_with("_total") ? "counter" : "gauge";
}

std::string help_of(std::string_view name) {
  std::string help(name);
  for (char& c : help) c = c == '_' ? ' ' : c;
  return help + ", as reported by the node.";
}

void write_counters(Text& text, const ClusterStatus& cluster) {
  for (const auto& [name, value] : cluster.counters) {
    const std::string full = safe_name(name);
    if (!text.has(full)) text.single(full, type_of(full), help_of(name), value);
  }
  // By name first: all samples of a family stand together.
  std::map<std::string, std::vector<std::pair<const NodeStatus*, double>>> families;
  for (const NodeStatus& node : cluster.nodes) {
    for (const auto& [name, value] : node.counters) {
      families["node_" + name].emplace_back(&node, value);
    }
  }
  for (const auto& [name, samples] : families) {
    const std::string full = safe_name(name);
    if (text.has(full)) continue;
    text.family(full, type_of(full), help_of(name));
    for (const auto& [node, value] : samples) {
      text.sample(full, {{"role", node->role}, {"node", node->name}}, value);
    }
  }
}

struct NodeGauge {
  const char *name, *help;
  double (*value)(const NodeStatus&);
};
constexpr NodeGauge kNodeGauges[] = {
    {"serval_node_up", "1 while the node is ready.",
     [](const NodeStatus& n) { return n.state == "ready" ? 1.0 : 0.0; }},
    {"serval_node_running_requests", "Requests being worked on.",
     [](const NodeStatus& n) { return static_cast<double>(n.running); }},
    {"serval_node_waiting_requests", "Requests waiting on the node.",
     [](const NodeStatus& n) { return static_cast<double>(n.waiting); }},
    {"serval_node_kv_blocks_used", "KV blocks in use.",
     [](const NodeStatus& n) { return static_cast<double>(n.blocks_used); }},
    {"serval_node_kv_blocks", "KV blocks in all.",
     [](const NodeStatus& n) { return static_cast<double>(n.blocks_total); }},
    {"serval_node_heartbeat_age_seconds", "Time since the last heartbeat.",
     [](const NodeStatus& n) { return n.heartbeat_age_s; }},
};

void write_cluster(Text& text, const ClusterStatus& cluster) {
  text.single("serval_cluster_ready", "gauge", "1 while every position has a ready node.",
              cluster.ready ? 1 : 0);
  text.single("serval_cluster_epoch", "gauge", "Epoch of the cluster view.", real(cluster.epoch));
  text.single("serval_num_requests_running", "gauge", "Requests placed and running.",
              cluster.running);
  text.single("serval_num_requests_waiting", "gauge", "Requests admitted and queued.",
              cluster.waiting);
  const Latencies& latency = cluster.latency;
  text.histogram("serval_time_to_first_token_seconds", "From submission to the first token.",
                 latency.first_token);
  text.histogram("serval_inter_token_latency_seconds",
                 "Between tokens; tokens that arrive together share the gap.", latency.inter_token);
  text.histogram("serval_e2e_request_latency_seconds",
                 "From submission to the end, of requests that finished.", latency.request);
  text.histogram("serval_request_queue_time_seconds", "From submission to the first reservation.",
                 latency.queue);
  if (!cluster.expert_imbalance.empty()) {
    text.family(
        "serval_expert_imbalance", "gauge",
        "What the busiest decode rank computes of a layer's experts, over the mean, minus 1.");
    for (size_t layer = 0; layer < cluster.expert_imbalance.size(); ++layer) {
      text.sample("serval_expert_imbalance", {{"layer", fmt::format("{}", layer)}},
                  cluster.expert_imbalance[layer]);
    }
  }
  for (const NodeGauge& gauge : kNodeGauges) {
    text.family(gauge.name, "gauge", gauge.help);
    for (const NodeStatus& node : cluster.nodes) {
      text.sample(gauge.name, {{"role", node.role}, {"node", node.name}}, gauge.value(node));
    }
  }
}

}  // namespace

std::string metrics_text(const HttpMetrics& http, const ClusterStatus* cluster,
                         const std::string& version) {
  Text text;
  text.family("serval_build_info", "gauge", "Always 1; the version is a label.");
  text.sample("serval_build_info", {{"version", version}}, 1);
  write_http(text, http);
  if (cluster) {
    write_cluster(text, *cluster);
    write_counters(text, *cluster);
  }
  return text.take();
}

}  // namespace coordinator
