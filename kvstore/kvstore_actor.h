// The actor of a kvstore node: answers lookups, fetches and puts out of the BlockIndex, ends leases
// when their time is over. Every handler is idempotent; whatever it cannot give is a miss, and a
// miss costs time only.
#pragma once
#include "actor/actor.h"
#include "kvstore/block_index.h"
#include "node/membership_client.h"

namespace kvstore {

using actor::Context;
using actor::Envelope;
using actor::Incoming;

class KvstoreActor final : public actor::Actor, private node::MembershipClient::Owner {
 public:
  using In = actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::LookupPrefix,
                            proto::ReleaseLease, proto::FetchKv, proto::PutKv>;

  KvstoreActor(node::Identity identity, IndexLimits limits)
      : membership_(std::move(identity), *this), index_(limits) {}

  void start(Context& ctx) override;
  void receive(Context& ctx, Envelope&& e) override { In::dispatch(*this, ctx, std::move(e)); }

  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::LookupPrefix>& in);
  void on(Context& ctx, const Incoming<proto::ReleaseLease>& in);
  void on(Context& ctx, const Incoming<proto::FetchKv>& in);
  void on(Context& ctx, const Incoming<proto::PutKv>& in);

  const BlockIndex& index() const { return index_; }

 private:
  void welcomed(Context& ctx, const proto::HelloReply& reply) override;
  void view_changed(Context& ctx, const node::View& view) override;
  void life_lost(Context& ctx) override;
  void fill(proto::Heartbeat& beat) override;
  base::Task<void> sweep(Context& ctx);

  node::MembershipClient membership_;
  BlockIndex index_;
};

}  // namespace kvstore
