// One engine behind many nodes of a simulated cluster: weights are loaded once. Sound because an
// engine is constant after construction and the simulation has one thread. What goes wrong in one
// node (inject) goes wrong in its SharedEngine.
#pragma once
#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "model/engine.h"
#include "model/integrity.h"

namespace simulation {

class SharedEngine final : public model::Engine {
 public:
  // Stands in `engines` under its node's name while it lives.
  using Engines = std::map<std::string, SharedEngine*>;
  SharedEngine(model::Engine& shared, Engines& engines, std::string node)
      : shared_(shared), engines_(engines), node_(std::move(node)) {
    engines_[node_] = this;
  }
  SharedEngine(const SharedEngine&) = delete;
  SharedEngine& operator=(const SharedEngine&) = delete;
  ~SharedEngine() override {
    if (engines_[node_] == this) engines_.erase(node_);
  }

  const model::Shape& shape() const override { return shared_.shape(); }
  void embed(model::Pass& pass) override { shared_.embed(pass); }
  void attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    shared_.attend(layer, j, pass);
    spoil(pass.h);
  }
  void begin_attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    shared_.begin_attend(layer, j, pass);
  }
  void end_attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    shared_.end_attend(layer, j, pass);
    spoil(pass.h);
  }
  model::ShardedAttention* sharded() override { return shared_.sharded(); }
  void route(uint32_t layer, model::Pass& pass) override { shared_.route(layer, pass); }
  void mlp(uint32_t layer, uint32_t j, model::Pass& pass) override {
    shared_.mlp(layer, j, pass);
    if (j == 1 && std::exchange(nan_next_, false))
      pass.h[0] = std::numeric_limits<float>::quiet_NaN();
  }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    for (const uint16_t id : experts) {
      if (resident_.insert({layer, id}).second) ++late_;
    }
    shared_.experts(layer, x, rows, experts, out);
    spoil(out);
  }
  void prepare_experts(model::LayerRange layers, std::span<const uint16_t> experts) override {
    for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
      for (const uint16_t id : experts) resident_.insert({layer, id});
    }
  }
  void keep_experts(uint32_t layer, std::span<const uint16_t> experts) override {
    std::erase_if(resident_, [&](const auto& held) {
      return held.first == layer && std::ranges::find(experts, held.second) == experts.end();
    });
  }
  uint64_t resident_experts() const override { return resident_.size(); }
  // Experts that a pass had to load itself.
  uint64_t late_experts() const { return late_; }

  void combine(uint32_t layer, model::Pass& pass) override { shared_.combine(layer, pass); }
  void head(const model::Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    shared_.head(pass, rows, logits, final_hidden);
    spoil(logits);
  }
  const model::NgramTables* ngram_tables() const override { return shared_.ngram_tables(); }
  void final_norm(const model::Pass& pass, std::span<const uint32_t> rows,
                  std::vector<float>& out) override {
    shared_.final_norm(pass, rows, out);
  }
  void draft(model::Pass& pass, model::DraftIndex index) override { shared_.draft(pass, index); }
  void begin_draft(model::Pass& pass) override { shared_.begin_draft(pass); }
  void draft_head(const model::Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    shared_.draft_head(pass, rows, logits);
  }
  const model::Integrity* integrity() const override { return &integrity_; }
  void inject(base::FaultPoint fault) override {
    switch (fault) {
      case base::FaultPoint::kWeightBit:
        weights_bad_ = true;
        return;
      case base::FaultPoint::kWeightLowBit:  // changes nothing that a checksum could see
        return;
      case base::FaultPoint::kProductBit:  // mended by computing again: nothing to see
        integrity_.count_transient();
        return;
      case base::FaultPoint::kHiddenNan:
        nan_next_ = true;
        return;
    }
  }

 private:
  // Bad weights spoil what they give, and the row checksums notice.
  void spoil(std::span<float> values) {
    if (!weights_bad_ || values.empty()) return;
    values[0] = values[0] == 1.0f ? 2.0f : 1.0f;
    integrity_.break_down("injected: a weight has changed in memory");
  }

  model::Engine& shared_;
  Engines& engines_;
  const std::string node_;
  model::Integrity integrity_;
  bool weights_bad_ = false, nan_next_ = false;
  std::set<std::pair<uint32_t, uint16_t>> resident_;  // layer, expert
  uint64_t late_ = 0;
};

}  // namespace simulation
