#include "model/forward.h"

namespace model {

namespace {

// Sets pass.faulty of rows that are not finite. One pass over h a layer: nothing beside the layer.
void note_faulty(Pass& pass, uint32_t layer) {
  if (pass.rows() == 0) return;
  const size_t hidden = pass.h.size() / pass.rows();
  for (uint32_t row = 0; row < pass.rows(); ++row) {
    const std::span<const float> h = std::span<const float>(pass.h).subspan(row * hidden, hidden);
    if (pass.faulty[row] == 0 && !all_finite(h)) pass.faulty[row] = layer + 1;
  }
}

}  // namespace

// Two hops to the computing side per layer: a layer's combine waits for the next layer's first job,
// and MLP 1 goes with attention 1. So a layer's KV leaves before its experts are home and before
// anything of the next layer computes.
base::Task<bool> forward(Engine& engine, LayerRange layers, Pass& pass, Site& site) {
  const uint32_t rows = pass.rows();
  pass.faulty.assign(rows, 0);
  for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
    std::function<void()> first_half = [&engine, &pass, layer, begin = layers.begin] {
      if (layer == 0) engine.embed(pass);
      if (layer > begin) engine.combine(layer - 1, pass);
      engine.attend(layer, 0, pass);
      engine.route(layer, pass);
    };
    if (!site.has_kv(layer)) {
      base::Task<void> here = site.await_kv(layer);
      co_await std::move(here);
    }
    base::Task<void> first = site.compute(std::move(first_half), rows);
    co_await std::move(first);

    base::Future<bool> shortcut = base::start(site.run_experts(layer, pass));  // rows leave now

    std::function<void()> second_half = [&engine, &pass, layer] {
      engine.mlp(layer, 0, pass);
      engine.attend(layer, 1, pass);
      engine.mlp(layer, 1, pass);
      note_faulty(pass, layer);  // before the layer's KV leaves
    };
    base::Task<void> second = site.compute(std::move(second_half), rows);
    co_await std::move(second);
    site.kv_ready(layer, pass);

    const bool home = co_await shortcut;  // and come home here
    if (!home) co_return false;
  }
  if (layers.count() > 0) {
    std::function<void()> last_half = [&engine, &pass, layer = layers.end - 1] {
      engine.combine(layer, pass);
      note_faulty(pass, layer);
    };
    base::Task<void> last = site.compute(std::move(last_half), rows);
    co_await std::move(last);
  }
  co_return true;
}

base::Task<void> Site::await_kv(uint32_t layer) {
  (void)layer;
  co_return;
}

base::Task<void> InlineSite::compute(std::function<void()> job, uint32_t rows) {
  (void)rows;
  job();
  co_return;
}

base::Task<bool> InlineSite::run_experts(uint32_t layer, Pass& pass) {
  engine_.routed_experts(layer, pass);
  co_return true;
}

}  // namespace model
