#include "tests/sim/sim_cluster.h"

#include <fmt/core.h>

#include <algorithm>

#include "coordinator/coordinator_actor.h"
#include "decode_node/decode_actor.h"
#include "kvstore/kvstore_actor.h"
#include "prefill_node/prefill_actor.h"
#include "tests/sim/shared_engine.h"

namespace simulation {

namespace {

class Recorder final : public coordinator::TokenSink {
 public:
  Recorder(Outcome& outcome, actor::SimHost& host) : outcome_(outcome), host_(host) {}
  void tokens(std::span<const base::TokenId> tokens,
              std::span<const base::TokenLogprobs>) override {
    if (outcome_.tokens.empty()) outcome_.first = host_.now();
    outcome_.tokens.insert(outcome_.tokens.end(), tokens.begin(), tokens.end());
  }
  void end(base::FinishReason reason, const base::Error* error,
           const coordinator::Usage& usage) override {
    ++outcome_.ends;
    outcome_.finish = reason;
    if (error != nullptr) outcome_.error = *error;
    outcome_.usage = usage;
    outcome_.ended = host_.now();
  }

 private:
  Outcome& outcome_;
  actor::SimHost& host_;
};

constexpr uint32_t kWindowMs = 1600;  // of expert loads

node::Identity identity(proto::Role role, const std::string& name, const model::Shape& shape) {
  node::Identity identity;
  identity.role = role;
  identity.name = name;
  identity.coordinator = "sim://coordinator";
  identity.version = "simulated";
  if (role != proto::Role::kKvstore) {
    identity.model = shape.model_digest;
    identity.layout = shape.layout_digest;
    identity.arithmetic = shape.arithmetic_digest;
  }
  return identity;
}

template <class T>
T* as(actor::Actor* actor) {
  return static_cast<T*>(actor);
}

}  // namespace

grammar::Vocabulary simulated_vocabulary(const model::Shape& shape) {
  static const char* const kPieces[] = {"\"", "\": ", "{\"", "\"}", "},",
                                        "ab", "true", "12",  "[[",  "]"};
  std::vector<std::string> bytes(shape.vocab);
  for (size_t id = 0; id < bytes.size(); ++id) {
    if (id < 256) {
      bytes[id] = std::string(1, static_cast<char>(id));
    } else {
      bytes[id] = std::string(kPieces[id % 10]) + kPieces[id / 10 % 10];
    }
  }
  return grammar::Vocabulary(std::move(bytes), shape.eos);
}

SimCluster::SimCluster(const ClusterOptions& options, model::Engine& engine)
    : options_(options), engine_(engine) {
  config_.prefill_stages = options.stages;
  config_.sequence_parallel = options.sequence_ranks;
  config_.decode_ranks = options.ranks;
  config_.kvstore_nodes = options.stores;
  config_.chunk_tokens = options.chunk_tokens;
  config_.max_batch = options.max_batch;
  config_.heartbeat_misses = options.heartbeat_misses;
  config_.kv_parallel = options.kv_parallel;
  config_.redundant_experts = options.redundant_experts;
  config_.reserve = options.reserve;
  config_.eplb = options.eplb ? "on" : "off";
  config_.eplb_window_ms = kWindowMs;
  config_.eplb_interval_ms = kWindowMs / 2;
  actor::SimOptions sim;
  sim.seed = options.seed;
  sim.network = options.network;
  const std::chrono::milliseconds beat(config_.heartbeat_ms);
  sim.peer_silence = beat * options.heartbeat_misses + beat / 2;
  sim.without_retry = options.without_retry;
  sim.log = options.on_log;
  sim.job_cost = options.job_cost;
  host_ = std::make_unique<actor::SimHost>(std::move(sim));
  add_nodes(options, engine);
  host_->run_for(std::chrono::microseconds(1));  // every actor has started
}

SimCluster::~SimCluster() = default;

void SimCluster::add_nodes(const ClusterOptions& options, model::Engine& engine) {
  const model::Shape shape = engine.shape();
  auto make_vocabulary = options.make_vocabulary;
  if (!make_vocabulary) make_vocabulary = [shape] { return simulated_vocabulary(shape); };
  host_->add(
      "coordinator", proto::kCoordinator,
      [this, shape] {
        coordinator::CoordinatorOptions made{config_, shape, "simulated", 1};
        return std::make_unique<coordinator::CoordinatorActor>(std::move(made));
      },
      proto::kCoordinatorNode);
  for (uint32_t i = 0; i < options.stages * options.sequence_ranks; ++i) {
    const std::string name = fmt::format("prefill-{}", i);
    host_->add(name, proto::kPrefill, [=, this, &engine] {
      prefill::PrefillConfig config;
      config.identity = identity(proto::Role::kPrefill, name, shape);
      config.shape = shape;
      config.make_engine =
          [this, name, &engine](model::LayerRange) -> base::Result<std::unique_ptr<model::Engine>> {
        return std::make_unique<SharedEngine>(engine, engines_, name);
      };
      config.make_vocabulary = make_vocabulary;
      config.kv_bytes = options.kv_bytes;
      config.chunk_tokens = options.chunk_tokens;
      config.dynamic_chunks = options.dynamic_chunks;
      config.share_experts = options.share_experts;
      config.share_ngram = options.share_ngram;
      return std::make_unique<prefill::PrefillActor>(std::move(config));
    });
    nodes_.push_back(name);
  }
  for (uint32_t i = 0; i < options.ranks; ++i) add_rank(options, engine, i);
  for (uint32_t i = 0; i < options.stores; ++i) {
    const std::string name = fmt::format("kvstore-{}", i);
    kvstore::SimMedium* medium = nullptr;
    kvstore::IndexLimits limits;
    if (options.store_disk) {
      medium = disks_.emplace_back(std::make_unique<kvstore::SimMedium>(options.seed + i)).get();
      limits.bytes = options.store_ram;
      limits.disk_bytes = options.store_disk_bytes;
    }
    host_->add(name, proto::kKvstore, [=] {
      auto disk = medium != nullptr ? kvstore::make_sim_disk(*medium) : nullptr;
      return std::make_unique<kvstore::KvstoreActor>(identity(proto::Role::kKvstore, name, shape),
                                                     limits, std::move(disk));
    });
    nodes_.push_back(name);
  }
}

void SimCluster::add_rank(const ClusterOptions& options, model::Engine& engine, uint32_t rank) {
  const model::Shape shape = engine.shape();
  auto make_vocabulary = options.make_vocabulary;
  if (!make_vocabulary) make_vocabulary = [shape] { return simulated_vocabulary(shape); };
  const std::string name = fmt::format("decode-{}", rank);
  host_->add(name, proto::kDecode, [=, this, &engine] {
    decode::DecodeConfig config;
    config.identity = identity(proto::Role::kDecode, name, shape);
    config.shape = shape;
    config.make_engine = [this, name, &engine]() -> base::Result<std::unique_ptr<model::Engine>> {
      return std::make_unique<SharedEngine>(engine, engines_, name);
    };
    config.make_vocabulary = make_vocabulary;
    config.kv_bytes = options.decode_kv_bytes > 0 ? options.decode_kv_bytes : options.kv_bytes;
    config.max_batch = options.max_batch;
    config.max_rows = options.max_rows;
    config.steps_per_schedule = options.steps_per_schedule;
    config.share_ngram = options.share_ngram;
    config.mtp_steps = options.mtp_steps;
    config.micro_batches = options.micro_batches;
    config.micro_rows = options.micro_rows;
    config.experts.on = options.eplb || options.redundant_experts > 0;
    config.experts.window = std::chrono::milliseconds(kWindowMs);
    return std::make_unique<decode::DecodeActor>(std::move(config));
  });
  nodes_.push_back(name);
}

void SimCluster::join(uint32_t rank) { add_rank(options_, engine_, rank); }

void SimCluster::forget(const std::string& node) { std::erase(nodes_, node); }

void SimCluster::leave(uint32_t rank) {
  const std::string name = fmt::format("decode-{}", rank);
  forget(name);
  if (host_->actor(name) == nullptr) return;  // it is down, and stays so
  actor::Context* context = host_->context(name);
  context->injector().post(
      [this, name, context] { as<decode::DecodeActor>(host_->actor(name))->leave(*context); });
}

void SimCluster::lose(uint32_t rank) {
  const std::string name = fmt::format("decode-{}", rank);
  forget(name);
  host_->kill(name);
}

bool SimCluster::has_rank(uint32_t rank) {
  return host_->actor(fmt::format("decode-{}", rank)) != nullptr;
}

uint64_t SimCluster::tokens_of(uint32_t rank) {
  actor::Actor* actor = host_->actor(fmt::format("decode-{}", rank));
  return actor == nullptr ? 0 : as<decode::DecodeActor>(actor)->counters().tokens;
}

coordinator::Gateway& SimCluster::gateway() {
  return *as<coordinator::CoordinatorActor>(host_->actor("coordinator"));
}

bool SimCluster::ready() {
  const coordinator::ClusterStatus status = gateway().status();
  const auto ready =
      std::count_if(status.nodes.begin(), status.nodes.end(),
                    [](const coordinator::NodeStatus& node) { return node.state == "ready"; });
  return status.ready && static_cast<size_t>(ready) >= nodes_.size() + 1;
}

size_t SimCluster::ready_stores() {
  const coordinator::ClusterStatus status = gateway().status();
  return static_cast<size_t>(
      std::ranges::count_if(status.nodes, [](const coordinator::NodeStatus& node) {
        return node.role == "kvstore" && node.state == "ready";
      }));
}

void SimCluster::inject(const std::string& node, base::FaultPoint fault) {
  const auto found = engines_.find(node);
  if (found != engines_.end()) found->second->inject(fault);
}

uint64_t SimCluster::resident_experts(const std::string& node) {
  const auto found = engines_.find(node);
  return found == engines_.end() ? 0 : found->second->resident_experts();
}

uint64_t SimCluster::late_experts(const std::string& node) {
  const auto found = engines_.find(node);
  return found == engines_.end() ? 0 : found->second->late_experts();
}

const coordinator::ExpertBalance& SimCluster::balance() {
  return as<coordinator::CoordinatorActor>(host_->actor("coordinator"))->balance();
}

size_t SimCluster::submit(coordinator::Submission submission) {
  auto outcome = std::make_unique<Outcome>();
  outcome->asked = submission;
  outcome->submitted = host_->now();
  auto sink = std::make_unique<Recorder>(*outcome, *host_);
  Outcome& kept = *outcomes_.emplace_back(std::move(outcome));
  kept.id = gateway().submit(std::move(submission), std::move(sink));
  return outcomes_.size() - 1;
}

void SimCluster::cancel(size_t index) {
  Outcome& outcome = *outcomes_[index];
  if (outcome.ends > 0) return;
  outcome.cancelled = true;
  gateway().cancel(outcome.id);
}

bool SimCluster::all_over() const {
  return std::all_of(outcomes_.begin(), outcomes_.end(),
                     [](const auto& outcome) { return outcome->ends > 0 || outcome->cancelled; });
}

SimCluster::Steps SimCluster::steps() {
  Steps all;
  for (const std::string& name : nodes_) {
    actor::Actor* actor = host_->actor(name);
    if (actor == nullptr || !name.starts_with("decode")) continue;
    const decode::Counters& counters = as<decode::DecodeActor>(actor)->counters();
    all.sequences += counters.step_sequences;
    all.tokens += counters.step_tokens;
    all.drafted += counters.drafted;
    all.accepted += counters.accepted;
    all.rows_received += counters.kv_rows_received;
    all.rows_held += counters.kv_rows_held;
    all.shard_answers += counters.shard_answers;
    all.forced += counters.forced;
  }
  return all;
}

uint64_t SimCluster::preemptions() {
  for (const auto& [name, value] : gateway().status().counters)
    if (name == "preemptions_total") return static_cast<uint64_t>(value);
  return 0;
}

double SimCluster::told(const std::string& counter) {
  double sum = 0;
  for (const coordinator::NodeStatus& node : gateway().status().nodes) {
    for (const auto& [name, value] : node.counters) sum += name == counter ? value : 0;
  }
  return sum;
}

std::string SimCluster::held() {
  std::string held;
  const auto coordinator = as<coordinator::CoordinatorActor>(host_->actor("coordinator"))->ledger();
  if (coordinator != coordinator::Ledger{}) {
    held += fmt::format("coordinator: {} requests, {} promised blocks, {} cancels, {} releases; ",
                        coordinator.requests, coordinator.promised_blocks, coordinator.open_cancels,
                        coordinator.open_releases);
  }
  if (!balance().settled()) held += "coordinator: a plan for experts is under way; ";
  for (const std::string& name : nodes_) {
    actor::Actor* actor = host_->actor(name);
    if (actor == nullptr) continue;
    if (name.starts_with("prefill")) {
      const prefill::Ledger ledger = as<prefill::PrefillActor>(actor)->ledger();
      if (ledger != prefill::Ledger{}) {
        held += fmt::format(
            "{}: {} jobs, {} leaving, {} blocks, {} unacknowledged, {} fetching, {} storing, {} "
            "n-gram reads; ",
            name, ledger.jobs, ledger.leaving, ledger.blocks_used, ledger.unacknowledged,
            ledger.fetching, ledger.storing, ledger.ngram_reads);
      }
    } else if (name.starts_with("decode")) {
      const decode::Ledger ledger = as<decode::DecodeActor>(actor)->ledger();
      if (ledger != decode::Ledger{}) {
        held += fmt::format(
            "{}: {} reservations, {} running, {} shares, {} blocks, {} outbox, {} expert calls, "
            "{} storing, {} experts to load; ",
            name, ledger.reservations, ledger.running, ledger.shares, ledger.blocks_used,
            ledger.outbox, ledger.expert_calls, ledger.storing, ledger.experts_loading);
      }
    } else {
      const auto* store = as<kvstore::KvstoreActor>(actor);
      const size_t leases = store->index().leases();
      const uint32_t reading = store->disk().reading();
      if (leases > 0 || reading > 0)
        held += fmt::format("{}: {} leases, {} disk reads; ", name, leases, reading);
    }
  }
  return held;
}

}  // namespace simulation
