// One engine behind many nodes of a simulated cluster: weights are loaded once. Sound because an
// engine is constant after construction and the simulation has one thread.
#pragma once
#include "model/engine.h"

namespace simulation {

class SharedEngine final : public model::Engine {
 public:
  explicit SharedEngine(model::Engine& shared) : shared_(shared) {}
  const model::Shape& shape() const override { return shared_.shape(); }
  void embed(model::Pass& pass) override { shared_.embed(pass); }
  void attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    shared_.attend(layer, j, pass);
  }
  void route(uint32_t layer, model::Pass& pass) override { shared_.route(layer, pass); }
  void mlp(uint32_t layer, uint32_t j, model::Pass& pass) override { shared_.mlp(layer, j, pass); }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    shared_.experts(layer, x, rows, experts, out);
  }
  void combine(uint32_t layer, model::Pass& pass) override { shared_.combine(layer, pass); }
  void head(const model::Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    shared_.head(pass, rows, logits, final_hidden);
  }

 private:
  model::Engine& shared_;
};

}  // namespace simulation
