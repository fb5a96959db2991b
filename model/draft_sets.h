// The index sets that later draft steps reuse (DraftIndex): both engines keep one in a pass's
// scratch.
#pragma once
#include <cstdint>
#include <vector>

#include "model/engine.h"

namespace model {

using PositionSets = std::vector<std::vector<uint32_t>>;  // [rows], each ascending

class DraftSets {
 public:
  // After a kFresh draft(): keeps the set of each segment's last row. An empty set stands for every
  // position up to the row's own.  chosen: [rows]
  void keep(const Pass& pass, const PositionSets& chosen);
  // What the rows of a reusing pass attend. CHECKs that every segment is one row that comes after
  // the kept one.
  PositionSets reuse(const Pass& pass, DraftIndex index) const;

 private:
  struct Kept {
    uint32_t position = 0;
    std::vector<uint32_t> positions;
  };
  std::vector<Kept> kept_;  // [segments of the kFresh pass]
};

}  // namespace model
