// Where a prefix comes from changes no token: KV that prefill made or that decode made, out of the
// store's RAM or off its disk after a restart, in bf16 and in int8, on every shape of the prefill
// pipeline. One process with the same type of KV is the judge.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <tuple>

#include "kvstore/kvstore_actor.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::seconds;

// A chat of two turns: the second asks the first, its answer and some more.
struct Chat {
  coordinator::Submission first, second;
  model::Generated first_answer, second_answer;
  uint32_t history = 0;  // tokens of the second turn that have KV when the first is over
};

struct Served {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Engine> engine;
  std::vector<Chat> chats;

  explicit Served(model::KvType kv) {
    const std::string folder = std::string(SERVAL_SOURCE_DIR) + "/models/serval-tiny";
    checkpoint = std::make_unique<model::Checkpoint>(*model::Checkpoint::open(folder));
    model::EngineOptions options;
    options.kv = kv;
    engine = *model::make_local_engine(*checkpoint, options);
    const auto reference = *model::make_reference_engine(*checkpoint, options);
    const auto tokenizer = *model::Tokenizer::load(folder);
    const std::string text = "class Stack:\n    def push(self, item):\n        self.items.append(";
    // Over the LSA budget of 128 positions and below it; the answers fill blocks of their own.
    for (const uint32_t length : {9u, 75u, 200u}) {
      Chat chat;
      coordinator::Submission& first = chat.first;
      while (first.prompt.size() < length) {
        const auto ids = tokenizer.encode(text + std::to_string(length + first.prompt.size()));
        first.prompt.insert(first.prompt.end(), ids.begin(), ids.end());
      }
      first.prompt.resize(length);
      first.sampling.max_tokens = 70;
      first.sampling.ignore_eos = true;
      first.sampling.temperature = length == 75 ? 0.0f : 0.8f;
      first.sampling.seed = length;
      first.has_seed = true;
      chat.first_answer = model::generate(*reference, first.prompt, first.sampling);
      coordinator::Submission& second = chat.second = first;
      const std::vector<base::TokenId>& answer = chat.first_answer.tokens;
      second.prompt.insert(second.prompt.end(), answer.begin(), answer.end());
      chat.history = static_cast<uint32_t>(second.prompt.size()) - 1;  // the last token has none
      const auto more = tokenizer.encode("\n\ndef main():\n");
      second.prompt.insert(second.prompt.end(), more.begin(), more.end());
      second.sampling.max_tokens = 6;
      chat.second_answer = model::generate(*reference, second.prompt, second.sampling);
      chats.push_back(std::move(chat));
    }
  }
};

Served& served(model::KvType kv) {
  static Served bf16(model::KvType::kBf16), int8(model::KvType::kInt8);
  return kv == model::KvType::kInt8 ? int8 : bf16;
}

// stages, ranks a stage, dynamic chunks, KV
class WarmTest
    : public ::testing::TestWithParam<std::tuple<uint32_t, uint32_t, bool, model::KvType>> {
 protected:
  void SetUp() override {
    ClusterOptions options;
    model::KvType kv{};
    std::tie(options.stages, options.sequence_ranks, options.dynamic_chunks, kv) = GetParam();
    options.chunk_tokens = 64;
    options.store_disk = true;
    options.store_ram = options.store_disk_bytes = 64u << 20;
    world_ = &served(kv);
    cluster_ = std::make_unique<SimCluster>(options, *world_->engine);
    ASSERT_TRUE(run_until([this] { return cluster_->ready(); }));
  }
  bool run_until(const std::function<bool()>& done) {
    return cluster_->host().run_until(done,
                                      cluster_->host().now().time_since_epoch() + seconds(120));
  }
  const kvstore::KvstoreActor& store() {
    return *static_cast<kvstore::KvstoreActor*>(cluster_->host().actor("kvstore-0"));
  }
  // The turn of every chat at once; what it found in the cache.
  std::vector<uint32_t> ask(bool second, const char* what) {
    const size_t first = cluster_->outcomes().size();
    for (const Chat& chat : world_->chats) cluster_->submit(second ? chat.second : chat.first);
    EXPECT_TRUE(run_until([this] {
      return cluster_->all_over() && cluster_->held().empty() && !store().disk().writing() &&
             !store().index().has_unwritten();
    })) << cluster_->held();
    std::vector<uint32_t> cached;
    for (size_t i = 0; i < world_->chats.size(); ++i) {
      const Chat& chat = world_->chats[i];
      const Outcome& got = *cluster_->outcomes()[first + i];
      EXPECT_FALSE(got.error.has_value()) << got.error->what;
      EXPECT_EQ(got.tokens, (second ? chat.second_answer : chat.first_answer).tokens)
          << "chat " << i << ", " << what;
      EXPECT_EQ(got.usage.attempts, 1u);
      cached.push_back(got.usage.cached_tokens);
    }
    return cached;
  }
  // Full blocks of `tokens` that leave a token of `prompt` to compute.
  std::vector<uint32_t> blocks(uint32_t (*tokens)(const Chat&)) const {
    std::vector<uint32_t> out;
    for (const Chat& chat : world_->chats) out.push_back(tokens(chat) / 64 * 64);
    return out;
  }

  Served* world_ = nullptr;
  std::unique_ptr<SimCluster> cluster_;
};

TEST_P(WarmTest, GivesTheTokensOfOneProcessFromDecodeAndFromDisk) {
  const std::vector<uint32_t> of_prompt =
      blocks([](const Chat& chat) { return static_cast<uint32_t>(chat.first.prompt.size()) - 1; });
  const std::vector<uint32_t> of_history = blocks([](const Chat& chat) { return chat.history; });
  EXPECT_EQ(ask(false, "cold"), std::vector<uint32_t>(world_->chats.size(), 0));
  EXPECT_EQ(ask(true, "after decode"), of_history);
  EXPECT_EQ(store().disk().counters().reads, 0u);

  cluster_->host().kill("kvstore-0");
  ASSERT_TRUE(run_until([this] { return cluster_->ready_stores() == 0; }));
  cluster_->host().restart("kvstore-0");
  ASSERT_TRUE(run_until([this] { return cluster_->ready(); }));
  EXPECT_EQ(ask(false, "off the disk"), of_prompt);
  EXPECT_GT(store().disk().counters().reads, 0u);
  EXPECT_EQ(ask(true, "decode's off the disk"), of_history);
  EXPECT_EQ(store().index().counters().corrupt, 0u);
}

std::string shape_of(const ::testing::TestParamInfo<WarmTest::ParamType>& info) {
  const auto& [stages, sequence, dynamic, kv] = info.param;
  return fmt::format("stages{}_sp{}_{}_{}", stages, sequence, dynamic ? "dynamic" : "fixed",
                     kv == model::KvType::kInt8 ? "int8" : "bf16");
}
INSTANTIATE_TEST_SUITE_P(Stages, WarmTest,
                         ::testing::Combine(::testing::Values(1u, 2u, 3u),
                                            ::testing::Values(1u, 2u, 3u), ::testing::Bool(),
                                            ::testing::Values(model::KvType::kBf16,
                                                              model::KvType::kInt8)),
                         shape_of);

TEST(WarmWorlds, DifferInTheirKv) {
  const model::Shape& bf16 = served(model::KvType::kBf16).engine->shape();
  const model::Shape& int8 = served(model::KvType::kInt8).engine->shape();
  EXPECT_LT(int8.kv_row_bytes, bf16.kv_row_bytes);
  EXPECT_NE(int8.layout_digest, bf16.layout_digest);
  EXPECT_EQ(int8.model_digest, bf16.model_digest);
}

}  // namespace
}  // namespace simulation
