// The slow round over the weights in memory: what row checksums cannot see, because no product uses
// it or the difference is below their threshold, is found here.
#include <fmt/core.h>

#include "model/local_engine.h"

namespace model {

void LocalEngine::list_weights() {
  const auto add = [this](const PackedMatrix& w) {
    if (!w.empty()) scrubbed_.push_back(&w);
  };
  const auto add_layer = [&add](const LayerWeights& layer) {
    for (const AttentionWeights& a : layer.attention) {
      for (const PackedMatrix* w : {&a.q_a, &a.q_b, &a.kv_a, &a.o}) add(*w);
      for (const PackedMatrix& w : a.absorb_k) add(w);
      for (const PackedMatrix& w : a.absorb_v) add(w);
    }
    for (const MlpWeights& mlp : layer.mlp)
      for (const PackedMatrix* w : {&mlp.gate, &mlp.up, &mlp.down}) add(*w);
    for (const PackedMatrix* w :
         {&layer.indexer.wq_b, &layer.indexer.wk, &layer.indexer.weights_proj, &layer.router})
      add(*w);
  };
  for (const LayerWeights& layer : layers_) add_layer(layer);
  for (const PackedMatrix& w : ngram_projections_) add(w);
  if (draft_) {
    add(draft_->join);
    add_layer(draft_->layer);
  }
  add(lm_head_);
}

uint64_t LocalEngine::weight_bytes() const {
  uint64_t bytes = 0;
  for (const PackedMatrix* w : scrubbed_) bytes += w->bytes();
  for (const auto& slot : experts_) {
    const std::lock_guard lock(slot->mutex);
    if (!slot->ready) continue;
    for (const PackedMatrix* w : {&slot->weights.gate, &slot->weights.up, &slot->weights.down})
      bytes += w->bytes();
  }
  return bytes;
}

void LocalEngine::scrub(uint64_t bytes) {
  uint64_t seen = 0;
  const auto check = [&](const PackedMatrix& w) {
    seen += w.bytes();
    if (w.intact()) return;
    integrity_.break_down(
        fmt::format("{} weights [{}, {}] have changed in memory, found by a scrub",
                    name_of(w.format()), w.outputs(), w.inputs()));
  };
  const size_t all = scrubbed_.size() + experts_.size();
  for (size_t i = 0; i < all && seen < bytes && !integrity_.broken(); ++i) {
    const size_t at = scrub_at_;
    scrub_at_ = (scrub_at_ + 1) % all;
    if (at < scrubbed_.size()) {
      check(*scrubbed_[at]);
      continue;
    }
    ExpertSlot& slot = *experts_[at - scrubbed_.size()];
    {
      const std::lock_guard lock(slot.mutex);
      if (!slot.ready) continue;
      ++slot.users;
    }
    for (const PackedMatrix* w : {&slot.weights.gate, &slot.weights.up, &slot.weights.down})
      check(*w);
    const std::lock_guard lock(slot.mutex);
    --slot.users;
  }
}

}  // namespace model
