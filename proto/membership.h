// Node ↔ coordinator: who is here, in which role position, and is it well. docs/PROTOCOL.md
// "Membership".
#pragma once
#include "proto/common.h"

namespace proto {

// A node asks for a role position. A call, repeated until answered. The first message of a life.
struct Hello {
  static constexpr uint16_t kType = 10;
  static constexpr const char* kName = "Hello";
  uint16_t protocol_min = kProtocolMin, protocol_max = kProtocolMax;
  Role role = Role::kNone;
  std::string name;          // "decode-0": stable over restarts, chosen by the operator
  std::string endpoint;      // where this node listens
  base::Hash128 model;       // config, tensor names, shapes, sampled bytes
  base::Hash128 layout;      // KV row layout and dtype, span and segment sizes
  base::Hash128 arithmetic;  // result bits of the fixed probe computation
  std::string version;       // for people
  uint32_t pid = 0;
  FIELDS(protocol_min, protocol_max, role, name, endpoint, model, layout, arithmetic, version, pid)
};
struct HelloReply {
  static constexpr uint16_t kType = 11;
  static constexpr const char* kName = "HelloReply";
  enum class Verdict : uint8_t {
    kWelcome = 0,
    kRefused = 1,
    kNoPosition = 2,  // a spare; ask again later
    kNewLife = 3,     // this life was declared dead; renew it and ask again
  };
  Verdict verdict = Verdict::kRefused;
  std::string reason;      // of a refusal: logged on both sides, the node exits with it
  uint32_t position = 0;   // stage of prefill, rank of decode
  uint32_t positions = 0;  // how many there are
  uint32_t layer_begin = 0, layer_end = 0;  // prefill: the stage's layers
  uint64_t coordinator_life = 0;
  uint32_t heartbeat_ms = 0;
  FIELDS(verdict, reason, position, positions, layer_begin, layer_end, coordinator_life,
         heartbeat_ms)
};

enum class NodeState : uint8_t { kLoading = 0, kReady = 1, kDraining = 2 };

// Every heartbeat interval, a plain send. `progress` counts the node's reactor turns and finished
// offloads.
struct Heartbeat {
  static constexpr uint16_t kType = 12;
  static constexpr const char* kName = "Heartbeat";
  NodeState state = NodeState::kLoading;
  uint64_t progress = 0;
  uint64_t view_epoch = 0;            // the newest view this node holds
  uint32_t running = 0, waiting = 0;  // requests
  uint32_t blocks_used = 0, blocks_total = 0;
  uint32_t load_percent = 0;  // of the model load while kLoading
  std::vector<std::pair<std::string, double>>
      counters;  // for /metrics; names from a fixed set per role
  // Prefill, as measured lately, 0 when not: bytes a second of stores' answers, tokens a second
  // through the stage's layers.
  double load_rate = 0, prefill_rate = 0;
  std::vector<NodeId> slow_ranks;  // prefill: decode ranks that its KV reaches too slowly
  FIELDS(state, progress, view_epoch, running, waiting, blocks_used, blocks_total, load_percent,
         counters, load_rate, prefill_rate, slow_ranks)
};
struct HeartbeatReply {
  static constexpr uint16_t kType = 13;
  static constexpr const char* kName = "HeartbeatReply";
  bool known =
      false;  // false: this life was declared dead (or the coordinator is new): start a new life
  uint64_t coordinator_life = 0;  // changed: a new coordinator; drop all requests of the former one
  uint64_t view_epoch = 0;
  FIELDS(known, coordinator_life, view_epoch)
};

struct ViewNode {
  NodeId node;
  Role role = Role::kNone;
  uint32_t position = 0;
  NodeState state = NodeState::kLoading;
  std::string name, endpoint;
  FIELDS(node, role, position, state, name, endpoint)
};
// The living nodes, sent to every node on each change and to any node whose heartbeat shows an
// older epoch. A receiver keeps the highest epoch, links the nodes in it and unlinks the others.
struct ClusterView {
  static constexpr uint16_t kType = 14;
  static constexpr const char* kName = "ClusterView";
  uint64_t coordinator_life = 0;
  uint64_t epoch = 0;
  std::vector<ViewNode> nodes;
  FIELDS(coordinator_life, epoch, nodes)
};

}  // namespace proto
