// Ranks as each other's expert owners: what one does about the answers of another that is broken,
// and how the service treats repeated and too many questions.
#include "experts/expert_service.h"
#include "tests/decode_node/rank_fixture.h"

namespace decode {
namespace {

enum class Fault { kDigest, kSize, kNoBlob, kRefuses, kOtherMessage };

// A rank that is ready and answers every question wrongly.
class BrokenRank final : public actor::Actor, private node::MembershipClient::Owner {
 public:
  using In = actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::ExpertIn>;
  BrokenRank(node::Identity identity, Fault fault, int* asked)
      : membership_(std::move(identity), *this), fault_(fault), asked_(asked) {}
  void start(Context& ctx) override { membership_.start(ctx); }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ExpertIn>& in) {
    ++*asked_;
    if (fault_ == Fault::kOtherMessage) return ctx.reply(in, proto::Done{});
    proto::ExpertOut out;
    if (fault_ == Fault::kRefuses) out.outcome = proto::Outcome::kNoRoom;
    const size_t values = in->pair_rows.size() * 8 + (fault_ == Fault::kSize ? 1 : 0);
    const std::vector<float> wrong(values, 7.0f);
    base::Blobs blobs;
    if (fault_ != Fault::kNoBlob) blobs.push_back(base::Blob::of(std::span<const float>(wrong)));
    if (fault_ == Fault::kSize) out.digest = base::hash128(blobs[0].view());
    ctx.reply(in, out, std::move(blobs));
  }

 private:
  void welcomed(Context& ctx, const proto::HelloReply&) override { membership_.ready(ctx); }
  void view_changed(Context&, const node::View&) override {}
  void life_lost(Context&) override {}
  void fill(proto::Heartbeat&) override {}

  node::MembershipClient membership_;
  const Fault fault_;
  int* const asked_;
};

TEST_F(RankTest, AnAnswerThatIsNotSoundIsNeverUsed) {
  for (Fault fault :
       {Fault::kDigest, Fault::kSize, Fault::kNoBlob, Fault::kRefuses, Fault::kOtherMessage}) {
    SCOPED_TRACE(static_cast<int>(fault));
    build({.ranks = 1});
    int asked = 0;
    sim->add("decode-1", proto::kDecode, [fault, &asked] {
      node::Identity identity;
      identity.role = proto::Role::kDecode;
      identity.name = "decode-1";
      identity.coordinator = "sim://coordinator";
      return std::make_unique<BrokenRank>(identity, fault, &asked);
    });
    cluster().only_experts.insert("decode-1");
    submit_plain(3, 30, 100);
    ASSERT_TRUE(run(60s));
    for (uint32_t id = 1; id <= 3; ++id) {
      expect_oracle_tokens(id);
      EXPECT_EQ(cluster().request(id).attempt, 1u);
    }
    EXPECT_GE(asked, 1);
    EXPECT_LE(asked, 3);  // then it is avoided for a while
    expect_idle(1);
  }
}

// Hands each question to the service several times, as repetitions and as questions of their own.
class ServiceActor final : public actor::Actor {
 public:
  using In = actor::Accepts<proto::ExpertIn>;
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::ExpertIn>& in) {
    for (int i = 0; i < 3; ++i) service.answer(ctx, engine_.get(), {0, 4}, in);
    after_repeats = service.computing();
    Incoming<proto::ExpertIn> other = in;
    for (uint64_t i = 1; i < 2 * experts::ExpertService::kJobsMost; ++i) {
      other.call = in.call + i;
      service.answer(ctx, engine_.get(), {0, 4}, other);
    }
    after_flood = service.computing();
    other.call = 0;  // nobody waits for an answer
    service.answer(ctx, engine_.get(), {0, 4}, other);
  }

  Counters counters;
  experts::ExpertService service{counters};
  uint32_t after_repeats = 0, after_flood = 0;

 private:
  const std::unique_ptr<model::Engine> engine_ = model::make_oracle_engine({});
};

// What a rank waits for stands still while it has nothing to compute: less with two passes.
TEST_F(RankTest, TwoMicroBatchesGiveTheSameTokensAndWaitLess) {
  double waits[2] = {}, calls[2] = {};
  for (const uint32_t passes : {1u, 2u}) {
    SCOPED_TRACE(passes);
    build({.ranks = 2, .micro_batches = passes});
    for (Request& request : mixed_requests(16)) submit_at(kReady, std::move(request));
    ASSERT_TRUE(run(60s));
    for (uint32_t id = 1; id <= 16; ++id) expect_oracle_tokens(id);
    for (uint32_t i = 0; i < 2; ++i) {
      const Counters& counters = rank(i).counters();
      waits[passes - 1] += counters.expert_wait_seconds / counters.step_seconds / 2;
      calls[passes - 1] += static_cast<double>(counters.expert_calls);
    }
    expect_idle(2);
  }
  EXPECT_LT(waits[1], waits[0]);
  EXPECT_GT(calls[1], 1.3 * calls[0]);
}

class Asker final : public actor::Actor {
 public:
  void start(Context& ctx) override {
    ctx.link(NodeId{5}, "sim://service");
    ctx.spawn(ask(ctx));
  }
  void receive(Context&, actor::Envelope&&) override {}
  std::vector<float> answer;

 private:
  Task<void> ask(Context& ctx) {
    const std::vector<float> x(8, 3.0f);
    proto::ExpertIn question;
    question.rows = 1;
    question.pair_rows = {0, 0};
    question.pair_experts = {5, 2};
    base::Blobs blobs(1, base::Blob::of(std::span<const float>(x)));
    question.digest = base::hash128(blobs[0].view());
    const actor::CallOptions options{"expert.rows", 10s, 20s};
    const actor::Address to{NodeId{5}, proto::kDecode};
    auto call = ctx.call<proto::ExpertOut>(to, question, options, std::move(blobs));
    const auto reply = co_await std::move(call);
    if (reply && reply->blobs.size() == 1) answer = reply->blobs[0].to_vector<float>();
  }
};

TEST(ExpertServiceOnAHost, ARepeatedQuestionIsComputedOnceAndTheirNumberIsBounded) {
  actor::SimHost sim({.seed = 3});
  sim.add(
      "service", proto::kDecode, [] { return std::make_unique<ServiceActor>(); }, NodeId{5});
  sim.add(
      "asker", proto::kDecode, [] { return std::make_unique<Asker>(); }, NodeId{6});
  auto& service = *static_cast<ServiceActor*>(sim.actor("service"));
  auto& asker = *static_cast<Asker*>(sim.actor("asker"));
  sim.context("service")->link(NodeId{6}, "sim://asker");
  EXPECT_TRUE(sim.run_until([&] { return !asker.answer.empty(); }, 10s));
  EXPECT_EQ(service.after_repeats, 1u);
  EXPECT_EQ(service.after_flood, experts::ExpertService::kJobsMost);
  EXPECT_EQ(service.counters.expert_rows_received, experts::ExpertService::kJobsMost);
  sim.run_for(1s);
  EXPECT_EQ(service.service.computing(), 0u);

  // The first began alone, the others waited and were done together.
  EXPECT_EQ(service.counters.expert_jobs, experts::ExpertService::kJobsMost);
  EXPECT_EQ(service.counters.expert_batches, 2u);
  EXPECT_EQ(service.counters.expert_pairs, 2 * experts::ExpertService::kJobsMost);

  const std::vector<float> x(8, 3.0f);
  std::vector<float> expected(16);
  const std::vector<uint16_t> rows = {0, 0}, experts = {5, 2};
  model::make_oracle_engine({})->experts(0, x, rows, experts, expected);
  EXPECT_EQ(asker.answer, expected);
}

}  // namespace
}  // namespace decode
