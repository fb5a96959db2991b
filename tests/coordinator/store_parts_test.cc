// The pure parts that decide about the kvstores: which are asked, what is loaded, what is copied.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "coordinator/block_keys.h"
#include "coordinator/hot_groups.h"
#include "coordinator/load_choice.h"
#include "coordinator/store_plan.h"

namespace coordinator {
namespace {

using base::kBlocksOfGroup;
using base::TokenId;
using std::chrono::seconds;

const base::Hash128 kRoot{7, 7};

struct Prompt {
  explicit Prompt(size_t blocks) : tokens(blocks * 64) {
    std::iota(tokens.begin(), tokens.end(), TokenId{0});
    keys = block_keys(kRoot, tokens);
  }
  StorePlan plan(const node::StoreSites& stores, std::vector<size_t> copies = {},
                 uint64_t turn = 0) const {
    return StorePlan({kRoot, keys, tokens, turn}, stores, copies);
  }
  std::vector<TokenId> tokens;
  std::vector<base::Hash128> keys;
};

node::StoreSites stores(uint64_t count) {
  node::StoreSites sites;
  for (uint64_t i = 0; i < count; ++i) sites.add(NodeId{100 + i}, fmt::format("kvstore-{}", i));
  return sites;
}

proto::PrefixFound all_of(const proto::LookupPrefix& question) {
  proto::PrefixFound found;
  for (const proto::BlockRun& run : question.runs) found.runs.push_back(run.blocks);
  return found;
}

TEST(StorePlan, OneStoreIsAskedForThePromptInOneRun) {
  const Prompt prompt(40);
  StorePlan plan = prompt.plan(stores(1));
  ASSERT_EQ(plan.questions().size(), 1u);
  const proto::LookupPrefix& question = plan.questions().at(NodeId{100});
  EXPECT_EQ(question.keys, prompt.keys);
  EXPECT_EQ(question.tokens, prompt.tokens);
  ASSERT_EQ(question.runs.size(), 1u);
  EXPECT_EQ(question.runs[0].blocks, 40u);
  EXPECT_EQ(question.runs[0].parent, kRoot);
  EXPECT_EQ(question.parent, kRoot);
  EXPECT_FALSE(plan.complete());
  proto::PrefixFound found;
  found.blocks = 33;
  found.runs = {33};
  plan.answered(NodeId{100}, found);
  EXPECT_TRUE(plan.complete());
  EXPECT_EQ(plan.blocks(), 33u);
  EXPECT_EQ(plan.sources(33), std::vector<NodeId>(3, NodeId{100}));
  EXPECT_EQ(plan.copy_to(33), std::vector<NodeId>(3));
}

TEST(StorePlan, NoStoreOrNoBlocksIsCompleteAtOnce) {
  EXPECT_TRUE(Prompt(5).plan(stores(0)).complete());
  EXPECT_EQ(Prompt(5).plan(stores(0)).blocks(), 0u);
  EXPECT_TRUE(Prompt(0).plan(stores(3)).complete());
}

TEST(StorePlan, EachGroupIsAskedOfItsOwnerAndTheNext) {
  const Prompt prompt(200);
  const node::StoreSites five = stores(5);
  StorePlan plan = prompt.plan(five);
  std::map<base::Hash128, std::vector<NodeId>> asked;  // by block
  for (const auto& [store, question] : plan.questions()) {
    size_t in_runs = 0;
    for (const proto::BlockRun& run : question.runs) {
      const auto at = std::ranges::find(prompt.keys, question.keys[in_runs]) - prompt.keys.begin();
      EXPECT_EQ(run.parent, at == 0 ? kRoot : prompt.keys[static_cast<size_t>(at) - 1]);
      for (uint32_t i = 0; i < run.blocks; ++i) {
        const size_t block = static_cast<size_t>(at) + i;
        EXPECT_EQ(question.keys[in_runs + i], prompt.keys[block]);
        EXPECT_EQ(question.tokens[(in_runs + i) * 64], prompt.tokens[block * 64]);
        asked[prompt.keys[block]].push_back(store);
      }
      in_runs += run.blocks;
    }
    EXPECT_EQ(in_runs, question.keys.size());
  }
  for (size_t block = 0; block < prompt.keys.size(); ++block) {
    std::vector<NodeId> want = five.of(base::group_key(prompt.keys, block), 2);
    std::ranges::sort(want);
    EXPECT_EQ(asked[prompt.keys[block]], want) << block;
  }
}

TEST(StorePlan, APrefixEndsAtTheFirstBlockThatNobodyHas) {
  const Prompt prompt(100);
  for (uint64_t broken = 0; broken < 7; ++broken) {
    StorePlan plan = prompt.plan(stores(3));
    const size_t cut = broken * kBlocksOfGroup + 5;  // this block is missing everywhere
    const auto questions = plan.questions();
    for (const auto& [store, question] : questions) {
      proto::PrefixFound found;
      size_t first = 0;
      for (const proto::BlockRun& run : question.runs) {
        const auto begin = question.keys.begin() + static_cast<std::ptrdiff_t>(first);
        const auto end = begin + run.blocks;
        found.runs.push_back(static_cast<uint32_t>(
            std::find(begin, end, prompt.keys[std::min<size_t>(cut, 99)]) - begin));
        first += run.blocks;
      }
      plan.answered(store, found);
    }
    EXPECT_EQ(plan.blocks(), std::min<size_t>(cut, 99)) << broken;
  }
}

TEST(StorePlan, AStoreThatLeftIsAMissAndOneThatLacksItsOwnGetsACopy) {
  const Prompt prompt(16);
  const node::StoreSites two = stores(2);
  const std::vector<NodeId> order = two.of(prompt.keys[0], 2);
  {
    StorePlan plan = prompt.plan(two);
    plan.silent(order[0]);
    plan.answered(order[1], all_of(plan.questions().at(order[1])));
    EXPECT_EQ(plan.blocks(), 16u);
    EXPECT_EQ(plan.sources(16), std::vector<NodeId>{order[1]});
    EXPECT_EQ(plan.copy_to(16), std::vector<NodeId>{NodeId{}});  // it does not answer
  }
  {
    StorePlan plan = prompt.plan(two);
    plan.answered(order[0], {});
    plan.answered(order[1], all_of(plan.questions().at(order[1])));
    EXPECT_EQ(plan.copy_to(16), std::vector<NodeId>{order[0]});
  }
  {
    StorePlan plan = prompt.plan(two);
    plan.silent(order[0]);
    plan.silent(order[1]);
    EXPECT_TRUE(plan.complete());
    EXPECT_EQ(plan.blocks(), 0u);
  }
}

TEST(StorePlan, AHotGroupIsCopiedToItsOwnersAndReadFromAllOfThem) {
  const Prompt prompt(16);
  const node::StoreSites five = stores(5);
  const std::vector<NodeId> order = five.of(prompt.keys[0], 3);
  std::map<NodeId, int> read;
  for (uint64_t turn = 0; turn < 30; ++turn) {
    StorePlan plan = prompt.plan(five, {3}, turn);
    ASSERT_EQ(plan.questions().size(), 3u);
    const auto questions = plan.questions();
    for (const auto& [store, question] : questions) {
      if (store == order[2]) {
        plan.answered(store, {});
      } else {
        plan.answered(store, all_of(question));
      }
    }
    EXPECT_EQ(plan.copy_to(16), std::vector<NodeId>{order[2]});
    ++read[plan.sources(16)[0]];
  }
  EXPECT_EQ(read[order[0]], 15);
  EXPECT_EQ(read[order[1]], 15);
}

TEST(StorePlan, AnswersBeyondWhatWasAskedAndOfStrangersChangeNothing) {
  const Prompt prompt(20);
  StorePlan plan = prompt.plan(stores(1));
  proto::PrefixFound found;
  found.runs = {1000, 5};
  plan.answered(NodeId{5}, found);
  EXPECT_FALSE(plan.complete());
  plan.answered(NodeId{100}, found);
  plan.answered(NodeId{100}, {});  // doubled
  EXPECT_EQ(plan.blocks(), 20u);
}

TEST(LoadChoice, RecomputesWhereLoadingTakesLonger) {
  // 1000 bytes a token at 1 MB/s: 1000 tokens a second.
  const LoadCosts slow_store{1000, 1e6, 5000}, fast_store{1000, 1e9, 5000};
  const auto choose = [](std::vector<LoadCosts> stages) { return worth_loading(10, stages); };
  EXPECT_EQ(choose({slow_store}), 0u);
  EXPECT_EQ(choose({fast_store}), 10u);
  EXPECT_EQ(choose({fast_store, slow_store}), 0u);  // the slowest stage decides
  EXPECT_EQ(choose({{1000, 1e6, 1600}}), 0u);
  EXPECT_EQ(choose({{1000, 1e6, 1400}}), 10u);                    // patience
  EXPECT_EQ(choose({{1000, 1e6, 5000}, {1000, 1e9, 900}}), 10u);  // so does computing
}

TEST(LoadChoice, LoadsWhileRatesAreNotKnown) {
  for (const LoadCosts& costs :
       {LoadCosts{1000, 0, 5000}, LoadCosts{1000, 1, 0}, LoadCosts{1000, 0, 0}})
    EXPECT_EQ(worth_loading(10, std::span(&costs, 1)), 10u);
  EXPECT_EQ(worth_loading(10, {}), 10u);
  EXPECT_EQ(worth_loading(0, {}), 0u);
}

TEST(HotGroups, CountsTheLastMinuteAndForgets) {
  HotGroups hot;
  const base::Hash128 a{1, 1}, b{2, 2};
  base::Time now{seconds(100)};
  for (uint32_t i = 1; i <= 20; ++i) EXPECT_EQ(hot.use(a, now), i);
  EXPECT_EQ(hot.use(b, now), 1u);
  now += seconds(31);
  EXPECT_EQ(hot.use(a, now), 21u);
  now += seconds(31);
  EXPECT_EQ(hot.use(a, now), 2u);
  now += seconds(100);
  EXPECT_EQ(hot.use(a, now), 1u);
}

TEST(HotGroups, IsBounded) {
  HotGroups hot;
  for (uint64_t i = 0; i < 3 * HotGroups::kMost; ++i) hot.use({i, i}, base::Time{seconds(1)});
  const base::Hash128 late{1u << 30, 0};
  EXPECT_EQ(hot.use(late, base::Time{seconds(1)}), 0u);
  EXPECT_EQ(hot.use({5, 5}, base::Time{seconds(1)}), 2u);
}

}  // namespace
}  // namespace coordinator
