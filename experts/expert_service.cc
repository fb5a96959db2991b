#include "experts/expert_service.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "model/integrity.h"
#include "node/process.h"

namespace experts {

namespace {

// Experts of this rank on another's rows.
class Question final : public ExpertJob {
 public:
  Question(model::Engine& engine, const actor::Incoming<proto::ExpertIn>& in)
      : ExpertJob(engine, in->layer, in.blobs[0].view(), {}, in->pair_rows, in->pair_experts) {}
  const proto::ExpertOut& reply() const { return reply_; }
  const base::Blob& outputs() const { return outputs_; }

 protected:
  void take(std::span<const float> out) override {
    outputs_ = base::Blob::of(out);
    reply_.digest = base::hash128(outputs_.view());
  }

 private:
  proto::ExpertOut reply_;
  base::Blob outputs_;
};

}  // namespace

bool is_sound(const actor::Incoming<proto::ExpertIn>& in, const model::Shape& shape,
              model::LayerRange layers) {
  const proto::ExpertIn& m = in.msg;
  const size_t pairs = m.pair_rows.size();
  if (m.layer < layers.begin || m.layer >= layers.end || m.rows == 0 ||
      m.rows > std::numeric_limits<uint16_t>::max()) {
    return false;
  }
  if (pairs == 0 || pairs != m.pair_experts.size()) return false;
  if (pairs > static_cast<size_t>(m.rows) * shape.topk) return false;
  if (!std::ranges::all_of(m.pair_rows, [&m](uint16_t row) { return row < m.rows; })) return false;
  if (!std::ranges::all_of(m.pair_experts, [&](uint16_t id) { return id < shape.experts; })) {
    return false;
  }
  if (in.blobs.size() != 1) return false;
  const size_t bytes = static_cast<size_t>(m.rows) * shape.hidden * sizeof(float);
  return in.blobs[0].size() == bytes && base::hash128(in.blobs[0].view()) == m.digest;
}

bool can_be_trusted(actor::Context& ctx, const model::Engine& engine) {
  const model::Integrity* integrity = engine.integrity();
  if (integrity == nullptr || !integrity->broken()) return true;
  node::quarantine(ctx, integrity->reason());
  return false;
}

void ExpertService::answer(actor::Context& ctx, model::Engine* engine, model::LayerRange layers,
                           const actor::Incoming<proto::ExpertIn>& in) {
  if (in.call == 0) return;
  proto::ExpertOut refusal;
  if (engine == nullptr) {
    refusal.outcome = proto::Outcome::kUnknown;
  } else if (jobs_.contains({in.from, in.call})) {
    return;
  } else if (jobs_.size() >= kJobsMost) {
    refusal.outcome = proto::Outcome::kNoRoom;
  } else if (!is_sound(in, engine->shape(), layers)) {
    refusal.outcome = proto::Outcome::kCorrupt;
    ++counters_.corrupt;
  } else {
    counters_.expert_rows_received += in->rows;
    jobs_.emplace(in.from, in.call);
    ctx.spawn(run(ctx, *engine, in));
    return;
  }
  ctx.reply(in, refusal);
}

base::Task<void> ExpertService::run(actor::Context& ctx, model::Engine& engine,
                                    actor::Incoming<proto::ExpertIn> in) {
  Question job(engine, in);
  base::Task<void> run = job.compute(ctx, actor::Turn::kAsked, counters_, window_);
  co_await std::move(run);
  jobs_.erase({in.from, in.call});
  if (!can_be_trusted(ctx, engine)) co_return;  // who asked turns to another rank
  base::Blobs blobs(1, job.outputs());
  ctx.reply(in, job.reply(), std::move(blobs));
}

}  // namespace experts
