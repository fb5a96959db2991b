#include "decode_node/expert_plans.h"

#include <algorithm>

namespace decode {

using base::Level;

namespace {

constexpr base::Duration kTellMost = std::chrono::seconds(1);
// Beside steps, packing has one part in a hundred of the time: a step waits for every rank, so it
// feels the packing of all of them.
constexpr int kPause = 99;
constexpr base::Duration kPauseMost = std::chrono::seconds(2);

}  // namespace

ExpertPlans::ExpertPlans(const model::Shape& shape, ExpertPlanOptions options, Counters& counters,
                         std::function<bool()> busy)
    : layers_(shape.layers),
      experts_(shape.experts),
      options_(options),
      counters_(counters),
      busy_(std::move(busy)),
      state_(layers_, experts_),
      window_(layers_, experts_),
      wanted_(size_t{layers_} * experts_, false),
      resident_(wanted_) {}

void ExpertPlans::start(Context& ctx) {
  if (options_.on) ctx.spawn(tell_regularly(ctx));
}

void ExpertPlans::welcomed(Context& ctx, uint32_t position, uint32_t positions) {
  positioned_ = true;
  duty_ = {position, std::max(positions, 1u)};
  tell(ctx, /*with_loads=*/false);
}

Task<void> ExpertPlans::load(Context& ctx, model::Engine& engine) {
  engine_ = &engine;
  working_ = true;  // nobody else begins
  changed(ctx);
  Task<void> first = work(ctx);
  co_await std::move(first);
}

void ExpertPlans::view_changed(Context& ctx, const node::View& view) {
  alive_.clear();
  for (const proto::ViewNode* rank : view.ready(proto::Role::kDecode)) alive_.push_back(rank->node);
  const auto self = std::ranges::find(alive_, ctx.self().node);
  if (self != alive_.end()) {  // until then by the position given
    duty_ = {static_cast<uint32_t>(self - alive_.begin()), static_cast<uint32_t>(alive_.size())};
  }
  changed(ctx);
}

void ExpertPlans::life_lost() {
  positioned_ = false;
  state_.clear();
  table_.reset();
  alive_.clear();
  release_at_.reset();
  ready_ = settled_ = 0;
}

// --- plans

void ExpertPlans::on(Context& ctx, const Incoming<proto::ExpertPlan>& in) {
  if (in.from.node != proto::kCoordinatorNode || !positioned_) return;
  const uint64_t held = state_.held_epoch();
  const auto taken = state_.take(in);
  if (taken == experts::PlanState::Taken::kNothing) return;
  if (taken == experts::PlanState::Taken::kCorrupt) {
    ++counters_.corrupt;
    ctx.log(Level::kWarn, "expert.plan.corrupt", {{"epoch", in->epoch}});
    return;
  }
  ctx.log(Level::kDebug, "expert.plan",
          {{"epoch", in->epoch}, {"phase", static_cast<uint32_t>(in->phase)}});
  using Phase = proto::ExpertPlan::Phase;
  if (in->phase == Phase::kSettled || in->phase == Phase::kAborted) release_at_ = 0;
  if (state_.held_epoch() != held) planned_ = 0;
  changed(ctx);
  if (state_.held_epoch() > held) planned_ = loading();
  if (!stepping_ && state_.confirmed()) activate(ctx);
  tell(ctx, /*with_loads=*/false);
}

void ExpertPlans::begin_step(Context& ctx) {
  stepping_ = true;
  if (state_.confirmed()) activate(ctx);
}

void ExpertPlans::end_steps(Context& ctx) {
  stepping_ = false;
  if (state_.confirmed()) activate(ctx);
}

void ExpertPlans::activate(Context& ctx) {
  if (!state_.step()) return;
  table_ = std::make_unique<experts::DispatchTable>(*state_.active(), ctx.self().node);
  ctx.log(Level::kInfo, "expert.plan.active", {{"epoch", epoch()}, {"loading", loading()}});
  changed(ctx);
  tell(ctx, /*with_loads=*/false);
}

// --- weights

// Other experts may be wanted now.
void ExpertPlans::changed(Context& ctx) {
  wanted_ = state_.wanted(ctx.self().node, alive_, duty_);
  // What the held plan gives this rank; the rest stands in for others.
  std::vector<bool> own(wanted_.size(), false);
  for (const experts::Placement* plan : {state_.active(), state_.coming()}) {
    const auto rank = plan != nullptr ? plan->rank_of(ctx.self().node) : std::nullopt;
    for (uint32_t layer = 0; rank && layer < layers_; ++layer) {
      for (const uint16_t id : plan->share(layer, *rank)) own[size_t{layer} * experts_ + id] = true;
    }
  }
  to_load_.clear();
  for (const bool planned : {false, true}) {
    for (size_t at = 0; at < wanted_.size(); ++at) {
      if (!wanted_[at] || resident_[at] || own[at] != planned) continue;
      to_load_.push_back(
          {static_cast<uint32_t>(at / experts_), static_cast<uint16_t>(at % experts_)});
    }
    if (!planned) urgent_ = to_load_.size();
  }
  if (engine_ == nullptr || working_) return;
  working_ = true;
  ctx.spawn(work(ctx));
}

void ExpertPlans::drop_loaded() {
  const auto is_here = [this](const Expert& expert) {
    return resident_[size_t{expert.layer} * experts_ + expert.id];
  };
  const auto urgent_end = to_load_.begin() + static_cast<std::ptrdiff_t>(urgent_);
  urgent_ -= static_cast<size_t>(std::count_if(to_load_.begin(), urgent_end, is_here));
  std::erase_if(to_load_, is_here);
}

uint32_t ExpertPlans::load_percent() const {
  const auto all = static_cast<uint32_t>(std::ranges::count(wanted_, true));
  return all == 0 || engine_ == nullptr ? 0 : 100 * (all - loading()) / all;
}

uint64_t ExpertPlans::resident() const {
  return static_cast<uint64_t>(std::ranges::count(resident_, true));
}

// All that is to be done to the weights, one thing at a time: what is let go is never what another
// job has just loaded.
Task<void> ExpertPlans::work(Context& ctx) {
  while (!to_load_.empty() || release_due() || ready_ != state_.held_epoch()) {
    if (!to_load_.empty()) {
      Task<void> some = load_some(ctx);
      co_await std::move(some);
    } else if (ready_ != state_.held_epoch()) {
      ready_ = state_.held_epoch();
      tell(ctx, /*with_loads=*/false);
    } else {
      Task<void> layer = release_layer(ctx);
      co_await std::move(layer);
    }
  }
  working_ = false;
}

// A layer's where nothing else is computed, else one expert.
Task<void> ExpertPlans::load_some(Context& ctx) {
  const bool paced = busy_() && urgent_ == 0;
  const uint32_t layer = to_load_.front().layer;
  std::vector<uint16_t> ids;
  for (const Expert& expert : to_load_) {
    if (expert.layer != layer || (busy_() && !ids.empty())) break;
    ids.push_back(expert.id);
  }
  const base::Time begin = ctx.now();
  std::function<void()> job = [this, layer, &ids] {
    engine_->prepare_experts(model::LayerRange{layer, layer + 1}, ids);
  };
  const actor::Turn turn = urgent_ == 0 ? actor::Turn::kBackground : actor::Turn::kOwn;
  Task<void> run = ctx.offload(std::move(job), experts::cost_of_rows(0).at(turn));
  co_await std::move(run);
  const base::Duration took = ctx.now() - begin;
  for (const uint16_t id : ids) resident_[size_t{layer} * experts_ + id] = true;
  counters_.experts_loaded += ids.size();
  drop_loaded();
  if (!paced) co_return;
  Task<void> pause = ctx.sleep(std::min<base::Duration>(took * kPause, kPauseMost));
  co_await std::move(pause);
}

Task<void> ExpertPlans::release_layer(Context& ctx) {
  const uint32_t layer = *release_at_;
  std::vector<uint16_t> keep;
  for (uint32_t id = 0; id < experts_; ++id) {
    const size_t at = size_t{layer} * experts_ + id;
    if (wanted_[at]) keep.push_back(static_cast<uint16_t>(id));
    resident_[at] = resident_[at] && wanted_[at];
  }
  std::function<void()> job = [this, layer, &keep] { engine_->keep_experts(layer, keep); };
  Task<void> run =
      ctx.offload(std::move(job), experts::cost_of_rows(0).at(actor::Turn::kBackground));
  co_await std::move(run);
  changed(ctx);
  if (!release_at_) co_return;  // the life is another
  release_at_ = *release_at_ + 1;
  if (*release_at_ < layers_) co_return;
  release_at_.reset();
  if (settled_ == epoch()) co_return;
  settled_ = epoch();
  tell(ctx, /*with_loads=*/false);
}

// --- the coordinator's knowledge

Task<void> ExpertPlans::tell_regularly(Context& ctx) {
  const base::Duration part = options_.window / experts::LoadWindow::kParts;
  const base::Duration every = std::min<base::Duration>(part, kTellMost);
  base::Time turned = ctx.now();
  for (;;) {
    Task<void> pause = ctx.sleep(every);
    co_await std::move(pause);
    const bool turn = ctx.now() - turned >= part;
    tell(ctx, turn);
    if (!turn) continue;
    window_.turn();
    turned = ctx.now();
  }
}

void ExpertPlans::tell(Context& ctx, bool with_loads) {
  if (!options_.on || !positioned_) return;
  proto::ExpertReport report;
  report.active = epoch();
  report.held = state_.held_epoch();
  report.ready = ready_;
  report.settled = settled_;
  report.wanted = planned_;
  report.loaded = planned_ - std::min(planned_, loading());
  base::Blobs blobs;
  if (with_loads) {
    blobs.push_back(window_.totals());
    report.digest = base::hash128(blobs[0].view());
  }
  ctx.send(node::coordinator_address(), report, std::move(blobs));
}

}  // namespace decode
