// An engine whose logits are not finite in every row that holds a given token.
#pragma once
#include <limits>
#include <memory>

#include "model/engine.h"

namespace decode {

class PoisonedEngine final : public model::Engine {
 public:
  PoisonedEngine(std::unique_ptr<model::Engine> inner, model::TokenId poison)
      : inner_(std::move(inner)), poison_(poison) {}
  const model::Shape& shape() const override { return inner_->shape(); }
  void embed(model::Pass& pass) override { inner_->embed(pass); }
  void attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    inner_->attend(layer, j, pass);
  }
  void route(uint32_t layer, model::Pass& pass) override { inner_->route(layer, pass); }
  void mlp(uint32_t layer, uint32_t j, model::Pass& pass) override { inner_->mlp(layer, j, pass); }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    inner_->experts(layer, x, rows, experts, out);
  }
  void combine(uint32_t layer, model::Pass& pass) override { inner_->combine(layer, pass); }
  void head(const model::Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    inner_->head(pass, rows, logits, final_hidden);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (pass.tokens[rows[i]] == poison_) {
        logits[i * shape().vocab + 17] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

  void final_norm(const model::Pass& pass, std::span<const uint32_t> rows,
                  std::vector<float>& out) override {
    inner_->final_norm(pass, rows, out);
  }
  void draft(model::Pass& pass, model::DraftIndex index) override { inner_->draft(pass, index); }
  void draft_head(const model::Pass& pass, std::span<const uint32_t> rows,
                  std::span<float> logits) override {
    inner_->draft_head(pass, rows, logits);
  }

 private:
  const std::unique_ptr<model::Engine> inner_;
  const model::TokenId poison_;
};

}  // namespace decode
