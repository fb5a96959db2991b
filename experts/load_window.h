// LoadWindow: how much was lately asked of each expert by this rank's rows, and how much this rank
// has computed. The window moves in eighths. Bounded: nine numbers an expert and layer.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"

namespace experts {

class LoadWindow {
 public:
  static constexpr uint32_t kParts = 8;

  LoadWindow(uint32_t layers, uint32_t experts)
      : layers_(layers), experts_(experts), sum_(size_t{layers} * (experts + 1), 0) {
    parts_.fill(sum_);
  }
  // Rows that this rank owns asked for these; ids of identity experts are not counted.
  void routed(uint32_t layer, std::span<const uint32_t> expert_ids) {
    for (const uint32_t id : expert_ids) {
      if (id < experts_) add(layer, id, 1);
    }
  }
  // This rank ran experts on so many pairs, its own or others'.
  void computed(uint32_t layer, size_t pairs) {
    add(layer, experts_, static_cast<uint32_t>(pairs));
  }
  // An eighth of the window is over: the oldest leaves.
  void turn() {
    now_ = (now_ + 1) % kParts;
    for (size_t i = 0; i < sum_.size(); ++i) sum_[i] -= parts_[now_][i];
    parts_[now_].assign(sum_.size(), 0);
  }
  // u32 [layers, experts + 1]: of each expert, and last what was computed here.
  base::Blob totals() const { return base::Blob::of(std::span<const uint32_t>(sum_)); }

 private:
  void add(uint32_t layer, uint32_t column, uint32_t count) {
    const size_t at = size_t{layer} * (experts_ + 1) + column;
    sum_[at] += count;
    parts_[now_][at] += count;
  }

  const uint32_t layers_, experts_;
  std::vector<uint32_t> sum_;
  std::array<std::vector<uint32_t>, kParts> parts_;
  uint32_t now_ = 0;
};

}  // namespace experts
