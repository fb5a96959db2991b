// CostedEngine: another engine's results at the price of a large model on a modelled host. A job
// takes as long as reading the weights it uses at the host's bandwidth or multiplying them at its
// rate, whichever is longer. Prefill costs its experts alone, the head nothing.
#pragma once
#include <vector>

#include "base/time.h"
#include "model/engine.h"

namespace bench {

// Elements of the weights. Defaults: LongCat-2.0, from its published config (hidden 8192, dense FFN
// 12288, expert FFN 2048, 64 heads, q rank 1536, KV rank 512, rope 64, vocabulary 163840).
struct ModelledModel {
  uint32_t hidden = 8192;
  uint64_t attention = 8192u * 1536u + 1536u * 64u * 192u + 8192u * 576u + 512u * 64u * 256u +
                       64u * 128u * 8192u;  // q_a, q_b, kv_a, kv_b, o
  uint64_t mlp = 3u * 8192u * 12288u;
  uint64_t expert = 3u * 8192u * 2048u;
};
struct ModelledHost {
  double bytes_per_second = 400e9;  // of memory; weights are int8: an element is a byte
  double madds_per_second = 20e12;
};

class CostedEngine final : public model::Engine {
 public:
  // `of` outlives it.
  CostedEngine(model::Engine& of, const ModelledModel& model, const ModelledHost& host)
      : of_(of), model_(model), host_(host) {}

  // What was computed since the last call costs so much.
  base::Duration take_cost();
  // From now on attention and dense FFN of decode take `times` as long. Experts do not: prompts
  // need them too.
  void slow_down(double times) { times_ = times; }
  // (row, expert) pairs computed since the start.
  uint64_t pairs() const { return pairs_; }

  const model::Shape& shape() const override { return of_.shape(); }
  void embed(model::Pass& pass) override { of_.embed(pass); }
  void attend(uint32_t layer, uint32_t j, model::Pass& pass) override {
    if (decodes(pass)) use(model_.attention, pass.rows(), times_);
    of_.attend(layer, j, pass);
  }
  void route(uint32_t layer, model::Pass& pass) override { of_.route(layer, pass); }
  void mlp(uint32_t layer, uint32_t j, model::Pass& pass) override {
    if (decodes(pass)) use(model_.mlp, pass.rows(), times_);
    of_.mlp(layer, j, pass);
  }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override;
  void combine(uint32_t layer, model::Pass& pass) override { of_.combine(layer, pass); }
  void head(const model::Pass& pass, std::span<const uint32_t> rows, std::span<float> logits,
            std::vector<float>* final_hidden) override {
    of_.head(pass, rows, logits, final_hidden);
  }

 private:
  // Every sequence adds one row: prompts here are longer.
  static bool decodes(const model::Pass& pass) { return pass.segments.size() == pass.rows(); }
  // `rows` rows through a matrix of so many elements.
  void use(uint64_t elements, uint64_t rows, double times);

  model::Engine& of_;
  const ModelledModel model_;
  const ModelledHost host_;
  double seconds_ = 0, times_ = 1;
  uint64_t pairs_ = 0;
};

}  // namespace bench
