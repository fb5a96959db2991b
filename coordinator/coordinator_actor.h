// CoordinatorActor: who is in the cluster, and what becomes of each request. It wires Membership
// and RequestTable to the mailbox and the clock, and is the Gateway of the front end.
// Owns the cluster view and every live request. A lost answer is the caller's to ask for again; a
// lost view is healed by the next heartbeat.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "actor/actor.h"
#include "base/cluster_config.h"
#include "coordinator/expert_balance.h"
#include "coordinator/gateway.h"
#include "coordinator/membership.h"
#include "coordinator/request_table.h"
#include "model/engine.h"
#include "proto/membership.h"
#include "proto/request.h"

namespace coordinator {

struct CoordinatorOptions {
  base::ClusterConfig config;
  model::Shape shape;  // of the model to be served; nodes that differ are refused
  std::string version;
  uint32_t pid = 0;
};

// Its host gives it the node id proto::kCoordinatorNode.
class CoordinatorActor final : public actor::Actor, public Gateway {
 public:
  using In = actor::Accepts<proto::Hello, proto::Heartbeat, proto::TokenOut, proto::AttemptFailed,
                            proto::ExpertReport>;

  explicit CoordinatorActor(CoordinatorOptions options);

  void start(actor::Context& ctx) override;
  void receive(actor::Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void peer_down(actor::Context& ctx, NodeId node) override;

  void on(actor::Context& ctx, const actor::Incoming<proto::Hello>& in);
  void on(actor::Context& ctx, const actor::Incoming<proto::Heartbeat>& in);
  void on(actor::Context& ctx, const actor::Incoming<proto::TokenOut>& in);
  void on(actor::Context& ctx, const actor::Incoming<proto::AttemptFailed>& in);
  void on(actor::Context& ctx, const actor::Incoming<proto::ExpertReport>& in);

  // --- Gateway, from start() on, on the reactor thread. submit() returns no id (0) when it
  // refused; the sink has had its end() by then.
  RequestId submit(Submission submission, std::unique_ptr<TokenSink> sink) override;
  void cancel(RequestId request) override;
  ClusterStatus status() const override;
  void drain() override;

  Ledger ledger() const { return requests_->ledger(); }
  const Membership& membership() const { return *membership_; }
  const ExpertBalance& balance() const { return *balance_; }

 private:
  Task<void> tick();
  void balance_experts();
  Task<void> plan_experts(ExpertBalance::Question question);
  void tell_plans(NodeId rank);
  void apply(const Membership::Change& change);
  std::vector<std::pair<std::string, double>> counters() const;

  // Constant after construction.
  const CoordinatorOptions options_;
  // Set by start().
  actor::Context* ctx_ = nullptr;
  base::Time whole_at_{};  // when every needed position was last filled; begins with the start
  double planned_imbalance_ = 0;  // of the prefill stages, by the modelled costs
  std::optional<Membership> membership_;
  std::optional<RequestTable> requests_;
  std::optional<ExpertBalance> balance_;
};

}  // namespace coordinator
