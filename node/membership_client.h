// MembershipClient: what every node does beside its work. It asks the coordinator for a role
// position, reports its health every heartbeat, keeps the newest cluster view (linking who is in
// it, unlinking who is not), and starts a new life when it was declared dead or the coordinator is
// a new one. A component of the node's actor: the actor forwards HeartbeatReply and ClusterView to
// it.
//
// A node that hears nothing for three seconds asks again (Hello) and goes on with its work
// meanwhile: a silent coordinator is no reason to drop requests.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "actor/context.h"
#include "proto/membership.h"

namespace node {

using actor::Context;
using actor::Incoming;
using base::NodeId;
using base::Task;

// The living nodes as last told.
class View {
 public:
  uint64_t epoch = 0;
  std::map<NodeId, proto::ViewNode> nodes;

  bool has(NodeId id) const { return nodes.contains(id); }
  // Ready nodes of a role in ascending position (ties: ascending node id).
  std::vector<const proto::ViewNode*> ready(proto::Role role) const;
};

struct Identity {
  proto::Role role = proto::Role::kNone;
  std::string name;         // "decode-0"
  std::string coordinator;  // endpoint
  std::string version;
  base::Hash128 model, layout, arithmetic;  // zero where the role has no model
  uint32_t pid = 0;
};

// Counter: bytes of the checkpoint that this process has read.
inline constexpr const char* kReadBytes = "model_read_bytes_total";

class MembershipClient {
 public:
  // The owning actor. All calls come on the reactor thread.
  class Owner {
   public:
    virtual ~Owner() = default;
    // A position was given; load what it needs, then call ready(). Comes once per life; the
    // position may differ between lives.
    virtual void welcomed(Context& ctx, const proto::HelloReply& reply) = 0;
    // The view has changed; links are up to date already.
    virtual void view_changed(Context& ctx, const View& view) = 0;
    // Every request known here belongs to the past: free all of it. A new Hello follows.
    virtual void life_lost(Context& ctx) = 0;
    // The load fields and counters of a heartbeat. While loading, the counter kReadBytes is what
    // the log says of MB/s.
    virtual void fill(proto::Heartbeat& beat) = 0;
  };

  MembershipClient(Identity identity, Owner& owner)
      : identity_(std::move(identity)), owner_(owner) {}

  void start(Context& ctx);  // from Actor::start
  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in);
  void on(Context& ctx, const Incoming<proto::ClusterView>& in);
  void loading(uint32_t percent) { load_percent_ = percent; }
  void ready(Context& ctx);  // the work can begin; told at once
  void draining(Context& ctx);
  void progressed() { ++progress_; }  // the node's loop did something

  const View& view() const { return view_; }
  proto::NodeState state() const { return state_; }
  const Identity& identity() const { return identity_; }

 private:
  Task<void> register_node(Context& ctx, uint64_t life);
  Task<void> beat(Context& ctx);
  void send_beat(Context& ctx);
  uint64_t read_so_far() const;
  void log_load(Context& ctx, const proto::Heartbeat& beat);
  void begin_life(Context& ctx, bool lost);

  // Constant after construction.
  const Identity identity_;
  Owner& owner_;
  // Owned state.
  View view_;
  proto::NodeState state_ = proto::NodeState::kLoading;
  uint32_t load_percent_ = 0;
  uint64_t progress_ = 0;
  uint64_t life_ = 0;  // counts begin_life(); a register_node of an older life ends
  bool registering_ = false;
  uint64_t coordinator_life_ = 0;  // 0 until welcomed
  base::Time heard_{};             // of the coordinator
  uint32_t heartbeat_ms_ = 200;
  // The model load of this life, for the log.
  base::Time load_begun_{}, load_logged_{};
  uint64_t load_first_ = 0, load_bytes_ = 0;  // read when it began, and at load_logged_
};

// The coordinator's fixed address.
inline actor::Address coordinator_address() {
  return {proto::kCoordinatorNode, proto::kCoordinator};
}

}  // namespace node
