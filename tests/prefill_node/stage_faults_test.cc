#include <gtest/gtest.h>

#include <limits>

#include "model/forward.h"
#include "tests/prefill_node/fixture.h"

namespace prefill_test {
namespace {

using proto::Outcome;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(PrefillFaults, ACancelFreesEverythingAtAnyMoment) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options;
    options.seed = seed;
    options.passes = 1 + seed % 2;
    Cluster cluster(options);
    cluster.sim.network().loss = 0.05;
    cluster.sim.network().duplicate = 0.2;
    cluster.sim.network().reorder = 0.2;
    cluster.await_ready();
    proto::StartPrefill start = cluster.request(7, 500);
    start.store = cluster.coordinator().node("store-0");
    cluster.start(start);
    cluster.sim.run_for(milliseconds(seed % 10) + std::chrono::microseconds(137 * seed));
    cluster.cancel(7, 1);
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(20)))
        << cluster.sim.recent_log();
    cluster.sim.run_for(seconds(3));  // late starts and inputs are fenced
    EXPECT_TRUE(cluster.idle());
    for (uint32_t i = 0; i < 2; ++i) EXPECT_EQ(cluster.start_at(i, start), Outcome::kStale);
    const proto::StartPrefill next = cluster.request(7, 500, 2);
    cluster.start(next);
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(next) && cluster.idle(); },
                                      seconds(60)));
    cluster.expect_arrived(next);
  }
}

TEST(PrefillFaults, TheDeadlineEndsAJobThatWaits) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 100);
  start.deadline_ms = 500;
  EXPECT_EQ(cluster.start_at(1, start), Outcome::kOk);  // no input will come
  cluster.sim.run_for(milliseconds(400));
  EXPECT_EQ(cluster.stage(1).ledger().jobs, 1u);
  cluster.sim.run_for(milliseconds(200));
  EXPECT_TRUE(cluster.idle());
  ASSERT_EQ(cluster.coordinator().failures.size(), 1u);
  EXPECT_EQ(cluster.coordinator().failures[0].code, static_cast<uint16_t>(base::Code::kDeadline));
}

TEST(PrefillFaults, ARankThatIsSilentIsWaitedForUntilTheDeadlineOnly) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  cluster.decode().silent = true;
  proto::StartPrefill start = cluster.request(7, 300);
  start.deadline_ms = 2000;
  cluster.start(start);
  cluster.sim.run_for(milliseconds(1500));
  EXPECT_EQ(cluster.stage(0).ledger().unacknowledged, start.credits);  // and no more
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(20)));
  EXPECT_EQ(cluster.coordinator().failures.size(), 1u);
}

TEST(PrefillFaults, ARankThatIsCutOffFromAStageIsBlamedSoon) {
  for (const bool at_commit : {false, true}) {
    Cluster cluster(ClusterOptions{});
    cluster.await_ready();
    const proto::StartPrefill start = cluster.request(7, 300);
    cluster.start(start);
    if (at_commit) {
      const auto all_rows = [&] {
        const auto found = cluster.decode().collected.find({start.request, start.attempt});
        return found != cluster.decode().collected.end() && !found->second.commits.empty();
      };
      EXPECT_TRUE(cluster.sim.run_until(all_rows, seconds(10)));
    }
    cluster.sim.cut("prefill-1", "decode-0", seconds(60));
    cluster.sim.cut("decode-0", "prefill-1", seconds(60));
    EXPECT_TRUE(cluster.sim.run_until([&] { return !cluster.coordinator().failures.empty(); },
                                      cluster.sim.now().time_since_epoch() + seconds(3)));
    ASSERT_EQ(cluster.coordinator().failures.size(), 1u);
    EXPECT_EQ(cluster.coordinator().failures[0].blamed, start.decode);
    EXPECT_FALSE(cluster.coordinator().failures[0].without_cache);
    cluster.cancel(7, 1);
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(20)));
  }
}

TEST(PrefillFaults, ANodeThatLeavesTheViewEndsItsJobs) {
  for (const std::string gone : {"decode-0", "prefill-1", "prefill-0"}) {
    SCOPED_TRACE(gone);
    Cluster cluster(ClusterOptions{});
    cluster.await_ready();
    const proto::StartPrefill start = cluster.request(7, 2000);
    cluster.start(start);
    cluster.sim.run_for(milliseconds(5));
    cluster.sim.kill(gone);
    cluster.coordinator().declare_dead(gone);
    cluster.sim.run_for(seconds(1));
    ASSERT_EQ(cluster.coordinator().failures.size(), 1u) << cluster.sim.recent_log();
    EXPECT_EQ(cluster.coordinator().failures[0].code, static_cast<uint16_t>(base::Code::kPeerGone));
    for (uint32_t i = 0; i < 2; ++i) {
      if (gone == "prefill-" + std::to_string(i)) continue;
      EXPECT_EQ(cluster.stage(i).ledger(), prefill::Ledger{});
    }
  }
}

TEST(PrefillFaults, ALostLifeFreesEverythingAndTheNextOneWorks) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  cluster.start(cluster.request(7, 2000));
  cluster.sim.run_for(milliseconds(5));
  EXPECT_GT(cluster.stage(0).ledger().blocks_used, 0u);
  cluster.coordinator().declare_dead("prefill-0");
  cluster.coordinator().declare_dead("prefill-1");
  cluster.sim.run_for(milliseconds(100));
  EXPECT_TRUE(cluster.idle());
  cluster.await_ready();
  const proto::StartPrefill start = cluster.request(8, 200);
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(30)))
      << cluster.sim.recent_log();
  cluster.expect_arrived(start);
  for (const proto::AttemptFailed& failure : cluster.coordinator().failures)
    EXPECT_EQ(failure.request.value, 7u);
}

TEST(PrefillFaults, DamagedRowsAreSentAgainButNotForEver) {
  Cluster cluster(ClusterOptions{});
  cluster.await_ready();
  cluster.decode().corrupt_first = 5;
  const proto::StartPrefill start = cluster.request(7, 100);
  cluster.start(start);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.committed(start) && cluster.idle(); },
                                    seconds(30)));
  cluster.expect_arrived(start);
  EXPECT_EQ(
      cluster.stage(0).counters().shipped.corrupt + cluster.stage(1).counters().shipped.corrupt,
      5u);
  cluster.decode().answer_rows = Outcome::kCorrupt;
  cluster.start(cluster.request(8, 100));
  EXPECT_TRUE(
      cluster.sim.run_until([&] { return !cluster.coordinator().failures.empty(); }, seconds(30)));
  cluster.cancel(8, 1);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(30)));
}

TEST(PrefillFaults, AForgottenReservationFailsTheAttemptAndAStaleOneEndsInSilence) {
  for (const Outcome outcome : {Outcome::kUnknown, Outcome::kStale}) {
    Cluster cluster(ClusterOptions{});
    cluster.await_ready();
    cluster.decode().answer_rows = outcome;
    cluster.start(cluster.request(7, 300));
    cluster.sim.run_for(seconds(1));
    EXPECT_EQ(cluster.stage(0).ledger(), prefill::Ledger{});
    EXPECT_EQ(cluster.coordinator().failures.size(), outcome == Outcome::kUnknown ? 1u : 0u);
  }
}

// The oracle, but one token makes logits that are not finite.
class NotFinite final : public model::Engine {
 public:
  explicit NotFinite(std::unique_ptr<model::Engine> inner) : inner_(std::move(inner)) {}
  const model::Shape& shape() const override { return inner_->shape(); }
  void embed(model::Pass& pass) override { inner_->embed(pass); }
  void attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    inner_->attend(layer, j, pass);
  }
  void route(uint32_t layer, model::Pass& pass) override { inner_->route(layer, pass); }
  void mlp(uint32_t layer, uint32_t j, model::Pass& pass) override { inner_->mlp(layer, j, pass); }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> ids, std::span<float> out) override {
    inner_->experts(layer, x, rows, ids, out);
  }
  void combine(uint32_t layer, model::Pass& pass) override { inner_->combine(layer, pass); }
  void head(const model::Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    inner_->head(pass, rows, logits, final_hidden);
    if (pass.tokens.back() == 13) logits[7] = std::numeric_limits<float>::infinity();
  }

 private:
  const std::unique_ptr<model::Engine> inner_;
};

TEST(PrefillFaults, LogitsThatAreNotFiniteAreNeverSampled) {
  ClusterOptions options;
  options.make_engine = [] {
    return std::make_unique<NotFinite>(model::make_oracle_engine(model::OracleOptions{}));
  };
  Cluster cluster(options);
  cluster.await_ready();
  proto::StartPrefill start = cluster.request(7, 100);
  start.tokens.back() = 13;
  cluster.start(start);
  EXPECT_TRUE(
      cluster.sim.run_until([&] { return !cluster.coordinator().failures.empty(); }, seconds(30)));
  const proto::AttemptFailed& failure = cluster.coordinator().failures[0];
  EXPECT_EQ(failure.code, static_cast<uint16_t>(base::Code::kInternal));
  EXPECT_NE(failure.what.find("numerical_error"), std::string::npos);
  EXPECT_FALSE(cluster.committed(start));
  cluster.cancel(7, 1);
  EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(10)));
}

TEST(PrefillFaults, KillsPausesAndCutsAtRandomLeaveNothingBehind) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options;
    options.seed = seed;
    Cluster cluster(options);
    cluster.sim.network().loss = 0.05;
    cluster.sim.network().duplicate = 0.1;
    cluster.await_ready();
    base::Rng& rng = cluster.sim.rng();
    for (uint64_t id = 1; id <= 8; ++id) {
      proto::StartPrefill start = cluster.request(id, static_cast<uint32_t>(1 + rng.below(400)));
      start.store = cluster.coordinator().node("store-0");
      start.deadline_ms = 5000;
      cluster.start(start);
      cluster.sim.run_for(milliseconds(rng.below(6)));
      const uint64_t kind = rng.below(6);
      if (kind == 0) cluster.cancel(rng.below(8) + 1, 1);
      if (kind == 1) cluster.sim.pause("prefill-1", milliseconds(rng.below(300)));
      if (kind == 2) cluster.sim.cut("prefill-0", "decode-0", milliseconds(rng.below(300)));
      if (kind == 3) {
        cluster.sim.kill("prefill-1");
        cluster.coordinator().declare_dead("prefill-1");
        cluster.sim.restart("prefill-1");
        cluster.await_ready();
      }
    }
    EXPECT_TRUE(cluster.sim.run_until([&] { return cluster.idle(); }, seconds(60)))
        << cluster.sim.recent_log();
    EXPECT_EQ(cluster.sim.error_logs(), 0u);
  }
}

}  // namespace
}  // namespace prefill_test
