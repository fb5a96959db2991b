// Jobs on the simulated host: their order, their company, and frames that go meanwhile.
#include "tests/actor/sim_fixture.h"

namespace actor::sim_test {
namespace {

// Counts how many were done together in each run.
struct Joined final : JointJob {
  explicit Joined(std::vector<size_t>* all) : runs(all) {}
  void run(std::span<JointJob* const> all) override { runs->push_back(all.size()); }
  std::vector<size_t>* runs;
};

Task<void> join(Context* ctx, std::vector<size_t>* runs, Fate* out) {
  Witness witness(out);
  Joined job(runs);
  const JointJob::Company company{.number = 1, .size = 1, .most = 8};
  Task<void> run = ctx->offload_joint(job, company, Cost{10ms, Turn::kAsked});
  co_await std::move(run);
  ++out->reached;
  out->at = ctx->now();
}

Task<void> own_then_note(Context* ctx, Turn turn, std::string* order, const char* name) {
  std::function<void()> job = [order, name] { *order += name; };
  Task<void> run = ctx->offload(std::move(job), Cost{10ms, turn});
  co_await std::move(run);
}

TEST_F(SimTest, JobsThatWaitAreChosenWhenTheThreadIsFree) {
  std::string order;
  Context* a = &ctx("a");
  a->spawn(own_then_note(a, Turn::kOwn, &order, "1"));  // begins at once
  a->spawn(own_then_note(a, Turn::kBackground, &order, "b"));
  a->spawn(own_then_note(a, Turn::kAsked, &order, "p"));
  sim.at(5ms, [&] { a->spawn(own_then_note(a, Turn::kOwn, &order, "2")); });
  sim.run_for(1s);
  EXPECT_EQ(order, "12pb");
}

TEST_F(SimTest, JointJobsThatCameWhileTheThreadWasBusyAreDoneTogether) {
  std::vector<size_t> runs;
  std::vector<Fate> fates(4);
  Context* a = &ctx("a");
  for (Fate& fate : fates) a->spawn(join(a, &runs, &fate));
  sim.run_for(1s);
  EXPECT_EQ(runs, (std::vector<size_t>{1, 3}));
  for (const Fate& fate : fates) EXPECT_EQ(fate.reached, 1);
  EXPECT_EQ(fates[1].at, fates[3].at);
}

TEST_F(SimTest, AFrameThatGoesLeavesTheCompanyThatIsComputed) {
  std::vector<size_t> runs;
  std::vector<Fate> fates(4);
  Context* a = &ctx("a");
  {
    a->spawn(join(a, &runs, &fates[0]));
    auto first = std::make_unique<base::Future<void>>(base::start(join(a, &runs, &fates[1])));
    auto second = std::make_unique<base::Future<void>>(base::start(join(a, &runs, &fates[2])));
    a->spawn(join(a, &runs, &fates[3]));
    sim.run_for(13ms);  // the three are under way: the first took 8 to 12 ms
    ASSERT_EQ(fates[0].reached, 1);
    first.reset();
    sim.run_for(100ms);
    EXPECT_EQ(fates[2].reached, 1);
  }
  EXPECT_EQ(runs, (std::vector<size_t>{1, 2}));
  EXPECT_EQ(fates[1].reached, 0);
  EXPECT_EQ(fates[3].reached, 1);
}

TEST_F(SimTest, AKilledNodeForgetsWhatWaitedAndComputesInItsNextLife) {
  std::vector<size_t> runs;
  std::vector<Fate> fates(5);
  for (size_t i = 0; i < 4; ++i) ctx("a").spawn(join(&ctx("a"), &runs, &fates[i]));
  sim.run_for(13ms);
  sim.restart("a");
  sim.run_for(1ms);
  ctx("a").spawn(join(&ctx("a"), &runs, &fates[4]));
  sim.run_for(1s);
  EXPECT_EQ(runs, (std::vector<size_t>{1, 1}));
  EXPECT_EQ(fates[1].reached + fates[2].reached + fates[3].reached, 0);
  EXPECT_EQ(fates[1].destroyed + fates[2].destroyed + fates[3].destroyed, 3);
  EXPECT_EQ(fates[4].reached, 1);
}

TEST(SimJobs, WhereJobsTellTheirCostTheyJoinWhenTheyBeginAndLastAsLong) {
  SimOptions options;
  options.job_cost = [] { return 10ms; };
  SimHost host(options);
  host.add("a", 1, [] { return std::make_unique<Echo>(); });
  host.run_for(1us);
  std::vector<size_t> runs;
  std::vector<Fate> fates(3);
  const Time begun = host.now();
  Context* a = host.context("a");
  for (Fate& fate : fates) a->spawn(join(a, &runs, &fate));
  host.run_for(1s);
  EXPECT_EQ(runs, (std::vector<size_t>{1, 2}));
  EXPECT_EQ(fates[0].at - begun, 10ms);
  EXPECT_EQ(fates[2].at - begun, 20ms);
}

}  // namespace
}  // namespace actor::sim_test
