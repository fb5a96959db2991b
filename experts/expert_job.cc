#include "experts/expert_job.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "proto/experts.h"

namespace experts {

base::Task<void> ExpertJob::compute(actor::Context& ctx, actor::Turn turn, ExpertCounters& counters,
                                    LoadWindow* window) {
  const uint64_t number = (uint64_t{proto::ExpertIn::kType} << 32) | layer_;
  const Company company{number, std::max(rows(), pair_rows_.size()), kTogetherMost};
  const base::Time begin = ctx.now();
  base::Task<void> run = ctx.offload_joint(*this, company, cost_of_rows(rows()).at(turn));
  co_await std::move(run);
  counters.expert_jobs += 1;
  counters.expert_batches += led_ ? 1 : 0;
  counters.expert_pairs += pair_rows_.size();
  counters.expert_seconds += base::seconds(took);
  counters.expert_queue_seconds += base::seconds(ctx.now() - begin - took);
  if (window != nullptr) window->computed(layer_, pair_rows_.size());
}

void ExpertJob::append_rows(std::vector<float>& x) const {
  const size_t first = x.size();
  x.resize(first + rows() * engine_.shape().hidden);
  auto* to = reinterpret_cast<std::byte*>(x.data() + first);
  if (picked_.empty()) {
    std::memcpy(to, x_.data(), x_.size());
    return;
  }
  for (const uint32_t row : picked_) {
    std::memcpy(to, x_.data() + row * row_bytes(), row_bytes());
    to += row_bytes();
  }
}

void ExpertJob::run(std::span<actor::JointJob* const> all) {
  const size_t hidden = engine_.shape().hidden;
  led_ = true;
  std::vector<float> x;
  std::vector<uint16_t> rows, experts;
  for (const actor::JointJob* one : all) {
    const auto& job = static_cast<const ExpertJob&>(*one);
    const auto first = static_cast<uint16_t>(x.size() / hidden);
    for (const uint16_t row : job.pair_rows_) rows.push_back(static_cast<uint16_t>(first + row));
    experts.insert(experts.end(), job.pair_experts_.begin(), job.pair_experts_.end());
    job.append_rows(x);
  }
  std::vector<float> out(rows.size() * hidden);
  engine_.experts(layer_, x, rows, experts, out);
  std::span<const float> left(out);
  for (actor::JointJob* one : all) {
    auto& job = static_cast<ExpertJob&>(*one);
    const size_t values = job.pair_rows_.size() * hidden;
    job.take(left.first(values));
    left = left.subspan(values);
  }
}

}  // namespace experts
