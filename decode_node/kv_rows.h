// Taking KV rows from a stage, for a sequence that runs here and for a share of another's alike.
#pragma once
#include "actor/context.h"
#include "decode_node/counters.h"
#include "decode_node/kv_intake.h"
#include "model/engine.h"
#include "proto/request.h"

namespace decode {

// Checks the rows and writes what is new into `kv`. What is wrong with them is counted and logged.
proto::Outcome take_kv_rows(actor::Context& ctx, const actor::Incoming<proto::KvLayer>& in,
                            const model::KvView& kv, const model::Shape& shape, KvIntake& intake,
                            Counters& counters);

}  // namespace decode
