// KV-cache parallelism in the engines: how a sequence is cut, the bytes between owner and holders,
// and that a sequence in shards has the bits of one rank. Every comparison of results is of bytes.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "base/rng.h"
#include "model/checkpoint.h"
#include "model/kv_split.h"
#include "model/make_checkpoint.h"
#include "model/shard_wire.h"
#include "model/sharded_attention.h"
#include "tests/model/pass_runner.h"
#include "tests/model/safetensors_writer.h"

namespace model {
namespace {

using testing::Sequence;

// --- the cut

TEST(KvSplit, SharesAreAlignedSubtreesOfOneSizeBeforeTheOwnersTail) {
  base::Rng rng(3);
  for (int i = 0; i < 2000; ++i) {
    const auto tokens = static_cast<uint32_t>(1 + rng.below(40'000));
    const uint32_t span = std::vector<uint32_t>{16, 64, 96, 100, 1024, 4096}[rng.below(6)];
    const auto ranks = static_cast<uint32_t>(1 + rng.below(6));
    SCOPED_TRACE(fmt::format("{} tokens, spans of {}, {} ranks", tokens, span, ranks));
    const std::vector<KvRange> shares = kv_split(tokens, span, ranks);
    ASSERT_LT(shares.size(), ranks);
    uint32_t at = 0;
    for (const KvRange& share : shares) {
      EXPECT_EQ(share.begin, at);
      EXPECT_TRUE(is_share(share, span));
      at = share.end;
    }
    if (!shares.empty()) {
      EXPECT_LE(at + kBlockTokens, tokens);
    }
  }
}

TEST(KvSplit, TheLargestShareIsAsSmallAsItCanBe) {
  EXPECT_EQ(kv_split(4000, 1024, 2), (std::vector<KvRange>{{0, 2048}}));
  EXPECT_EQ(kv_split(6 * 1024 + 100, 1024, 3), (std::vector<KvRange>{{0, 2048}, {2048, 4096}}));
  EXPECT_EQ(kv_split(4096 + 64, 1024, 4),
            (std::vector<KvRange>{{0, 1024}, {1024, 2048}, {2048, 3072}}));
  EXPECT_TRUE(kv_split(1024 + 63, 1024, 4).empty());
  EXPECT_EQ(kv_split(1024 + 64, 1024, 4), (std::vector<KvRange>{{0, 1024}}));
  EXPECT_TRUE(kv_split(100'000, 1024, 1).empty());
  // A span that is no multiple of a block: subtrees of whole blocks.
  EXPECT_EQ(kv_split(3 * 192, 96, 2), (std::vector<KvRange>{{0, 192}}));
}

TEST(KvSplit, SubtreesCoverATailInOrder) {
  EXPECT_EQ(span_subtrees({0, 100}, 64), (std::vector<KvRange>{{0, 100}}));
  EXPECT_EQ(span_subtrees({128, 600}, 64),
            (std::vector<KvRange>{{128, 256}, {256, 512}, {512, 600}}));
  EXPECT_EQ(span_subtrees({192, 193}, 64), (std::vector<KvRange>{{192, 193}}));
  EXPECT_FALSE(is_share({64, 192}, 64));
  EXPECT_FALSE(is_share({0, 192}, 64));
  EXPECT_FALSE(is_share({0, 0}, 64));
  EXPECT_TRUE(is_share({128, 256}, 64));
}

// --- the bytes

TEST(ShardWire, AQuestionThatIsCutOrNamesForeignPositionsIsNone) {
  AttendQuestion asked{{500, 2}, std::vector<float>(6, 1.5f), {}};
  asked.chosen = {std::nullopt, std::vector<uint32_t>{70, 90}};
  const base::Bytes bytes = write(asked);
  AttendQuestion got;
  ASSERT_TRUE(read(bytes, 3, {64, 128}, got));
  EXPECT_EQ(got.q, asked.q);
  EXPECT_EQ(got.chosen, asked.chosen);
  EXPECT_FALSE(read(bytes, 3, {64, 90}, got));
  EXPECT_FALSE(read(bytes, 4, {64, 128}, got));
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_FALSE(read(base::ByteView(bytes).first(n), 3, {64, 128}, got)) << n;
  asked.chosen[1] = std::vector<uint32_t>{90, 90};
  EXPECT_FALSE(read(write(asked), 3, {64, 128}, got));
}

TEST(ShardWire, CandidatesComeBackAsTheyWereSent) {
  const std::vector<IndexCandidates> sent{{{64, 65}, {1, 2}}, {}, {{100}, {-1}}};
  std::vector<IndexCandidates> got;
  const base::Bytes bytes = write(sent);
  ASSERT_TRUE(read(bytes, 3, {64, 128}, got));
  EXPECT_EQ(got[0].positions, sent[0].positions);
  EXPECT_EQ(got[2].scores, sent[2].scores);
  EXPECT_FALSE(read(bytes, 2, {64, 128}, got));
  EXPECT_FALSE(read(bytes, 4, {64, 128}, got));
  EXPECT_FALSE(read(bytes, 3, {64, 100}, got));
}

// --- the engines

// A sequence of which the first positions stand in pools of their own.
struct Sharded {
  Sharded(const Engine& engine, const Sequence& whole, uint32_t ranks)
      : tokens(whole.tokens), done(whole.done) {
    const Shape& shape = engine.shape();
    shares = kv_split(done, shape.span, ranks);
    std::vector<KvRange> ranges = shares;
    const uint32_t tail = shares.empty() ? 0 : shares.back().end;
    ranges.push_back({tail, static_cast<uint32_t>(tokens.size()) + kBlockTokens});
    const KvView from{whole.pool.get(), whole.blocks};
    for (const KvRange& range : ranges) {
      Part& part = parts.emplace_back();
      part.pool = std::make_unique<KvPool>(KvPool::blocks_for(range.count()),
                                           LayerRange{0, shape.layers}, shape.kv_row_bytes);
      part.blocks = *part.pool->allocate(part.pool->total());
      part.first_block = range.begin / kBlockTokens;
      const uint32_t count = std::min(range.end, done) - range.begin;
      std::vector<std::byte> rows(size_t{count} * shape.kv_row_bytes);
      for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        copy_rows_out(from, layer, range.begin, count, rows.data());
        copy_rows_in(part.view(), layer, range.begin, count, rows.data());
      }
    }
  }
  struct Part {
    std::unique_ptr<KvPool> pool;
    std::vector<BlockId> blocks;
    uint32_t first_block = 0;
    KvView view() const { return {pool.get(), blocks, first_block}; }
  };
  std::vector<TokenId> tokens;
  uint32_t done;
  std::vector<KvRange> shares;
  std::vector<Part> parts;  // of the shares, then the owner's
  std::vector<float> hidden;
};

// Owner and holders in one process; the holders' answers come from `holders`, in reverse order.
class ShardSite final : public Site {
 public:
  ShardSite(Engine& engine, Engine& holders, std::vector<Sharded*> of_segments)
      : engine_(engine), holders_(holders), sharded_(std::move(of_segments)) {}
  base::Task<void> compute(std::function<void()> job, uint32_t) override {
    job();
    co_return;
  }
  base::Task<bool> run_experts(uint32_t layer, Pass& pass) override {
    engine_.routed_experts(layer, pass);
    co_return true;
  }
  base::Task<bool> attend_shards(uint32_t layer, uint32_t j, Pass& pass) override {
    if (engine_.sharded()->chooses(layer, j, pass)) step({layer, j, ShardStep::kIndex}, pass);
    step({layer, j, ShardStep::kAttend}, pass);
    co_return true;
  }
  uint32_t asked[2] = {0, 0};

 private:
  void step(const ShardPoint& point, Pass& pass) {
    std::vector<std::pair<ShardRef, base::Bytes>> answers;
    for (size_t segment = 0; segment < pass.segments.size(); ++segment) {
      for (size_t share = 0; share < pass.segments[segment].away.size(); ++share) {
        const ShardRef ref{segment, share};
        const base::Bytes question = engine_.sharded()->question(point, pass, ref);
        if (question.empty()) continue;
        ++asked[static_cast<size_t>(point.step)];
        const Sharded& from = *sharded_[segment];
        base::Bytes answer;
        ASSERT_TRUE(holders_.sharded()->answer(point, from.parts[share].view(), from.shares[share],
                                               question, answer));
        EXPECT_FALSE(holders_.sharded()->answer(point, from.parts[share].view(), from.shares[share],
                                                base::ByteView(question).subspan(1), answer));
        answers.emplace_back(ref, std::move(answer));
        base::Bytes& last = answers.back().second;
        ASSERT_TRUE(holders_.sharded()->answer(point, from.parts[share].view(), from.shares[share],
                                               question, last));
      }
    }
    engine_.sharded()->own(point, pass);
    for (auto it = answers.rbegin(); it != answers.rend(); ++it) {
      EXPECT_FALSE(
          engine_.sharded()->take(point, pass, it->first, base::ByteView(it->second).subspan(1)));
      EXPECT_TRUE(engine_.sharded()->take(point, pass, it->first, it->second));
    }
    engine_.sharded()->finish(point, pass);
  }

  Engine& engine_;
  Engine& holders_;
  const std::vector<Sharded*> sharded_;
};

// The next counts[i] tokens of all of them in one pass.
void advance(ShardSite& site, Engine& engine, const std::vector<Sharded*>& sequences,
             const std::vector<uint32_t>& counts, Pass& pass) {
  const Shape& shape = engine.shape();
  pass.tokens.clear();
  pass.segments.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sharded& s = *sequences[i];
    const uint32_t back = std::min(s.done, shape.ngram_context);
    Segment segment;
    segment.row = pass.rows();
    segment.count = counts[i];
    segment.position = s.done;
    segment.kv = s.parts.back().view();
    segment.context = std::span<const TokenId>(s.tokens).subspan(s.done - back, back);
    segment.away = s.shares;
    pass.tokens.insert(pass.tokens.end(), s.tokens.begin() + s.done,
                       s.tokens.begin() + s.done + counts[i]);
    pass.segments.push_back(segment);
  }
  ASSERT_TRUE(base::run_inline(forward(engine, LayerRange{0, shape.layers}, pass, site)));
  for (size_t i = 0; i < sequences.size(); ++i) {
    const float* h = pass.h.data() + size_t{pass.segments[i].row} * shape.hidden;
    sequences[i]->hidden.insert(sequences[i]->hidden.end(), h,
                                h + size_t{counts[i]} * shape.hidden);
    sequences[i]->done += counts[i];
  }
}

std::vector<TokenId> ids(uint32_t n, uint64_t seed, uint32_t vocab) {
  base::Rng rng(seed);
  std::vector<TokenId> out(n);
  for (TokenId& t : out) t = static_cast<TokenId>(rng.below(vocab));
  return out;
}

struct Case {
  const char* checkpoint;
  uint32_t ranks;
  KvType kv = KvType::kBf16;
};

class Shards : public ::testing::TestWithParam<Case> {
 protected:
  Shards()
      : checkpoint_(*Checkpoint::open(std::string(SERVAL_SOURCE_DIR) + "/tests/golden/" +
                                      GetParam().checkpoint)) {
    options_.kv = GetParam().kv;
    options_.span = 64;
  }
  // Prefilled on one rank, decoded on several, three sequences and several rows of each at a time;
  // one of them too short for shares.
  void expect_one_ranks_bits(Engine& want_from, Engine& engine, Engine& holders) {
    const uint32_t vocab = engine.shape().vocab, steps = 5;
    std::vector<Sequence> wanted;
    std::vector<Sharded> sharded;
    uint64_t seed = 1;
    for (const uint32_t prompt : {500u, 90u, 333u}) {
      Sequence& s = wanted.emplace_back(want_from, ids(prompt + 4 * steps, seed++, vocab));
      Pass pass;
      testing::advance(want_from, {&s}, {prompt}, pass);
      sharded.emplace_back(engine, s, GetParam().ranks);
      s.hidden.clear();
    }
    EXPECT_FALSE(sharded[0].shares.empty());
    std::vector<Sharded*> all;
    for (Sharded& s : sharded) all.push_back(&s);
    ShardSite site(engine, holders, all);
    Pass pass;
    for (uint32_t step = 0; step < steps; ++step)
      advance(site, engine, all, {1 + step % 4, 2, 4 - step % 3}, pass);
    EXPECT_GT(site.asked[1], 0u);
    for (size_t i = 0; i < all.size(); ++i) {
      Pass alone;
      const auto count = all[i]->done - wanted[i].done;
      testing::advance(want_from, {&wanted[i]}, {count}, alone);
      ASSERT_EQ(wanted[i].hidden.size(), all[i]->hidden.size());
      EXPECT_EQ(std::memcmp(wanted[i].hidden.data(), all[i]->hidden.data(),
                            wanted[i].hidden.size() * sizeof(float)),
                0)
          << "sequence " << i;
    }
    sparse_ = site.asked[0] > 0;
  }

  Checkpoint checkpoint_;
  EngineOptions options_;
  bool sparse_ = false;
};

TEST_P(Shards, GiveTheBitsOfOneRankInTheLocalEngine) {
  const auto local = *make_local_engine(checkpoint_, options_);
  expect_one_ranks_bits(*local, *local, *local);
  EXPECT_EQ(sparse_, checkpoint_.config().indexer.has_value());
}

TEST_P(Shards, GiveTheSameBitsOnTwoThreadsAndWithHoldersOfTheOtherEngine) {
  const auto reference = *make_reference_engine(checkpoint_, options_);
  options_.threads = 2;
  const auto local = *make_local_engine(checkpoint_, options_);
  expect_one_ranks_bits(*local, *local, *reference);
}

TEST_P(Shards, GiveTheBitsOfOneRankInTheReference) {
  const auto local = *make_local_engine(checkpoint_, options_);
  const auto reference = *make_reference_engine(checkpoint_, options_);
  expect_one_ranks_bits(*local, *reference, *local);
}

INSTANTIATE_TEST_SUITE_P(Models, Shards,
                         ::testing::Values(Case{"tiny_flash", 2}, Case{"tiny_flash", 3},
                                           Case{"tiny_flash", 5}, Case{"tiny_longcat2", 2},
                                           Case{"tiny_longcat2", 3}, Case{"tiny_longcat2", 4},
                                           Case{"tiny_longcat2", 3, KvType::kInt8},
                                           Case{"tiny_longcat2", 3, KvType::kF32}),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", info.param.checkpoint, info.param.ranks,
                                              static_cast<int>(info.param.kv));
                         });

TEST(OracleShards, ReadEveryRowOfEveryHolder) {
  // Stands in the oracle, where every row counts.
  const auto engine = make_oracle_engine({});
  const std::vector<TokenId> tokens = ids(302, 1, 512);
  Sequence whole(*engine, tokens), other(*engine, ids(302, 2, 512));
  Pass pass;
  testing::advance(*engine, {&whole, &other}, {300, 300}, pass);
  Sharded first(*engine, whole, 3), second(*engine, other, 3);
  ASSERT_EQ(first.shares.size(), 2u);
  ShardSite site(*engine, *engine, {&first, &second});
  advance(site, *engine, {&first, &second}, {2, 2}, pass);
  whole.hidden.clear();
  other.hidden.clear();
  testing::advance(*engine, {&whole, &other}, {2, 2}, pass);
  EXPECT_EQ(first.hidden, whole.hidden);
  EXPECT_EQ(second.hidden, other.hidden);

  Sharded bad(*engine, other, 3);
  bad.done = second.done = 300;
  bad.hidden.clear();
  second.hidden.clear();
  bad.parts[0].view().write_row(0, 17)[3] ^= std::byte{1};  // one bit of a row on a holder
  ShardSite again(*engine, *engine, {&second, &bad});
  advance(again, *engine, {&second, &bad}, {2, 2}, pass);
  EXPECT_EQ(second.hidden, other.hidden);
  EXPECT_NE(bad.hidden, other.hidden);
}

TEST(OtherShards, AreNotOfferedWithHierarchicalIndexing) {
  const Checkpoint sparse =
      *Checkpoint::open(std::string(SERVAL_SOURCE_DIR) + "/tests/golden/tiny_longcat2");
  EngineOptions options;
  options.hierarchical.on = true;
  EXPECT_EQ((*make_local_engine(sparse, options))->sharded(), nullptr);
}

}  // namespace
}  // namespace model
