// The actor of a kvstore node: answers lookups, fetches and puts out of the BlockIndex, ends leases
// when their time is over, verifies what it holds while idle. Every handler is idempotent; whatever
// it cannot give is a miss, and a miss costs time only.
#pragma once
#include <map>
#include <memory>

#include "actor/actor.h"
#include "kvstore/disk_worker.h"
#include "node/membership_client.h"

namespace kvstore {

using actor::Envelope;
using actor::Incoming;

class KvstoreActor final : public actor::Actor, private node::MembershipClient::Owner {
 public:
  using In = actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::LookupPrefix,
                            proto::ReleaseLease, proto::FetchKv, proto::PutKv>;

  // `disk` may be null. limits.disk_bytes bounds what the disk is filled with, garbage included.
  KvstoreActor(node::Identity identity, const IndexLimits& limits,
               std::unique_ptr<DiskTier> disk = nullptr);

  void start(Context& ctx) override;
  void receive(Context& ctx, Envelope&& e) override { In::dispatch(*this, ctx, std::move(e)); }

  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::LookupPrefix>& in);
  void on(Context& ctx, const Incoming<proto::ReleaseLease>& in);
  void on(Context& ctx, const Incoming<proto::FetchKv>& in);
  void on(Context& ctx, const Incoming<proto::PutKv>& in);

  const BlockIndex& index() const { return index_; }
  const DiskWorker& disk() const { return disk_; }

 private:
  using Question = std::pair<actor::Address, uint64_t>;  // who, call

  void welcomed(Context& ctx, const proto::HelloReply& reply) override;
  void view_changed(Context& ctx, const node::View& view) override;
  void life_lost(Context& ctx) override;
  void fill(proto::Heartbeat& beat) override;
  Task<void> sweep(Context& ctx);
  Task<void> load(Context& ctx);
  Task<void> lose_patience_with_load(Context& ctx);
  Task<void> serve(Context& ctx, Incoming<proto::FetchKv> in, Fetched fetched);
  Task<void> lose_patience(Context& ctx, Incoming<proto::FetchKv> in, uint64_t serial);
  void answer(Context& ctx, const Incoming<proto::FetchKv>& in, Fetched fetched);
  void loaded(Context& ctx);
  void scrub(Context& ctx);

  node::MembershipClient membership_;
  BlockIndex index_;
  DiskWorker disk_;
  bool loaded_ = false, welcomed_ = false;
  bool asked_ = false;    // anything since the last sweep
  double scrub_due_ = 0;  // blocks
  uint64_t slow_reads_ = 0;
  uint64_t serial_ = 0;
  std::map<Question, uint64_t> reading_;  // fetches that wait for the disk, unanswered: serial
};

}  // namespace kvstore
