#include "model/draft_sets.h"

#include <numeric>

#include "base/check.h"

namespace model {

void DraftSets::keep(const Pass& pass, const PositionSets& chosen) {
  kept_.resize(pass.segments.size());
  for (size_t i = 0; i < kept_.size(); ++i) {
    const Segment& segment = pass.segments[i];
    kept_[i].position = segment.position + segment.count - 1;
    kept_[i].positions = chosen[segment.row + segment.count - 1];
    if (!kept_[i].positions.empty()) continue;
    kept_[i].positions.resize(kept_[i].position + 1);
    std::iota(kept_[i].positions.begin(), kept_[i].positions.end(), 0u);
  }
}

PositionSets DraftSets::reuse(const Pass& pass, DraftIndex index) const {
  CHECK(pass.segments.size() <= kept_.size(), "{} segments reuse the sets of {}",
        pass.segments.size(), kept_.size());
  PositionSets sets(pass.rows());
  for (size_t i = 0; i < pass.segments.size(); ++i) {
    const Segment& segment = pass.segments[i];
    const Kept& kept = kept_[i];
    CHECK(segment.count == 1 && segment.position > kept.position,
          "{} rows from position {} reuse a set of position {}", segment.count, segment.position,
          kept.position);
    std::vector<uint32_t>& set = sets[segment.row];
    set = kept.positions;
    if (index == DraftIndex::kReuseExact) continue;
    for (uint32_t p = kept.position + 1; p <= segment.position; ++p) set.push_back(p);
  }
  return sets;
}

}  // namespace model
