// Ranks that share n-gram tables give the rows of one process, whatever happens to their messages.
#include "lookup/ngram_lookup.h"

#include <gtest/gtest.h>

#include "actor/sim_host.h"
#include "base/rng.h"
#include "lookup/ngram_service.h"
#include "model/checkpoint.h"

namespace lookup {
namespace {

using actor::Context;
using actor::Incoming;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint16_t kActor = 7;

model::Engine& engine() {
  static const auto checkpoint = std::make_unique<model::Checkpoint>(
      *model::Checkpoint::open(std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny"));
  static const std::unique_ptr<model::Engine> made = *model::make_local_engine(*checkpoint, {});
  return *made;
}

// A node that asks and answers. `without`: it has no tables.
class Rank final : public actor::Actor {
 public:
  using In = actor::Accepts<proto::NgramRows>;
  explicit Rank(bool without) : without_(without) {}

  void start(Context& ctx) override {
    ctx_ = &ctx;
    lookup_ = std::make_unique<NgramLookup>(ctx, engine(), kActor, counters);
  }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::NgramRows>& in) {
    service_.answer(ctx, without_ ? nullptr : &engine(), in);
  }

  void look_up(model::Pass& pass, std::vector<base::NodeId> ranks, bool* done) {
    ctx_->spawn(run(pass, std::move(ranks), done));
  }
  void ask(base::NodeId peer, proto::NgramRows question, proto::Outcome* outcome) {
    ctx_->spawn(run_ask(ctx_, peer, std::move(question), outcome));
  }
  bool idle() const { return lookup_->in_flight() == 0 && service_.reading() == 0; }
  NgramCounters counters;

 private:
  base::Task<void> run(model::Pass& pass, std::vector<base::NodeId> ranks, bool* done) {
    base::Task<void> all = lookup_->run(pass, std::move(ranks));
    co_await std::move(all);
    *done = true;
  }
  static base::Task<void> run_ask(Context* ctx, base::NodeId peer, proto::NgramRows question,
                                  proto::Outcome* outcome) {
    const actor::Address to{peer, kActor};
    const actor::CallOptions options{"ask", milliseconds(100), seconds(5)};
    auto call = ctx->call<proto::NgramValues>(to, std::move(question), options);
    const auto answer = co_await std::move(call);
    if (answer) *outcome = answer->msg.outcome;
  }

  const bool without_;
  Context* ctx_ = nullptr;
  std::unique_ptr<NgramLookup> lookup_;
  NgramService service_{counters};
};

// Three ranks that know each other; rank 0 asks.
class Ranks {
 public:
  explicit Ranks(uint64_t seed, bool last_has_none = false) : sim({.seed = seed}) {
    for (uint32_t i = 0; i < 3; ++i)
      sim.add(name(i), kActor, [=] { return std::make_unique<Rank>(i == 2 && last_has_none); });
    sim.run_for(milliseconds(1));
    for (uint32_t i = 0; i < 3; ++i) {
      ids.push_back(sim.context(name(i))->self().node);
      for (uint32_t j = 0; j < 3; ++j)
        if (i != j) sim.context(name(j))->link(ids[i], "sim://" + name(i));
    }
  }
  Rank& rank(uint32_t i) { return *static_cast<Rank*>(sim.actor(name(i))); }
  static std::string name(uint32_t i) { return "rank-" + std::to_string(i); }

  // The hidden rows that rank 0 embeds for the pass.
  std::vector<float> embedded(model::Pass& pass) {
    bool done = false;
    rank(0).look_up(pass, ids, &done);
    EXPECT_TRUE(sim.run_until([&] { return done; }, sim.now().time_since_epoch() + seconds(10)));
    EXPECT_FALSE(pass.ngram.empty());
    engine().embed(pass);
    return pass.h;
  }

  actor::SimHost sim;
  std::vector<base::NodeId> ids;
};

// Two sequences, one of them with a context before its rows.
struct Asked {
  explicit Asked(uint64_t seed) {
    base::Rng rng(seed);
    for (int i = 0; i < 40; ++i) tokens.push_back(static_cast<base::TokenId>(3 + rng.below(200)));
    pass.tokens.assign(tokens.begin() + 4, tokens.end());
    pass.segments.resize(2);
    pass.segments[0].count = 16;
    pass.segments[0].position = 4;
    pass.segments[0].context = std::span(tokens).first(4);
    pass.segments[1].row = 16;
    pass.segments[1].count = 20;
  }
  std::vector<base::TokenId> tokens;
  model::Pass pass;
};

std::vector<float> expected(uint64_t seed) {
  Asked asked(seed);
  engine().embed(asked.pass);
  return asked.pass.h;
}

TEST(NgramLookup, SharedTablesGiveTheRowsOfOneProcess) {
  Ranks ranks(1);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Asked asked(seed);
    EXPECT_EQ(ranks.embedded(asked.pass), expected(seed));
  }
  const NgramCounters& c = ranks.rank(0).counters;
  EXPECT_GT(c.ngram_rows_here, 0u);
  EXPECT_GT(c.ngram_rows_away, 0u);
  EXPECT_EQ(c.ngram_rows_unanswered, 0u);
  EXPECT_EQ(c.ngram_rows_away, ranks.rank(1).counters.ngram_rows_answered +
                                   ranks.rank(2).counters.ngram_rows_answered);
}

TEST(NgramLookup, LossDoublesReorderingAndFlippedBitsChangeNoRow) {
  uint64_t corrupt = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Ranks ranks(seed);
    ranks.sim.network().loss = 0.2;
    ranks.sim.network().duplicate = 0.2;
    ranks.sim.network().reorder = 0.2;
    ranks.sim.network().corrupt = 0.3;
    Asked asked(seed);
    EXPECT_EQ(ranks.embedded(asked.pass), expected(seed)) << "seed " << seed;
    corrupt += ranks.rank(0).counters.ngram_corrupt;
    ranks.sim.run_for(seconds(2));
    for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(ranks.rank(i).idle());
  }
  EXPECT_GT(corrupt, 0u);
}

TEST(NgramLookup, ThePartOfADeadRankIsReadHereAndTheNextTimeAtOnce) {
  Ranks ranks(3);
  ranks.sim.kill(Ranks::name(1));
  Asked first(1), second(2);
  EXPECT_EQ(ranks.embedded(first.pass), expected(1));
  const base::Time before = ranks.sim.now();
  EXPECT_EQ(ranks.embedded(second.pass), expected(2));
  EXPECT_LT(ranks.sim.now() - before, milliseconds(50));
  EXPECT_GT(ranks.rank(0).counters.ngram_rows_unanswered, 0u);
  EXPECT_GT(ranks.rank(0).counters.ngram_rows_away, 0u);
}

TEST(NgramLookup, ARankWithoutTablesSaysSo) {
  Ranks ranks(4, /*last_has_none=*/true);
  Asked asked(1);
  EXPECT_EQ(ranks.embedded(asked.pass), expected(1));
  EXPECT_GT(ranks.rank(0).counters.ngram_rows_unanswered, 0u);
}

TEST(NgramLookup, AloneThePassIsLeftToTheEngine) {
  Ranks ranks(5);
  Asked asked(1);
  bool done = false;
  ranks.rank(0).look_up(asked.pass, {ranks.ids[0]}, &done);
  EXPECT_TRUE(done);
  EXPECT_TRUE(asked.pass.ngram.empty());
}

TEST(NgramService, RefusesWhatItCannotRead) {
  Ranks ranks(6);
  const model::NgramTables& tables = *engine().ngram_tables();
  const auto last = static_cast<uint16_t>(tables.tables() - 1);
  proto::NgramRows good, no_table = {{uint16_t(last + 1)}, {0}}, no_row = {{0}, {tables.rows(0)}},
                         uneven = {{0, 0}, {0}}, empty, huge;
  good.tables = {last};
  good.ids = {tables.rows(last) - 1};
  huge.tables.assign(NgramLookup::kAnswerMost / (tables.dim() * sizeof(float)) + 1, 0);
  huge.ids.assign(huge.tables.size(), 0);
  const std::pair<const proto::NgramRows*, proto::Outcome> cases[] = {
      {&good, proto::Outcome::kOk},        {&no_table, proto::Outcome::kCorrupt},
      {&no_row, proto::Outcome::kCorrupt}, {&uneven, proto::Outcome::kCorrupt},
      {&empty, proto::Outcome::kCorrupt},  {&huge, proto::Outcome::kCorrupt},
  };
  for (const auto& [question, want] : cases) {
    proto::Outcome got = proto::Outcome::kMissing;
    ranks.rank(0).ask(ranks.ids[1], *question, &got);
    ranks.sim.run_for(seconds(1));
    EXPECT_EQ(got, want);
  }
}

}  // namespace
}  // namespace lookup
