// Routed experts of the local engine: packing on first use, all experts of a layer in one region,
// and what comes back to the residual stream.
#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "model/local_engine.h"

namespace model {
namespace {

// What experts() works with, one a calling thread. A group is the rows of one expert.
struct ExpertScratch {
  struct Group {
    uint16_t expert;
    uint32_t begin, count;  // in `order`
  };
  std::vector<uint32_t> starts, order;  // pairs by expert, as they came within one
  std::vector<Group> groups;
  std::vector<float> in, between, result;
  std::vector<GatedProduct> gated;
  std::vector<Product> down;
};

// Counting sort of the pairs by expert id.
void group_pairs(std::span<const uint16_t> experts, uint32_t ids, ExpertScratch& s) {
  s.starts.assign(ids + 1, 0);
  for (uint16_t id : experts) ++s.starts[id + 1];
  s.groups.clear();
  for (uint32_t id = 0; id < ids; ++id) {
    if (s.starts[id + 1] > 0)
      s.groups.push_back({static_cast<uint16_t>(id), s.starts[id], s.starts[id + 1]});
    s.starts[id + 1] += s.starts[id];
  }
  s.order.resize(experts.size());
  for (uint32_t pair = 0; pair < experts.size(); ++pair) s.order[s.starts[experts[pair]]++] = pair;
}

// Whether f(i) = f(0) + i for the pairs of the group: then no copy is needed.
template <class F>
bool consecutive(const ExpertScratch& s, const ExpertScratch::Group& group, F f) {
  for (uint32_t i = 1; i < group.count; ++i)
    if (f(s.order[group.begin + i]) != f(s.order[group.begin]) + i) return false;
  return true;
}

// f(g) for every group: on all threads where there is enough to copy.
template <class F>
void for_groups(ThreadPool& pool, const ExpertScratch& s, F f) {
  constexpr size_t kWorthSharing = 64;  // rows
  if (s.order.size() >= kWorthSharing) return pool.run(static_cast<uint32_t>(s.groups.size()), f);
  for (uint32_t g = 0; g < s.groups.size(); ++g) f(g);
}

}  // namespace

const MlpWeights& LocalEngine::use_expert(uint32_t layer, uint32_t id) {
  ExpertSlot& slot = slot_of(layer, id);
  const std::lock_guard lock(slot.mutex);
  ++slot.users;
  if (!slot.ready) {
    const std::string prefix = fmt::format("model.layers.{}.mlp.experts.{}.", layer, id);
    for (const char* part : {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}) {
      const base::Status sound = digests_.check(checkpoint_, prefix + part);
      if (!sound) integrity_.break_down(sound.error().what);
    }
    const WeightReader read(checkpoint_, choice_, pool_);
    slot.weights = read.mlp(prefix, config_.hidden, config_.expert_ffn);
    slot.ready = true;
  }
  return slot.weights;
}

void LocalEngine::release_expert(uint32_t layer, uint32_t id) {
  ExpertSlot& slot = slot_of(layer, id);
  const std::lock_guard lock(slot.mutex);
  --slot.users;
}

void LocalEngine::prepare_experts(LayerRange layers, std::span<const uint16_t> experts) {
  for (uint32_t layer = std::max(layers.begin, range_.begin);
       layer < std::min(layers.end, range_.end); ++layer)
    pool_.run(static_cast<uint32_t>(experts.size()), [&](uint32_t i) {
      use_expert(layer, experts[i]);
      release_expert(layer, experts[i]);
    });
}

void LocalEngine::keep_experts(uint32_t layer, std::span<const uint16_t> experts) {
  if (layer < range_.begin || layer >= range_.end) return;
  for (uint32_t id = 0; id < config_.experts; ++id) {
    if (std::ranges::find(experts, id) != experts.end()) continue;
    ExpertSlot& slot = slot_of(layer, id);
    MlpWeights gone;  // freed after the lock
    const std::lock_guard lock(slot.mutex);
    if (!slot.ready || slot.users > 0) continue;
    std::swap(gone, slot.weights);
    slot.ready = false;
  }
}

uint64_t LocalEngine::resident_experts() const {
  uint64_t count = 0;
  for (const auto& slot : experts_) {
    const std::lock_guard lock(slot->mutex);
    count += slot->ready ? 1 : 0;
  }
  return count;
}

void LocalEngine::experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
                          std::span<const uint16_t> experts, std::span<float> out) {
  thread_local std::vector<uint32_t> slots;
  slots.resize(experts.size());
  std::iota(slots.begin(), slots.end(), 0);
  run_pairs(layer, x.data(), rows, experts, slots, out.data());
}

void LocalEngine::routed_experts(uint32_t layer, Pass& pass) {
  thread_local RoutedPairs pairs;
  pairs.take(pass, shape_);
  run_pairs(layer, pass.x.data(), pairs.rows, pairs.experts, pairs.slots, pass.expert_out.data());
}

void LocalEngine::run_pairs(uint32_t layer, const float* x, std::span<const uint16_t> rows,
                            std::span<const uint16_t> experts, std::span<const uint32_t> slots,
                            float* out) {
  thread_local ExpertScratch scratch;
  ExpertScratch& s = scratch;  // of this thread, also where others of the pool read it
  const size_t hidden = config_.hidden, ffn = config_.expert_ffn;
  group_pairs(experts, config_.experts, s);
  s.in.resize(experts.size() * hidden);
  s.between.resize(experts.size() * ffn);
  s.result.resize(experts.size() * hidden);
  s.gated.clear();
  s.down.clear();
  const auto row_of = [&](uint32_t pair) { return uint32_t{rows[pair]}; };
  const auto slot_of = [&](uint32_t pair) { return slots[pair]; };
  for (const ExpertScratch::Group& group : s.groups) {
    const MlpWeights& w = use_expert(layer, group.expert);
    const uint32_t first = s.order[group.begin];
    const float* in = consecutive(s, group, row_of) ? x + row_of(first) * hidden
                                                    : s.in.data() + group.begin * hidden;
    float* between = s.between.data() + group.begin * ffn;
    float* result = consecutive(s, group, slot_of) ? out + slot_of(first) * hidden
                                                   : s.result.data() + group.begin * hidden;
    s.gated.push_back({&w.gate, &w.up, in, group.count, between});
    s.down.push_back({&w.down, between, ffn, group.count, result, hidden});
  }
  for_groups(pool_, s, [&](size_t g) {
    const ExpertScratch::Group& group = s.groups[g];
    float* to = s.in.data() + group.begin * hidden;
    if (s.gated[g].x != to) return;
    for (uint32_t i = 0; i < group.count; ++i, to += hidden)
      std::copy_n(x + row_of(s.order[group.begin + i]) * hidden, hidden, to);
  });
  multiply_gated(compute_, s.gated);
  multiply(compute_, s.down);
  for (const ExpertScratch::Group& group : s.groups) release_expert(layer, group.expert);
  for_groups(pool_, s, [&](size_t g) {
    const ExpertScratch::Group& group = s.groups[g];
    const float* from = s.result.data() + group.begin * hidden;
    if (s.down[g].y != from) return;
    for (uint32_t i = 0; i < group.count; ++i, from += hidden)
      std::copy_n(from, hidden, out + slot_of(s.order[group.begin + i]) * hidden);
  });
}

void LocalEngine::combine(uint32_t layer, Pass& pass) {
  (void)layer;
  for_rows(pool_, pass.rows(), [&](uint32_t begin, uint32_t count) {
    for (uint32_t row = begin; row < begin + count; ++row) combine_row(pass, row);
  });
}

void LocalEngine::combine_row(Pass& pass, uint32_t row) const {
  const ModelConfig& c = config_;
  thread_local std::vector<float> sum;
  sum.assign(c.hidden, 0.0f);
  float identity = 0.0f;
  bool any_identity = false;
  for (uint32_t k = 0; k < c.topk; ++k) {
    const size_t slot = static_cast<size_t>(row) * c.topk + k;
    if (pass.expert_ids[slot] < c.experts) {
      add_scaled(pass.expert_weights[slot],
                 std::span(pass.expert_out).subspan(slot * c.hidden, c.hidden), sum.data());
    } else {
      identity += pass.expert_weights[slot];
      any_identity = true;
    }
  }
  const size_t at = static_cast<size_t>(row) * c.hidden;
  if (any_identity) add_scaled(identity, std::span(pass.x).subspan(at, c.hidden), sum.data());
  for (uint32_t i = 0; i < c.hidden; ++i) pass.h[at + i] = pass.h[at + i] + sum[i];
}

}  // namespace model
