// Sharded attention of the local engine (sharded_attention.h): the owner's and a holder's side.
#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "model/kv_split.h"
#include "model/local_engine.h"

namespace model {

std::span<const uint32_t> positions_within(std::span<const uint32_t> positions, KvRange range) {
  const auto begin = std::ranges::lower_bound(positions, range.begin);
  const auto end = std::lower_bound(begin, positions.end(), range.end);
  return {begin, end};
}

// --- the owner

bool LocalAttention::shards_choose(const AttentionSite& site, const Pass& pass) const {
  return scores(pass, site.indexer != nullptr);
}

base::Bytes LocalAttention::question(const AttentionScratch& s, const Pass& pass,
                                     const ShardRef& ref, ShardStep step) const {
  const ModelConfig& c = config_;
  const Segment& segment = pass.segments[ref.segment];
  const ShardRows rows{segment.position, segment.count};
  const auto part = [&segment](const std::vector<float>& values, size_t width) {
    const auto begin = values.begin() + static_cast<ptrdiff_t>(segment.row * width);
    return std::vector<float>(begin, begin + static_cast<ptrdiff_t>(segment.count * width));
  };
  if (step == ShardStep::kIndex) {
    if (segment.position + segment.count <= c.indexer->topk) return {};
    const size_t heads = c.indexer->heads;
    return write(
        IndexQuestion{rows, part(s.index_q, heads * c.indexer->head_dim), part(s.index_w, heads)});
  }
  AttendQuestion question{rows, part(s.q_latent, size_t{c.heads} * c.latent()), {}};
  bool any = false;
  for (uint32_t row = 0; row < segment.count; ++row) {
    const std::vector<uint32_t>& set = s.chosen[segment.row + row];
    auto& chosen = question.chosen.emplace_back();
    if (!set.empty()) {
      const auto here = positions_within(set, segment.away[ref.share]);
      chosen.emplace(here.begin(), here.end());
    }
    any = any || !chosen || !chosen->empty();
  }
  return any ? write(question) : base::Bytes{};
}

// s.sharded ← the sharded segments, their parts empty.
void LocalAttention::start_shards(const Pass& pass, AttentionScratch& s) const {
  s.sharded.clear();
  for (const Segment& segment : pass.segments) {
    if (segment.away.empty()) continue;
    ShardedRows& rows = s.sharded.emplace_back();
    rows.segment = &segment;
    rows.candidates.resize(segment.away.size() + 1);
    for (auto& of_rows : rows.candidates) of_rows.resize(segment.count);
    std::vector<KvRange> ranges(segment.away.begin(), segment.away.end());
    const KvRange here{segment.kv.begin(), segment.position + segment.count};
    std::ranges::copy(span_subtrees(here, span_), std::back_inserter(ranges));
    for (const KvRange& range : ranges) {
      ShardedRows::Part& part = rows.parts.emplace_back();
      part.range = range;
      part.partials.assign(size_t{segment.count} * config_.heads, config_.kv_lora);
    }
  }
}

void LocalAttention::own(const AttentionSite& site, Pass& pass, AttentionScratch& s,
                         ShardStep step) const {
  start_shards(pass, s);
  if (step == ShardStep::kAttend) return attend_rows(site, pass, s);
  CHECK(shards_choose(site, pass), "no row chooses its positions here");
  choose(site, pass, s);
  for (ShardedRows& rows : s.sharded) {
    const Segment& segment = *rows.segment;
    const KvRange here{segment.kv.begin(), segment.position + segment.count};
    index_->candidates(site.layer, segment, here, {s.index_q.data(), s.index_w.data(), nullptr},
                       s.index, rows.candidates.back());
  }
}

// A segment of which only the tail is attended: the block's that drafts.
void LocalAttention::choose_here(const AttentionSite& site, const Segment& segment,
                                 AttentionScratch& s) const {
  std::vector<IndexCandidates> here;
  index_->candidates(site.layer, segment, {segment.kv.begin(), segment.position + segment.count},
                     {s.index_q.data(), s.index_w.data(), nullptr}, s.index, here);
  for (uint32_t row = 0; row < segment.count; ++row) {
    const IndexCandidates* const only = &here[row];
    index_->choose_among(segment.position + row + 1, {&only, 1}, s.chosen[segment.row + row]);
  }
}

bool LocalAttention::take(AttentionScratch& s, const Pass& pass, const ShardRef& ref,
                          ShardStep step, base::ByteView answer) const {
  const Segment* segment = &pass.segments[ref.segment];
  const auto rows = std::ranges::find(s.sharded, segment, &ShardedRows::segment);
  CHECK(rows != s.sharded.end(), "segment {} has no KV away", ref.segment);
  if (step == ShardStep::kIndex) {
    std::vector<IndexCandidates> taken;
    if (!read(answer, segment->count, segment->away[ref.share], taken)) return false;
    rows->candidates[ref.share] = std::move(taken);
    return true;
  }
  ShardPartials taken;
  if (!read(answer, size_t{segment->count} * config_.heads, config_.kv_lora, taken)) return false;
  rows->parts[ref.share].partials = std::move(taken);
  return true;
}

void LocalAttention::finish(const AttentionSite& site, Pass& pass, AttentionScratch& s,
                            ShardStep step) const {
  for (const ShardedRows& rows : s.sharded) {
    if (step == ShardStep::kAttend) {
      merge_parts(rows, s);
      continue;
    }
    for (uint32_t row = 0; row < rows.segment->count; ++row) {
      std::vector<const IndexCandidates*> of_row;
      for (const auto& share : rows.candidates) of_row.push_back(&share[row]);
      index_->choose_among(rows.segment->position + row + 1, of_row,
                           s.chosen[rows.segment->row + row]);
    }
  }
  s.sharded.clear();
  if (step == ShardStep::kAttend) project_values(site, pass, s);
}

// --- a holder

bool LocalAttention::answer_index(const AttentionSite& site, const KvView& kv, KvRange range,
                                  base::ByteView question, base::Bytes& out) const {
  if (site.indexer == nullptr) return false;
  IndexQuestion asked;
  if (!read(question, config_.indexer->heads, config_.indexer->head_dim, asked)) return false;
  Segment segment;
  segment.count = asked.rows.count;
  segment.position = asked.rows.position;
  segment.kv = kv;
  IndexScratch scratch;
  std::vector<IndexCandidates> candidates;
  index_->candidates(site.layer, segment, range, {asked.q.data(), asked.w.data(), nullptr}, scratch,
                     candidates);
  out = write(candidates);
  return true;
}

bool LocalAttention::answer(const AttentionSite& site, const KvView& kv, KvRange range,
                            ShardStep step, base::ByteView question, base::Bytes& out) const {
  if (step == ShardStep::kIndex) return answer_index(site, kv, range, question, out);
  AttendQuestion asked;
  if (!read(question, size_t{config_.heads} * config_.latent(), range, asked)) return false;
  if (asked.rows.position < range.end) return false;  // whoever asks sees all of the share
  AttentionScratch s;
  s.q_latent = std::move(asked.q);
  Segment segment;
  segment.count = asked.rows.count;
  segment.position = asked.rows.position;
  segment.kv = kv;
  s.chosen.resize(segment.count);
  for (uint32_t row = 0; row < segment.count; ++row)
    if (asked.chosen[row]) s.chosen[row] = *asked.chosen[row];
  ShardPartials partials;
  partials.assign(size_t{segment.count} * config_.heads, config_.kv_lora);
  add_tasks(segment, s, range, &partials, s.tasks);
  run_tasks(site, s);
  // An empty set stands for every position above; in a question it attends nothing.
  for (uint32_t row = 0; row < segment.count; ++row)
    if (asked.chosen[row] && asked.chosen[row]->empty())
      std::fill_n(partials.l.begin() + row * config_.heads, config_.heads, 0.0f);
  out = write(partials);
  return true;
}

// --- as an engine

class LocalEngine::Shards final : public ShardedAttention {
 public:
  explicit Shards(LocalEngine& engine) : engine_(engine) {}
  bool chooses(uint32_t layer, uint32_t j, const Pass& pass) const override {
    return engine_.attention_.shards_choose(engine_.attention_site(layer, j), pass);
  }
  base::Bytes question(const ShardPoint& point, const Pass& pass,
                       const ShardRef& ref) const override {
    const auto& s = static_cast<const Scratch&>(*pass.scratch);
    return engine_.attention_.question(s.attention, pass, ref, point.step);
  }
  void own(const ShardPoint& point, Pass& pass) override {
    engine_.attention_.own(engine_.attention_site(point.layer, point.j), pass,
                           engine_.scratch(pass).attention, point.step);
  }
  bool take(const ShardPoint& point, Pass& pass, const ShardRef& ref,
            base::ByteView answer) override {
    return engine_.attention_.take(engine_.scratch(pass).attention, pass, ref, point.step, answer);
  }
  void finish(const ShardPoint& point, Pass& pass) override {
    engine_.attention_.finish(engine_.attention_site(point.layer, point.j), pass,
                              engine_.scratch(pass).attention, point.step);
  }
  bool answer(const ShardPoint& point, const KvView& kv, KvRange range, base::ByteView question,
              base::Bytes& out) const override {
    return engine_.attention_.answer(engine_.attention_site(point.layer, point.j), kv, range,
                                     point.step, question, out);
  }

 private:
  LocalEngine& engine_;
};

std::unique_ptr<ShardedAttention> LocalEngine::make_shards() {
  return std::make_unique<Shards>(*this);
}

}  // namespace model
