#include "model/checkpoint.h"
#include "model/kv_layout.h"
#include "model/numerics.h"

namespace model {

base::Result<Shape> shape_of(const Checkpoint& checkpoint, const EngineOptions& options) {
  Shape shape = shape_of(checkpoint.config(), checkpoint.digest(), options);
  shape.arithmetic_digest = arithmetic_digest(reference_ops(), Rope(checkpoint.config()));
  // What goes through OpenBLAS has bits of its own, and no probe can tell which.
  if (options.mode == NumericsMode::kFast)
    shape.arithmetic_digest = base::hash_chain(shape.arithmetic_digest, base::as_bytes("OpenBLAS"));
  return shape;
}

}  // namespace model
