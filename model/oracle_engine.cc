// The oracle: an engine whose arithmetic is a hash chain. A hidden row is 128 bits of hash kept as
// eight 16-bit integers in floats (exact in f32), a KV row two 64-bit hashes. Every operation mixes
// all that the real one reads: attention the KV rows of every earlier position in order, an expert
// its layer, id and input, combine the weights and outputs. So one lost, stale, doubled or
// misrouted row changes the tokens from there on.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "model/engine.h"
#include "model/sharded_attention.h"

namespace model {
namespace {

constexpr uint32_t kHidden = 8;
constexpr uint32_t kContext = 3;     // earlier ids that the embedding hashes
constexpr uint64_t kEosOneIn = 160;  // a greedy token is EOS about once in so many
constexpr TokenId kEos = 2;
constexpr float kFavourite = 12.0f;  // logit of the greedy token; the others lie in [0, 8)

// splitmix64's finaliser over the running state: order matters, every bit reaches every bit.
uint64_t mix(uint64_t state, uint64_t value) {
  uint64_t z = (state ^ value) + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// What is hashed, so that no two operations share a hash.
enum class Op : uint64_t {
  kEmbed = 1,
  kRow,
  kAttend,
  kNorm,
  kRoute,
  kMlp,
  kExpert,
  kCombine,
  kHead,
  kFollow,
  kJoin,
  kDraft,
  kDraftHead
};

struct State {
  uint64_t low = 0, high = 0;
};

State load(const float* row) {
  uint64_t words[2] = {0, 0};
  for (uint32_t i = 0; i < kHidden; ++i) {
    // A value that no oracle wrote (a row damaged on the way, NaN) is still hashed, by its bits.
    const float value = row[i];
    const bool ours = value >= 0.0f && value <= 65535.0f;
    const uint64_t part = ours ? static_cast<uint64_t>(value) : std::bit_cast<uint32_t>(value);
    words[i / 4] = (words[i / 4] << 16) ^ part;
  }
  return {words[0], words[1]};
}

void store(State state, float* row) {
  for (uint32_t i = 0; i < kHidden; ++i) {
    const uint64_t word = i < 4 ? state.low : state.high;
    row[i] = static_cast<float>((word >> (48 - 16 * (i % 4))) & 0xFFFF);
  }
}

// A running hash of one operation.
class Chain {
 public:
  Chain(uint64_t seed, Op op, uint64_t layer, uint64_t j = 0)
      : state_(mix(seed, static_cast<uint64_t>(op) << 48 | layer << 8 | j)) {}
  Chain& add(uint64_t value) {
    state_ = mix(state_, value);
    return *this;
  }
  Chain& add(const float* row) {
    const State s = load(row);
    return add(s.low).add(s.high);
  }
  uint64_t value() const { return state_; }
  State wide() const { return {state_, mix(state_, 0x6A09E667F3BCC909ull)}; }

 private:
  uint64_t state_;
};

class OracleEngine final : public Engine, private ShardedAttention {
 public:
  explicit OracleEngine(const OracleOptions& options)
      : seed_(options.seed), skew_percent_(options.skew_percent) {
    CHECK(options.experts > 0 && options.topk > 0 && options.topk <= options.experts,
          "top {} of {} experts", options.topk, options.experts);
    CHECK(options.skew_percent < 100, "a skew of {} %", options.skew_percent);
    CHECK(options.vocab > kEos + 1, "a vocabulary of {}", options.vocab);
    zero_experts_ = std::max(1u, options.experts / 2);
    shape_.layers = options.layers;
    shape_.hidden = kHidden;
    shape_.vocab = options.vocab;
    shape_.experts = options.experts;
    shape_.topk = options.topk;
    shape_.kv_row_bytes = 2 * sizeof(uint64_t);
    shape_.kv_latent_bytes = sizeof(uint64_t);
    shape_.cost = {.row = 64, .pair = 1};  // so that a chunk's cost grows with its context
    shape_.span = options.span;
    shape_.ngram_context = kContext;
    shape_.max_context = options.max_context;
    shape_.eos = {kEos};
    shape_.mtp_steps = options.mtp_steps;
    const std::array<uint64_t, 6> what{options.seed, options.layers, options.experts,
                                       options.topk, options.vocab,  options.max_context};
    shape_.model_digest = base::hash128(std::as_bytes(std::span(what)));
    shape_.layout_digest = base::hash128("oracle rows: two 64-bit hashes");
    shape_.arithmetic_digest = base::hash128("oracle arithmetic");
    if (shape_.mtp_steps > 0) shape_.layout_digest = base::hash128("oracle rows, drafting");
  }

  const Shape& shape() const override { return shape_; }

  void embed(Pass& pass) override {
    pass.h.resize(static_cast<size_t>(pass.rows()) * kHidden);
    for (const Segment& segment : pass.segments) {
      std::vector<TokenId> ids(segment.context.begin(), segment.context.end());
      const TokenId* tokens = pass.tokens.data() + segment.row;
      ids.insert(ids.end(), tokens, tokens + segment.count);
      for (uint32_t i = 0; i < segment.count; ++i) {
        const size_t at = segment.context.size() + i;
        Chain chain(seed_, Op::kEmbed, 0);
        for (size_t back = 0; back <= std::min<size_t>(at, kContext); ++back)
          chain.add(ids[at - back]);
        store(chain.wide(), row_of(pass.h, segment.row + i));
      }
    }
  }

  void attend(uint32_t layer, uint32_t j, Pass& pass) override {
    begin_attend(layer, j, pass);
    end_attend(layer, j, pass);
  }

  void begin_attend(uint32_t layer, uint32_t j, Pass& pass) override {
    for (const Segment& segment : pass.segments) {
      for (uint32_t i = 0; i < segment.count; ++i) {
        Chain row(seed_, Op::kRow, layer, j);
        row.add(row_of(pass.h, segment.row + i)).add(segment.position + i);
        const uint64_t value = row.value();
        std::memcpy(kv(segment, layer, j, segment.position + i), &value, sizeof value);
      }
    }
  }

  void end_attend(uint32_t layer, uint32_t j, Pass& pass) override {
    for (const Segment& segment : pass.segments) {
      const uint64_t before = sum_of(segment.kv, layer, j, {segment.kv.begin(), segment.position});
      end_rows(segment, layer, j, before, pass);
    }
  }

  // --- ShardedAttention: a share's answer is its sum, whatever the row

  ShardedAttention* sharded() override { return this; }
  bool chooses(uint32_t, uint32_t, const Pass&) const override { return false; }
  base::Bytes question(const ShardPoint&, const Pass&, const ShardRef&) const override {
    return base::Bytes(1);
  }
  void own(const ShardPoint& point, Pass& pass) override {
    if (pass.scratch == nullptr) pass.scratch = std::make_unique<Scratch>();
    std::vector<uint64_t>& sums = static_cast<Scratch&>(*pass.scratch).sums;
    sums.clear();
    for (const Segment& segment : pass.segments)
      sums.push_back(
          sum_of(segment.kv, point.layer, point.j, {segment.kv.begin(), segment.position}));
  }
  bool take(const ShardPoint&, Pass& pass, const ShardRef& ref, base::ByteView answer) override {
    uint64_t sum = 0;
    if (answer.size() != sizeof sum) return false;
    std::memcpy(&sum, answer.data(), sizeof sum);
    static_cast<Scratch&>(*pass.scratch).sums[ref.segment] += sum;
    return true;
  }
  void finish(const ShardPoint& point, Pass& pass) override {
    const std::vector<uint64_t>& sums = static_cast<Scratch&>(*pass.scratch).sums;
    for (size_t i = 0; i < pass.segments.size(); ++i)
      end_rows(pass.segments[i], point.layer, point.j, sums[i], pass);
  }
  bool answer(const ShardPoint& point, const KvView& kv, KvRange range, base::ByteView question,
              base::Bytes& out) const override {
    if (question.size() != 1 || point.step != ShardStep::kAttend) return false;
    const uint64_t sum = sum_of(kv, point.layer, point.j, range);
    out.resize(sizeof sum);
    std::memcpy(out.data(), &sum, sizeof sum);
    return true;
  }

  void route(uint32_t layer, Pass& pass) override {
    const uint32_t topk = shape_.topk, all = shape_.experts + zero_experts_;
    pass.x.resize(static_cast<size_t>(pass.rows()) * kHidden);
    pass.expert_ids.resize(static_cast<size_t>(pass.rows()) * topk);
    pass.expert_weights.resize(pass.expert_ids.size());
    pass.expert_out.resize(pass.expert_ids.size() * kHidden);
    for (uint32_t r = 0; r < pass.rows(); ++r) {
      const float* h = row_of(pass.h, r);
      store(Chain(seed_, Op::kNorm, layer).add(h).wide(), row_of(pass.x, r));
      Chain draw(seed_, Op::kRoute, layer);
      draw.add(row_of(pass.x, r));
      uint32_t* ids = pass.expert_ids.data() + static_cast<size_t>(r) * topk;
      for (uint32_t k = 0; k < topk; ++k) {
        uint32_t id;
        do {
          id = static_cast<uint32_t>(draw.add(k).value() % all);
          if (skew_percent_ > 0) id = skewed(layer, id, draw);
        } while (std::find(ids, ids + k, id) != ids + k);
        ids[k] = id;
      }
      std::sort(ids, ids + topk);
      for (uint32_t k = 0; k < topk; ++k) {
        pass.expert_weights[static_cast<size_t>(r) * topk + k] =
            static_cast<float>(draw.add(ids[k]).value() % 4096) / 4096.0f;
      }
    }
  }

  void mlp(uint32_t layer, uint32_t j, Pass& pass) override {
    for (uint32_t r = 0; r < pass.rows(); ++r) {
      float* h = row_of(pass.h, r);
      Chain chain(seed_, Op::kMlp, layer, j);
      chain.add(h);
      if (j == 0) chain.add(row_of(pass.x, r));
      store(chain.wide(), h);
    }
  }

  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      CHECK(experts[i] < shape_.experts, "expert {} owns no weights", experts[i]);
      Chain chain(seed_, Op::kExpert, layer, experts[i]);
      chain.add(x.data() + static_cast<size_t>(rows[i]) * kHidden);
      store(chain.wide(), out.data() + i * kHidden);
    }
  }

  void combine(uint32_t layer, Pass& pass) override {
    for (uint32_t r = 0; r < pass.rows(); ++r) {
      float* h = row_of(pass.h, r);
      Chain chain(seed_, Op::kCombine, layer);
      chain.add(h);
      for (uint32_t k = 0; k < shape_.topk; ++k) {
        const size_t slot = static_cast<size_t>(r) * shape_.topk + k;
        chain.add(std::bit_cast<uint32_t>(pass.expert_weights[slot]));
        const bool identity = pass.expert_ids[slot] >= shape_.experts;
        chain.add(identity ? row_of(pass.x, r) : pass.expert_out.data() + slot * kHidden);
      }
      store(chain.wide(), h);
    }
  }

  void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    if (final_hidden != nullptr) final_hidden->clear();
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* h = pass.h.data() + static_cast<size_t>(rows[i]) * kHidden;
      if (final_hidden != nullptr) final_hidden->insert(final_hidden->end(), h, h + kHidden);
      const uint64_t state = Chain(seed_, Op::kHead, 0).add(h).value();
      write_logits(state, pass.tokens[rows[i]], logits.subspan(i * shape_.vocab, shape_.vocab));
    }
  }

  void final_norm(const Pass& pass, std::span<const uint32_t> rows,
                  std::vector<float>& out) override {
    out.clear();
    for (const uint32_t row : rows) {
      const float* h = pass.h.data() + static_cast<size_t>(row) * kHidden;
      out.insert(out.end(), h, h + kHidden);
    }
  }

  void begin_draft(Pass& pass) override {
    CHECK(shape_.mtp_steps > 0, "this oracle does not draft");
    for (const Segment& segment : pass.segments) {
      for (uint32_t i = 0; i < segment.count; ++i) {
        float* h = row_of(pass.h, segment.row + i);
        const TokenId next = pass.tokens[segment.row + i];
        store(Chain(seed_, Op::kJoin, shape_.layers).add(h).add(next).wide(), h);
      }
    }
    begin_attend(shape_.layers, 0, pass);
  }

  void draft(Pass& pass, DraftIndex) override {
    begin_draft(pass);
    end_attend(shape_.layers, 0, pass);
    for (uint32_t r = 0; r < pass.rows(); ++r) {
      float* h = row_of(pass.h, r);
      store(Chain(seed_, Op::kDraft, shape_.layers).add(h).wide(), h);
    }
  }

  void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* h = pass.h.data() + static_cast<size_t>(rows[i]) * kHidden;
      const uint64_t state = Chain(seed_, Op::kDraftHead, 0).add(h).value();
      write_logits(state, pass.tokens[rows[i]], logits.subspan(i * shape_.vocab, shape_.vocab));
    }
  }

 private:
  // One favourite among random logits; of a drafting oracle's, target and block, most follow from
  // the token before.
  void write_logits(uint64_t state, TokenId before, std::span<float> out) const {
    for (uint32_t v = 0; v < shape_.vocab; ++v)
      out[v] = static_cast<float>(mix(state, v) >> 53) / 256.0f;  // [0, 8) in steps of 1/256
    out[kEos] = 0.0f;
    const uint64_t pick = mix(state, ~0ull);
    auto token = static_cast<TokenId>(pick % shape_.vocab);
    if (shape_.mtp_steps > 0 && (pick >> 48) % 4 != 0) {
      const uint64_t follows = Chain(seed_, Op::kFollow, 0).add(before).value();
      token = kEos + 1 + static_cast<TokenId>(follows % (shape_.vocab - kEos - 1));
    }
    out[(pick >> 32) % kEosOneIn == 0 ? kEos : token] = kFavourite;
  }
  struct Scratch final : Pass::Scratch {
    std::vector<uint64_t> sums;  // [segments]
  };

  static uint64_t sum_of(const KvView& kv, uint32_t layer, uint32_t j, KvRange range) {
    uint64_t sum = 0;
    for (uint32_t position = range.begin; position < range.end; ++position) {
      uint64_t value;
      std::memcpy(&value, kv.row(layer, position) + j * sizeof value, sizeof value);
      sum += mix(value, position);
    }
    return sum;
  }
  // h of each row ← of it and of all rows up to its own, `sum` being that of those before the
  // segment.
  void end_rows(const Segment& segment, uint32_t layer, uint32_t j, uint64_t sum,
                Pass& pass) const {
    for (uint32_t i = 0; i < segment.count; ++i) {
      const uint32_t position = segment.position + i;
      sum += sum_of(segment.kv, layer, j, {position, position + 1});
      float* h = row_of(pass.h, segment.row + i);
      store(Chain(seed_, Op::kAttend, layer, j).add(sum).add(h).wide(), h);
    }
  }
  static float* row_of(std::vector<float>& rows, uint32_t row) {
    return rows.data() + static_cast<size_t>(row) * kHidden;
  }
  static std::byte* kv(const Segment& segment, uint32_t layer, uint32_t j, uint32_t position) {
    return segment.kv.row(layer, position) + j * sizeof(uint64_t);
  }

  // The layer's busy experts in place of `id`, as often as was asked for.
  uint32_t skewed(uint32_t layer, uint32_t id, const Chain& draw) const {
    const uint64_t chance = (draw.value() >> 20) % 100;
    if (chance >= skew_percent_) return id;
    const uint32_t busy = std::max(1u, shape_.experts / 8);
    return (layer * busy + static_cast<uint32_t>(draw.value() >> 40) % busy) % shape_.experts;
  }

  const uint64_t seed_;
  const uint32_t skew_percent_;
  uint32_t zero_experts_ = 0;
  Shape shape_;
};

}  // namespace

std::unique_ptr<Engine> make_oracle_engine(const OracleOptions& options) {
  return std::make_unique<OracleEngine>(options);
}

}  // namespace model
