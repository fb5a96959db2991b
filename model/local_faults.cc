// What the local engine can be made to get wrong (base/fault_point.h), for tests of the checks and
// of all that follows from them.
#include <limits>
#include <utility>

#include "model/local_engine.h"

namespace model {

namespace {

// The highest bit of the exponent of the first weight, or of its code.
void flip_weight(PackedMatrix& w) {
  const size_t at = w.format() == WeightFormat::kF32    ? 3
                    : w.format() == WeightFormat::kBf16 ? 1
                                                        : 0;
  w.mutable_data()[at] ^= std::byte{0x40};
}

// The lowest bit of the first weight, or of its code.
void flip_weight_low(PackedMatrix& w) { w.mutable_data()[0] ^= std::byte{0x01}; }

}  // namespace

void LocalEngine::inject(base::FaultPoint fault) {
  switch (fault) {
    case base::FaultPoint::kWeightBit:
      flip_weight(layers_.front().attention[0].o);
      return;
    case base::FaultPoint::kWeightLowBit:
      flip_weight_low(layers_.front().attention[0].o);
      return;
    case base::FaultPoint::kProductBit:
      product_fault_next_ = true;
      integrity_.inject(
          [](void* engine, const PackedMatrix&, uint32_t, float* y) {
            if (static_cast<LocalEngine*>(engine)->product_fault_next_.exchange(false))
              y[0] = y[0] == 0.0f ? 1e30f : y[0] * 0x1p60f;
          },
          this);
      return;
    case base::FaultPoint::kHiddenNan:
      nan_next_ = true;
      return;
  }
}

void LocalEngine::spoil_next(Pass& pass) {
  if (nan_next_.exchange(false)) pass.h[0] = std::numeric_limits<float>::quiet_NaN();
}

}  // namespace model
