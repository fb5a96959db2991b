// Membership: which lives of which nodes hold which role positions, and whether they are well. A
// pure component: the actor feeds it messages and the time and does what it returns.
// docs/PROTOCOL.md "Membership".
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "base/time.h"
#include "model/kv_pool.h"
#include "proto/membership.h"

namespace coordinator {

using base::NodeId;
using base::Time;

struct MembershipOptions {
  // Positions per role; those of prefill are the ranks of each stage, stage by stage.
  uint32_t stages = 1, sequence_ranks = 1, ranks = 1, stores = 0;
  uint32_t ranks_most = 0;  // decode ranks may join beyond `ranks`, up to so many
  std::vector<model::LayerRange> stage_layers;  // of each prefill stage
  uint32_t heartbeat_ms = 200;
  uint32_t misses = 5;
  base::Hash128 model, layout, arithmetic;
  uint64_t coordinator_life = 0;
};

struct Member {
  NodeId node;
  proto::Role role = proto::Role::kNone;
  uint32_t position = 0;
  std::string name, endpoint, version;
  uint32_t pid = 0;
  Time heard{};
  bool connection_down = false;  // since the last heartbeat, as the transport said
  proto::Heartbeat beat;         // the newest
  proto::NodeState state() const { return beat.state; }
  bool ready() const { return beat.state == proto::NodeState::kReady; }
};

const char* role_name(proto::Role role);
const char* state_name(proto::NodeState state);

class Membership {
 public:
  explicit Membership(MembershipOptions options);

  // What a message or the clock has led to. Lists are in ascending node id.
  struct Change {
    std::vector<Member> died;    // lives that ended: their requests move, the node may be told
    std::vector<NodeId> unlink;  // nobody will talk to these again
    bool epoch_raised = false;   // send the view to all members
  };
  struct HelloAnswer {
    proto::HelloReply reply;
    Change change;
  };
  // The caller has linked `from` already. Asking again gives the same answer.
  HelloAnswer hello(NodeId from, const proto::Hello& hello, Time now);
  struct BeatAnswer {
    proto::HeartbeatReply reply;
    bool send_view = false;  // this node holds an older view
    Change change;
  };
  BeatAnswer heartbeat(NodeId from, const proto::Heartbeat& beat, Time now);
  // The transport lost the connection: less patience until the next heartbeat.
  void connection_down(NodeId node);
  // Declares silent members dead and forgets strangers; to be called several times per heartbeat.
  // Time in which the coordinator itself stood still (between two calls) is nobody's silence.
  Change tick(Time now);

  uint64_t epoch() const { return epoch_; }
  proto::ClusterView view() const;
  const std::map<NodeId, Member>& members() const { return members_; }
  const Member* find(NodeId node) const;
  // The ready member of a position, or null.
  const Member* ready_at(proto::Role role, uint32_t position) const;
  std::vector<const Member*> ready(proto::Role role) const;  // ascending position
  // The ready ranks of a prefill stage, ascending position.
  std::vector<const Member*> ready_in_stage(uint32_t stage) const;
  uint32_t stage_of(const Member& member) const {
    return member.position / options_.sequence_ranks;
  }
  // Why no request can run: "no prefill stage 1", "no decode rank"; empty when one can. A stage
  // with some of its ranks runs, slower.
  std::vector<std::string> missing() const;
  const MembershipOptions& options() const { return options_; }
  uint64_t deaths() const { return deaths_; }
  uint64_t refusals() const { return refusals_; }

 private:
  // Somebody who is linked only to be answered: a dead life, a spare, a refused node.
  struct Stranger {
    Time until{};
    bool dead = false;
  };
  std::optional<std::string> why_refused(NodeId from, const proto::Hello& hello) const;
  std::optional<uint32_t> free_position(const proto::Hello& hello) const;
  uint32_t positions(proto::Role role) const;  // as configured, and those that joined
  uint32_t positions_most(proto::Role role) const;
  void end_life(NodeId node, Time now, Change& change);
  void remember(NodeId node, Time until, bool dead, Change& change);
  proto::HelloReply welcome(const Member& member) const;
  Time dead_at(const Member& member) const;

  const MembershipOptions options_;
  std::map<NodeId, Member> members_;
  std::map<NodeId, Stranger> strangers_;
  std::map<std::string, uint32_t> former_position_;  // by "role/name", so that a restart comes home
  uint64_t epoch_ = 0;
  uint64_t deaths_ = 0, refusals_ = 0;
  std::optional<Time> last_tick_;
};

}  // namespace coordinator
