#include "experts/expert_dispatch.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/check.h"

namespace experts {

namespace {

constexpr base::Duration kRetry = std::chrono::milliseconds(250);
// A dead peer is unlinked before this; it bounds the wait for one that only we cannot reach.
constexpr base::Duration kDeadline = std::chrono::seconds(2);
constexpr base::Duration kAvoidFor = std::chrono::seconds(5);
constexpr int kCorruptMost = 3;

// The group's rows of pass.x, packed: f32 [rows, hidden].
base::Blob pack_rows(const model::Pass& pass, const ExpertGroup& group, size_t hidden) {
  base::Bytes bytes(group.rows.size() * hidden * sizeof(float));
  std::byte* out = bytes.data();
  for (uint32_t row : group.rows) {
    std::memcpy(out, pass.x.data() + row * hidden, hidden * sizeof(float));
    out += hidden * sizeof(float);
  }
  return base::Blob(std::move(bytes));
}

// Experts of this rank on rows of its own.
class OwnRows final : public ExpertJob {
 public:
  OwnRows(model::Engine& engine, uint32_t layer, model::Pass& pass, const ExpertGroup& group)
      : ExpertJob(engine, layer, std::as_bytes(std::span<const float>(pass.x)), group.rows,
                  group.pair_rows, group.pair_experts),
        hidden_(engine.shape().hidden),
        pass_(pass),
        group_(group) {}

 protected:
  void take(std::span<const float> out) override {
    for (size_t pair = 0; pair < group_.slots.size(); ++pair) {
      std::copy_n(out.data() + pair * hidden_, hidden_,
                  pass_.expert_out.data() + group_.slots[pair] * hidden_);
    }
  }

 private:
  const size_t hidden_;
  model::Pass& pass_;
  const ExpertGroup& group_;
};

}  // namespace

base::Task<bool> ExpertDispatch::run(uint32_t layer, model::Pass& pass, std::vector<NodeId> ranks) {
  std::vector<uint32_t> slots = routed_slots(pass, engine_.shape());
  LoadWindow* const window = routes_ != nullptr ? routes_->window() : nullptr;
  if (window != nullptr) window->routed(layer, pass.expert_ids);
  const base::Time begin = ctx_.now();
  bool home = true, away = false;
  while (!slots.empty() && home) {
    const std::vector<NodeId> owners = answering(ranks);
    const NodeId self = ctx_.self().node;
    const base::Time sending = ctx_.now();
    const std::vector<ExpertGroup> groups = groups_of(layer, slots, pass, owners);
    std::vector<base::Future<Fate>> fates;
    std::vector<const ExpertGroup*> of;
    fates.reserve(groups.size());
    of.reserve(groups.size());
    for (const ExpertGroup& group : groups) {  // rows for peers leave before our own are computed
      if (group.owner == self) continue;
      fates.push_back(base::start(ask(layer, pass, group)));
      of.push_back(&group);
      away = true;
    }
    if (away) counters_.dispatch_seconds += base::seconds(ctx_.now() - sending);
    for (const ExpertGroup& group : groups) {
      if (group.owner != self) continue;
      fates.push_back(base::start(run_here(layer, pass, group)));
      of.push_back(&group);
    }
    slots.clear();
    for (size_t i = 0; i < fates.size(); ++i) {  // all of them: they use the pass
      const Fate fate = co_await fates[i];
      if (fate == Fate::kVoid) home = false;
      if (fate == Fate::kAgain) slots.insert(slots.end(), of[i]->slots.begin(), of[i]->slots.end());
    }
    std::sort(slots.begin(), slots.end());
    counters_.expert_redispatched += slots.size();
  }
  if (away) {
    counters_.expert_layers += 1;
    counters_.away_seconds += base::seconds(ctx_.now() - begin);
  }
  co_return home;
}

// In calls of bounded size.
std::vector<ExpertGroup> ExpertDispatch::groups_of(uint32_t layer, std::span<const uint32_t> slots,
                                                   const model::Pass& pass,
                                                   const std::vector<NodeId>& ranks) const {
  const model::Shape& shape = engine_.shape();
  const size_t most = std::max<size_t>(kAnswerMost / (shape.hidden * sizeof(float)), 1);
  const DispatchTable* const table = routes_ != nullptr ? routes_->table() : nullptr;
  std::vector<ExpertGroup> groups;
  for (size_t first = 0; first < slots.size(); first += most) {
    const auto some = slots.subspan(first, std::min(most, slots.size() - first));
    std::vector<ExpertGroup> part;
    if (table == nullptr) {
      part = group_by_owner(some, pass, shape, ranks);
    } else {
      part =
          group_by_choice(some, table->choose(layer, some, pass, shape, ranks), pass, shape, ranks);
    }
    std::ranges::move(part, std::back_inserter(groups));
  }
  return groups;
}

std::vector<NodeId> ExpertDispatch::answering(const std::vector<NodeId>& ranks) {
  const base::Time now = ctx_.now();
  std::erase_if(avoided_, [now](const auto& entry) { return entry.second <= now; });
  std::vector<NodeId> left;
  for (const NodeId rank : ranks) {
    if (!avoided_.contains(rank)) left.push_back(rank);
  }
  if (left.empty()) left.push_back(ctx_.self().node);
  return left;
}

void ExpertDispatch::avoid(NodeId node, std::string_view why) {
  avoided_[node] = ctx_.now() + kAvoidFor;
  ctx_.log(base::Level::kWarn, "expert.peer_avoided", {{"peer", node.value}, {"why", why}});
}

base::Task<ExpertDispatch::Fate> ExpertDispatch::ask(uint32_t layer, model::Pass& pass,
                                                     const ExpertGroup& group) {
  const actor::Address to{group.owner, actor_};
  const actor::CallOptions options{"expert.rows", kRetry, kDeadline};
  const base::Blob rows = pack_rows(pass, group, engine_.shape().hidden);
  proto::ExpertIn question;
  question.layer = layer;
  question.rows = static_cast<uint32_t>(group.rows.size());
  question.pair_rows = group.pair_rows;
  question.pair_experts = group.pair_experts;
  question.digest = base::hash128(rows.view());

  for (int corrupt = 0; corrupt < kCorruptMost; ++corrupt) {
    base::Blobs blobs(1, rows);
    counters_.expert_calls += 1;
    counters_.expert_rows_sent += question.rows;
    ++in_flight_;
    auto call = ctx_.call<proto::ExpertOut>(to, question, options, std::move(blobs));
    base::Result<actor::Incoming<proto::ExpertOut>> answer = co_await std::move(call);
    --in_flight_;
    if (!answer) {
      if (answer.error().code == base::Code::kStale) co_return Fate::kVoid;
      avoid(group.owner, answer.error().what);
      co_return Fate::kAgain;
    }
    const base::Time here = ctx_.now();
    const bool home =
        answer->msg.outcome == proto::Outcome::kOk && bring_home(*answer, group, pass);
    counters_.combine_seconds += base::seconds(ctx_.now() - here);
    if (home) co_return Fate::kHome;
    if (answer->msg.outcome != proto::Outcome::kOk &&
        answer->msg.outcome != proto::Outcome::kCorrupt) {
      break;
    }
    ++counters_.corrupt;
  }
  avoid(group.owner, "it gave no good answer");
  co_return Fate::kAgain;
}

bool ExpertDispatch::bring_home(const actor::Incoming<proto::ExpertOut>& answer,
                                const ExpertGroup& group, model::Pass& pass) {
  const size_t hidden = engine_.shape().hidden;
  const size_t row_bytes = hidden * sizeof(float);
  if (answer.blobs.size() != 1) return false;
  const base::ByteView out = answer.blobs[0].view();
  if (out.size() != group.slots.size() * row_bytes) return false;
  if (base::hash128(out) != answer->digest) return false;
  for (size_t pair = 0; pair < group.slots.size(); ++pair) {
    std::memcpy(pass.expert_out.data() + group.slots[pair] * hidden, out.data() + pair * row_bytes,
                row_bytes);
  }
  return true;
}

base::Task<ExpertDispatch::Fate> ExpertDispatch::run_here(uint32_t layer, model::Pass& pass,
                                                          const ExpertGroup& group) {
  OwnRows job(engine_, layer, pass, group);
  LoadWindow* const window = routes_ != nullptr ? routes_->window() : nullptr;
  base::Task<void> run = job.compute(ctx_, actor::Turn::kOwn, counters_, window);
  co_await std::move(run);
  co_return Fate::kHome;
}

}  // namespace experts
