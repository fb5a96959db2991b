#include "decode_node/kv_rows.h"

#include "model/draft_slots.h"

namespace decode {

using proto::Outcome;

Outcome take_kv_rows(actor::Context& ctx, const actor::Incoming<proto::KvLayer>& in,
                     const model::KvView& kv, const model::Shape& shape, KvIntake& intake,
                     Counters& counters) {
  const proto::KvLayer& m = in.msg;
  const size_t row_bytes = shape.kv_row_bytes;
  const auto range = intake.classify(m.layer, m.token_begin, m.token_count, m.digest);
  if (range == KvIntake::Range::kDuplicate) return Outcome::kOk;
  if (range == KvIntake::Range::kConflict || in.blobs.size() != 1 ||
      in.blobs[0].size() != m.token_count * row_bytes ||
      proto::kv_digest(m.layer, m.token_begin, in.blobs[0].view()) != m.digest) {
    ++counters.corrupt;
    ctx.log(base::Level::kWarn, "kv.layer.corrupt",
            {{"request", m.request.value}, {"layer", m.layer}, {"from", in.from.node.value}});
    return Outcome::kCorrupt;
  }
  model::copy_slots_in(kv, shape, m.layer, m.token_begin, m.token_count, in.blobs[0].view().data());
  intake.received(m.layer, m.token_begin, m.token_count, m.digest);
  counters.kv_rows_received += m.token_count;
  return Outcome::kOk;
}

}  // namespace decode
