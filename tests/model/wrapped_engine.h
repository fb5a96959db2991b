// An engine around another, for tests that change one thing.
#pragma once
#include "model/engine.h"

namespace model::testing {

class WrappedEngine : public Engine {
 public:
  explicit WrappedEngine(Engine& inner) : inner_(inner) {}
  const Shape& shape() const override { return inner_.shape(); }
  void embed(Pass& pass) override { inner_.embed(pass); }
  void attend(uint32_t layer, uint32_t j, Pass& pass) override { inner_.attend(layer, j, pass); }
  void route(uint32_t layer, Pass& pass) override { inner_.route(layer, pass); }
  void mlp(uint32_t layer, uint32_t j, Pass& pass) override { inner_.mlp(layer, j, pass); }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    inner_.experts(layer, x, rows, experts, out);
  }
  void combine(uint32_t layer, Pass& pass) override { inner_.combine(layer, pass); }
  void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    inner_.head(pass, rows, logits, final_hidden);
  }
  void final_norm(const Pass& pass, std::span<const uint32_t> rows,
                  std::vector<float>& out) override {
    inner_.final_norm(pass, rows, out);
  }
  void prefetch(const Pass& pass) override { inner_.prefetch(pass); }
  void draft(Pass& pass, DraftIndex index) override { inner_.draft(pass, index); }
  void begin_draft(Pass& pass) override { inner_.begin_draft(pass); }
  void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    inner_.draft_head(pass, rows, logits);
  }
  void set_probe(Probe* probe) override { inner_.set_probe(probe); }

 protected:
  Engine& inner_;
};

// The position in its sequence of a row of the pass.
inline uint32_t position_of(const Pass& pass, uint32_t row) {
  for (const Segment& segment : pass.segments)
    if (row >= segment.row && row < segment.row + segment.count)
      return segment.position + row - segment.row;
  CHECK(false, "row {} is in no segment", row);
  return 0;
}

// Drafts what a script says: the token at each position of `truth`, or a wrong one.
class ScriptedDrafts final : public WrappedEngine {
 public:
  using Right = std::function<bool(uint32_t position)>;
  ScriptedDrafts(Engine& inner, std::vector<TokenId> truth, Right right)
      : WrappedEngine(inner), truth_(std::move(truth)), right_(std::move(right)) {}
  void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    const size_t vocab = shape().vocab;
    std::fill(logits.begin(), logits.end(), 0.0f);
    for (size_t i = 0; i < rows.size(); ++i) {
      const uint32_t position = position_of(pass, rows[i]) + 2;  // of the token that is drafted
      TokenId token = position < truth_.size() ? truth_[position] : 0;
      if (!right_(position)) token = (token + 1) % static_cast<TokenId>(vocab);
      logits[i * vocab + token] = 1e6f;
    }
  }

 private:
  std::vector<TokenId> truth_;
  Right right_;
};

// NaN where the target predicts the token at `position`; or in every draft.
class Poisoned final : public WrappedEngine {
 public:
  Poisoned(Engine& inner, uint32_t position, bool drafts)
      : WrappedEngine(inner), position_(position), drafts_(drafts) {}
  void head(const Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    inner_.head(pass, rows, logits, final_hidden);
    for (size_t i = 0; i < rows.size(); ++i)
      if (position_of(pass, rows[i]) + 1 == position_)
        logits[i * shape().vocab + 5] = std::numeric_limits<float>::quiet_NaN();
  }
  void draft_head(const Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    inner_.draft_head(pass, rows, logits);
    if (drafts_) std::fill(logits.begin(), logits.end(), std::numeric_limits<float>::quiet_NaN());
  }

 private:
  const uint32_t position_;
  const bool drafts_;
};

}  // namespace model::testing
