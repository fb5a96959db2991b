#include "model/forward.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

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
  run_all_experts(engine_, layer, pass);
  co_return true;
}

void run_all_experts(Engine& engine, uint32_t layer, Pass& pass) {
  const Shape& shape = engine.shape();
  CHECK(pass.rows() <= std::numeric_limits<uint16_t>::max(), "a pass of {} rows", pass.rows());
  std::vector<uint16_t> rows, experts;
  std::vector<size_t> slots;  // of each pair in expert_out
  for (uint32_t row = 0; row < pass.rows(); ++row) {
    for (uint32_t k = 0; k < shape.topk; ++k) {
      const size_t slot = static_cast<size_t>(row) * shape.topk + k;
      if (pass.expert_ids[slot] >= shape.experts) continue;
      rows.push_back(static_cast<uint16_t>(row));
      experts.push_back(static_cast<uint16_t>(pass.expert_ids[slot]));
      slots.push_back(slot);
    }
  }
  std::vector<float> out(slots.size() * shape.hidden);
  engine.experts(layer, pass.x, rows, experts, out);
  for (size_t i = 0; i < slots.size(); ++i) {
    std::copy_n(out.data() + i * shape.hidden, shape.hidden,
                pass.expert_out.data() + slots[i] * shape.hidden);
  }
}

}  // namespace model
