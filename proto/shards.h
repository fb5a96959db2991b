// KV-cache parallelism: a sequence's KV on several decode ranks. Its owner runs it and holds the
// tail; holders have shares of its prompt and answer questions about them. docs/PROTOCOL.md
// "Sequences in shards".
#pragma once
#include "proto/common.h"

namespace proto {

// Positions [begin, end) of a sequence and who holds them.
struct KvShare {
  NodeId node;
  uint32_t begin = 0, end = 0;
  uint32_t credits = 0;  // KvLayer messages each stage may have unacknowledged there
  FIELDS(node, begin, end, credits)
};

// Coordinator → decode rank: hold blocks for a share of a sequence that `owner` will run. Answer:
// KvReserved.
struct HoldKv {
  static constexpr uint16_t kType = 60;
  static constexpr const char* kName = "HoldKv";
  RequestId request;
  uint32_t attempt = 0;
  NodeId owner;
  uint32_t begin = 0, end = 0;
  uint64_t deadline_ms = 0;  // from now
  FIELDS(request, attempt, owner, begin, end, deadline_ms)
};

// Owner → holder, at each attention of each layer. Blob: a question of the engine's
// (model/sharded_attention.h). A call without side effects: it may be computed twice.
struct KvQuestion {
  static constexpr uint16_t kType = 61;
  static constexpr const char* kName = "KvQuestion";
  RequestId request;
  uint32_t attempt = 0;
  uint32_t layer = 0, part = 0;  // attention `part` of the layer
  uint8_t step = 0;              // model::ShardStep
  base::Hash128 digest;          // of the blob
  FIELDS(request, attempt, layer, part, step, digest)
};
// Blob: the engine's answer.
struct KvAnswer {
  static constexpr uint16_t kType = 62;
  static constexpr const char* kName = "KvAnswer";
  Outcome outcome = Outcome::kOk;
  base::Hash128 digest;  // of the blob
  FIELDS(outcome, digest)
};

// Holder → owner, when nothing was heard of a share for long: is the attempt alive at yours?
// Answer: Done; kStale and kUnknown free the share.
struct KvInUse {
  static constexpr uint16_t kType = 63;
  static constexpr const char* kName = "KvInUse";
  RequestId request;
  uint32_t attempt = 0;
  FIELDS(request, attempt)
};

}  // namespace proto
