#include "fake_cluster.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace coordinator {

using base::FinishReason;
using proto::Role;
using std::chrono::milliseconds;

namespace {

actor::SimOptions sim_options(const FakeCluster::Options& options) {
  actor::SimOptions sim;
  sim.seed = options.seed;
  sim.network = options.network;
  return sim;
}

}  // namespace

class FakeCluster::Sink final : public TokenSink {
 public:
  Sink(FakeCluster& cluster, int number, Ended& ended)
      : cluster_(cluster), number_(number), ended_(ended) {}
  ~Sink() override { ended_.destroyed = true; }
  void tokens(std::span<const TokenId> tokens, std::span<const base::TokenLogprobs>) override {
    ended_.tokens.insert(ended_.tokens.end(), tokens.begin(), tokens.end());
    const auto it = cluster_.cancel_inside_.find(number_);
    if (it != cluster_.cancel_inside_.end() && ended_.tokens.size() >= it->second) {
      cluster_.coordinator().cancel(cluster_.ids_[static_cast<size_t>(number_)]);
    }
  }
  void end(FinishReason reason, const base::Error* error, const Usage& usage) override {
    ++ended_.ends;
    ended_.reason = reason;
    if (error != nullptr) ended_.error = *error;
    ended_.usage = usage;
  }

 private:
  FakeCluster& cluster_;
  const int number_;
  Ended& ended_;
};

FakeCluster::FakeCluster(Options options) : sim(sim_options(options)), options_(options) {
  CoordinatorOptions coordinator;
  coordinator.config.prefill_stages = options_.stages;
  coordinator.config.decode_ranks = options_.ranks;
  coordinator.config.kvstore_nodes = options_.stores;
  coordinator.config.max_requests = options_.max_requests;
  coordinator.config.request_deadline_ms = options_.deadline_ms;
  coordinator.config.placement = options_.placement;
  coordinator.shape.layers = 4;
  coordinator.shape.vocab = kVocab;
  coordinator.shape.max_context = 4096;
  coordinator.shape.eos = {kEos};
  coordinator.shape.model_digest = {1, 1};
  coordinator.shape.layout_digest = {2, 2};
  coordinator.shape.arithmetic_digest = {3, 3};
  sim.add(
      "coordinator", proto::kCoordinator,
      [coordinator] { return std::make_unique<CoordinatorActor>(coordinator); },
      proto::kCoordinatorNode);
  if (options_.nodes) add_nodes();
}

void FakeCluster::add_nodes() {
  const auto add = [this](Role role, const char* kind, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      const std::string name = fmt::format("{}-{}", kind, i);
      sim.add(name, static_cast<uint16_t>(role),
              [this, role, name] { return make_fake(role, knobs, name); });
    }
  };
  add(Role::kPrefill, "prefill", options_.stages);
  add(Role::kDecode, "decode", options_.ranks);
  add(Role::kKvstore, "kvstore", options_.stores);
}

CoordinatorActor& FakeCluster::coordinator() {
  return static_cast<CoordinatorActor&>(*sim.actor("coordinator"));
}

bool FakeCluster::wait_ready(base::Duration limit) {
  sim.run_for(milliseconds(1));  // the coordinator's start()
  const auto ready = [this] {
    const ClusterStatus status = coordinator().status();
    const size_t all = 1 + options_.stages + options_.ranks + options_.stores;
    return status.ready && status.nodes.size() == all &&
           std::all_of(status.nodes.begin(), status.nodes.end(),
                       [](const NodeStatus& n) { return n.state == "ready"; });
  };
  return sim.run_until(ready, (sim.now() + limit).time_since_epoch());
}

int FakeCluster::submit(uint32_t prompt, uint32_t max_tokens, uint64_t seed, uint32_t deadline_ms) {
  Submission submission;
  for (uint32_t i = 0; i < prompt; ++i) {
    submission.prompt.push_back((i * 31 + static_cast<uint32_t>(asked_.size())) % kVocab);
  }
  submission.sampling.max_tokens = max_tokens;
  submission.sampling.seed = seed;
  submission.has_seed = true;
  submission.deadline_ms = deadline_ms;
  return submit(std::move(submission));
}

int FakeCluster::submit(Submission submission) {
  const int number = static_cast<int>(asked_.size());
  asked_.push_back(submission);
  ended_.push_back(std::make_unique<Ended>());
  ids_.emplace_back();
  auto sink = std::make_shared<std::unique_ptr<TokenSink>>(
      std::make_unique<Sink>(*this, number, *ended_.back()));
  sim.context("coordinator")->injector().post([this, number, sink] {
    ids_[static_cast<size_t>(number)] =
        coordinator().submit(asked_[static_cast<size_t>(number)], std::move(*sink));
  });
  return number;
}

base::RequestId FakeCluster::submit_now(uint32_t prompt, uint32_t max_tokens) {
  const auto number = static_cast<size_t>(submit(prompt, max_tokens));
  sim.run_for(base::Duration{0});
  return ids_[number];
}

void FakeCluster::cancel(int number) {
  sim.context("coordinator")->injector().post([this, number] {
    coordinator().cancel(ids_[static_cast<size_t>(number)]);
  });
}

void FakeCluster::cancel_inside(int number, size_t tokens) { cancel_inside_[number] = tokens; }

std::vector<TokenId> FakeCluster::expected(int number) const {
  const Submission& s = asked(number);
  return truth(s.prompt, s.sampling.seed, s.sampling.max_tokens);
}

bool FakeCluster::all_ended() const {
  return std::all_of(ended_.begin(), ended_.end(), [](const auto& e) { return e->destroyed; });
}

bool FakeCluster::run_until_ended(base::Duration limit) {
  return sim.run_until([this] { return all_ended(); }, (sim.now() + limit).time_since_epoch());
}

std::string FakeCluster::held() {
  const Ledger l = coordinator().ledger();
  std::string text = fmt::format(
      "requests {} queued {} waiting tokens {} promised {}/{} asks {} cancels {} releases {} "
      "leases {}",
      l.requests, l.queued, l.waiting_tokens, l.promised_requests, l.promised_blocks, l.open_asks,
      l.open_cancels, l.open_releases, knobs.leases);
  for (const auto& [name, count] : knobs.sequences) text += fmt::format(" {} {}", name, count);
  for (const auto& [name, count] : knobs.prefilling) text += fmt::format(" {} {}", name, count);
  return text;
}

bool FakeCluster::idle(base::Duration within) {
  const auto zero = [](const auto& e) { return e.second == 0; };
  return sim.run_until(
      [&] {
        return coordinator().ledger() == Ledger{} && knobs.leases == 0 &&
               std::all_of(knobs.sequences.begin(), knobs.sequences.end(), zero) &&
               std::all_of(knobs.prefilling.begin(), knobs.prefilling.end(), zero);
      },
      (sim.now() + within).time_since_epoch());
}

void expect_right(FakeCluster& cluster, int requests) {
  for (int i = 0; i < requests; ++i) {
    const Ended& e = cluster.ended(i);
    EXPECT_EQ(e.ends, 1) << "request " << i;
    EXPECT_FALSE(e.error) << "request " << i << ": " << e.error->what;
    EXPECT_EQ(e.tokens, cluster.expected(i)) << "request " << i;
    const bool eos = !e.tokens.empty() && e.tokens.back() == kEos;
    EXPECT_EQ(e.reason, eos ? FinishReason::kStop : FinishReason::kLength) << "request " << i;
    EXPECT_EQ(e.usage.completion_tokens, e.tokens.size());
  }
}

double counter(FakeCluster& cluster, const std::string& name) {
  for (const auto& [key, value] : cluster.coordinator().status().counters) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no counter " << name;
  return -1;
}

}  // namespace coordinator
