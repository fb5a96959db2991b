// ExpertService: runs experts on other ranks' rows. Stateless between questions; a question that is
// repeated while it is being computed is answered once.
#pragma once
#include <set>
#include <utility>

#include "actor/context.h"
#include "experts/expert_job.h"
#include "model/engine.h"
#include "proto/experts.h"

namespace experts {

class ExpertService {
 public:
  static constexpr size_t kJobsMost = 256;  // at once; further questions are answered kNoRoom

  // Both outlive the service; `window`, if given, counts what is computed.
  explicit ExpertService(ExpertCounters& counters, LoadWindow* window = nullptr)
      : counters_(counters), window_(window) {}

  // `engine` has `layers`; it is null while the model loads: the question is answered kUnknown.
  void answer(actor::Context& ctx, model::Engine* engine, model::LayerRange layers,
              const actor::Incoming<proto::ExpertIn>& in);
  uint32_t computing() const { return static_cast<uint32_t>(jobs_.size()); }

 private:
  using Job = std::pair<actor::Address, uint64_t>;  // who asks, under which call
  base::Task<void> run(actor::Context& ctx, model::Engine& engine,
                       actor::Incoming<proto::ExpertIn> in);

  ExpertCounters& counters_;
  LoadWindow* const window_;
  std::set<Job> jobs_;
};

// False, and this process ends, when the engine has caught its arithmetic in a fault: nothing it
// computed since it was asked last may leave.
bool can_be_trusted(actor::Context& ctx, const model::Engine& engine);

// Sizes and ids fit each other, the model and the layers, and the rows match their digest.
bool is_sound(const actor::Incoming<proto::ExpertIn>& in, const model::Shape& shape,
              model::LayerRange layers);

}  // namespace experts
