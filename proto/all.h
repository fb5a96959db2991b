// Every message between processes, once. Drives codec instantiation, names for the log, golden
// bytes, version tests, fuzz.
#pragma once
#include <tuple>

#include "proto/experts.h"
#include "proto/lookup.h"
#include "proto/membership.h"
#include "proto/request.h"
#include "proto/shards.h"
#include "proto/store.h"

namespace proto {

using AllMessages = std::tuple<Done, Hello, HelloReply, Heartbeat, HeartbeatReply, ClusterView,  //
                               ReserveKv, KvReserved, StartPrefill, StageInput, KvLayer, KvAck,
                               KvCommit, SequenceKv, TokenOut,                 //
                               TokenAck, AttemptFailed, Cancel,                //
                               ExpertIn, ExpertOut, ExpertReport, ExpertPlan,  //
                               NgramRows, NgramValues,                         //
                               HoldKv, KvQuestion, KvAnswer, KvInUse,          //
                               LookupPrefix, PrefixFound, ReleaseLease, FetchKv, KvData, PutKv>;

// "KvLayer" for 24; "?" for a number of nobody.
const char* message_name(uint16_t type);

}  // namespace proto
