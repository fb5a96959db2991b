// A real coordinator and fake nodes on the simulated host.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actor/sim_host.h"
#include "coordinator/coordinator_actor.h"
#include "fake_nodes.h"

namespace coordinator {

struct Ended {
  std::vector<TokenId> tokens;
  int ends = 0;
  bool destroyed = false;
  base::FinishReason reason = base::FinishReason::kNone;
  std::optional<base::Error> error;
  Usage usage;
};

class FakeCluster {
 public:
  struct Options {
    uint64_t seed = 1;
    uint32_t stages = 2, ranks = 2, stores = 1;
    actor::SimNetwork network = {};
    uint32_t max_requests = 64;
    uint32_t deadline_ms = 60'000;
    std::string placement = "kv_aware";
    bool nodes = true;  // start them at once
  };
  explicit FakeCluster(Options options);

  void add_nodes();
  CoordinatorActor& coordinator();
  bool wait_ready(base::Duration limit = std::chrono::seconds(10));
  // Submits on the reactor of the coordinator; the answer grows in ended(number).
  int submit(uint32_t prompt, uint32_t max_tokens, uint64_t seed = 5, uint32_t deadline_ms = 0);
  int submit(Submission submission);
  // The same, admitted when it returns.
  base::RequestId submit_now(uint32_t prompt, uint32_t max_tokens);
  void cancel(int number);
  // From inside sink.tokens(), once the sink has so many.
  void cancel_inside(int number, size_t tokens);
  Ended& ended(int number) { return *ended_[static_cast<size_t>(number)]; }
  const Submission& asked(int number) const { return asked_[static_cast<size_t>(number)]; }
  std::vector<TokenId> expected(int number) const;
  bool all_ended() const;
  bool run_until_ended(base::Duration limit = std::chrono::seconds(120));
  // Nothing is held or awaited anywhere; gives calls under way time to come home.
  bool idle(base::Duration within = std::chrono::seconds(40));
  std::string held();  // what idle() waits for, for a failure report

  Knobs knobs;
  actor::SimHost sim;

 private:
  class Sink;
  const Options options_;
  std::vector<std::unique_ptr<Ended>> ended_;
  std::vector<Submission> asked_;
  std::vector<base::RequestId> ids_;
  std::map<int, size_t> cancel_inside_;
};

// Every request that ended well has the right tokens and one end.
void expect_right(FakeCluster& cluster, int requests);
double counter(FakeCluster& cluster, const std::string& name);  // of the coordinator

}  // namespace coordinator
