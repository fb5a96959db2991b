#include "prefill_node/draft_rows.h"

#include <utility>

namespace prefill {

void DraftRows::compute(model::Engine& engine, model::Pass& chunk,
                        std::span<const base::TokenId> tokens) {
  rows_.clear();
  pass_.tokens.clear();
  pass_.segments.clear();
  for (model::Segment segment : chunk.segments) {
    const uint32_t first = segment.row;
    segment.row = pass_.rows();
    if (segment.position + segment.count == tokens.size()) --segment.count;
    if (segment.count == 0) continue;
    for (uint32_t i = 0; i < segment.count; ++i) rows_.push_back(first + i);
    const auto next = tokens.subspan(segment.position + 1, segment.count);
    pass_.tokens.insert(pass_.tokens.end(), next.begin(), next.end());
    pass_.segments.push_back(segment);
  }
  if (rows_.empty()) return;
  engine.final_norm(chunk, rows_, pass_.h);
  engine.begin_draft(pass_);
  if (!model::all_finite(pass_.h)) chunk.faulty[rows_.front()] = engine.shape().layers + 1;
}

base::Task<bool> run_draft_rows(model::Site& site, uint32_t layer, model::Pass& chunk,
                                std::function<void()> compute) {
  if (!site.has_kv(layer)) {
    base::Task<void> here = site.await_kv(layer);
    co_await std::move(here);
  }
  if (chunk.rows() > 0) {
    base::Task<void> run = site.compute(std::move(compute), chunk.rows());
    co_await std::move(run);
  }
  if (site.shares_sequence()) {
    base::Task<bool> gather = site.gather(layer, 0, chunk);
    if (!co_await std::move(gather)) co_return false;
  }
  site.kv_ready(layer, chunk);
  co_return true;
}

}  // namespace prefill
