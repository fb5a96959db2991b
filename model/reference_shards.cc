// Sharded attention of the reference engine (sharded_attention.h): a share's partial stands for all
// of its spans at the first of them, the others being empty; so merging is that of one rank.
#include <algorithm>
#include <numeric>

#include "model/kv_split.h"
#include "model/reference_attention.h"

namespace model {

namespace {

ReferenceScratch& scratch_of(const Pass& pass) {
  return static_cast<ReferenceScratch&>(*pass.scratch);
}

std::vector<uint32_t> all_of(KvRange range) {
  std::vector<uint32_t> positions(range.count());
  std::iota(positions.begin(), positions.end(), range.begin);
  return positions;
}

std::vector<uint32_t> those_in(const std::vector<uint32_t>& positions, KvRange range) {
  const auto begin = std::ranges::lower_bound(positions, range.begin);
  return {begin, std::lower_bound(begin, positions.end(), range.end)};
}

KvRange here_of(const Segment& segment) {
  return {segment.kv.begin(), segment.position + segment.count};
}

}  // namespace

bool ReferenceAttention::shards_choose(const AttentionContext& context, const Pass& pass) const {
  return indexer_ && std::ranges::any_of(pass.segments, [&](const Segment& segment) {
           return segment.position + segment.count > context.config.indexer->topk;
         });
}

base::Bytes ReferenceAttention::question(const AttentionContext& context, const Pass& pass,
                                         const ShardRef& ref, ShardStep step) const {
  const Segment& segment = pass.segments[ref.segment];
  const KvRange share = segment.away[ref.share];
  const ShardRows asking{segment.position, segment.count};
  if (step == ShardStep::kIndex && segment.position + segment.count <= context.config.indexer->topk)
    return {};
  IndexQuestion index{asking, {}, {}};
  AttendQuestion attend{asking, {}, {}};
  bool any = false;
  for (const Row& row : start_rows(context, pass)) {
    if (row.row < segment.row || row.row >= segment.row + segment.count) continue;
    if (step == ShardStep::kIndex) {
      const IndexQuery query = index_query(context, row);
      index.q.insert(index.q.end(), query.heads.begin(), query.heads.end());
      index.w.insert(index.w.end(), query.weights.begin(), query.weights.end());
      continue;
    }
    for (const std::vector<float>& head : queries(context, row))
      attend.q.insert(attend.q.end(), head.begin(), head.end());
    // A set names all positions up to the row's own where it chooses none.
    const bool sparse = context.config.indexer && row.position >= context.config.indexer->topk;
    auto& chosen = attend.chosen.emplace_back();
    if (sparse) chosen = those_in(scratch_of(pass).selected[row.row], share);
    any = any || !chosen || !chosen->empty();
  }
  if (step == ShardStep::kIndex) return write(index);
  return any ? write(attend) : base::Bytes{};
}

IndexCandidates ReferenceAttention::best_of(const AttentionContext& context, const KvView& kv,
                                            const IndexQuery& query, KvRange range,
                                            uint32_t count) const {
  IndexCandidates best;
  if (count <= context.config.indexer->topk) return best;
  const ForcedPositions forced = forced_positions(*context.config.indexer, count);
  const uint32_t begin = std::max(range.begin, forced.sink_end);
  const uint32_t end = std::min(range.end, forced.local_begin);
  if (begin >= end) return best;
  const std::vector<float> scores = index_scores(context, kv, query, all_of({begin, end}));
  select_highest(scores, forced.free, best.positions);
  for (uint32_t& position : best.positions) {
    best.scores.push_back(scores[position]);
    position += begin;
  }
  return best;
}

std::vector<uint32_t> ReferenceAttention::choose_among(
    const AttentionContext& context, uint32_t count,
    const std::vector<IndexCandidates>& candidates) const {
  const ForcedPositions forced = forced_positions(*context.config.indexer, count);
  IndexCandidates all;
  for (const IndexCandidates& some : candidates) {
    all.positions.insert(all.positions.end(), some.positions.begin(), some.positions.end());
    all.scores.insert(all.scores.end(), some.scores.begin(), some.scores.end());
  }
  std::vector<uint32_t> best, chosen;
  select_highest(all.scores, forced.free, best);
  for (uint32_t p = 0; p < forced.sink_end; ++p) chosen.push_back(p);
  for (const uint32_t i : best) chosen.push_back(all.positions[i]);
  for (uint32_t p = forced.local_begin; p < forced.local_end; ++p) chosen.push_back(p);
  return chosen;
}

void ReferenceAttention::own(const AttentionContext& context, Pass& pass, ShardStep step) const {
  if (pass.scratch == nullptr) pass.scratch = std::make_unique<ReferenceScratch>();
  ReferenceScratch& s = scratch_of(pass);
  s.selected.resize(pass.rows());
  s.partials.assign(pass.rows(), {});
  s.candidates.assign(pass.rows(), {});
  const std::vector<Row> rows = start_rows(context, pass);
  for (const Segment& segment : pass.segments) {
    for (uint32_t r = segment.row; r < segment.row + segment.count; ++r) {
      const Row& row = rows[r];
      const uint32_t count = row.position + 1;
      const bool sparse = context.config.indexer && count > context.config.indexer->topk;
      if (step == ShardStep::kIndex) {
        if (segment.away.empty()) s.selected[r] = select(context, row);
        s.candidates[r].resize(segment.away.size() + 1);
        if (!segment.away.empty())
          s.candidates[r].back() =
              best_of(context, row.kv, index_query(context, row), here_of(segment), count);
        continue;
      }
      if (!sparse) s.selected[r] = all_of({0, count});
      s.partials[r] = empty_partials(context, row.position / context.span + 1);
      absorb(context, row.kv, queries(context, row),
             those_in(s.selected[r], {row.kv.begin(), count}), /*first_span=*/0, s.partials[r]);
    }
  }
}

bool ReferenceAttention::take(const AttentionContext& context, Pass& pass, const ShardRef& ref,
                              ShardStep step, base::ByteView answer) const {
  const ModelConfig& c = context.config;
  const Segment& segment = pass.segments[ref.segment];
  const KvRange share = segment.away[ref.share];
  ReferenceScratch& s = scratch_of(pass);
  if (step == ShardStep::kIndex) {
    std::vector<IndexCandidates> taken;
    if (!read(answer, segment.count, share, taken)) return false;
    for (uint32_t i = 0; i < segment.count; ++i)
      s.candidates[segment.row + i][ref.share] = std::move(taken[i]);
    return true;
  }
  ShardPartials taken;
  if (!read(answer, size_t{segment.count} * c.heads, c.kv_lora, taken)) return false;
  for (size_t i = 0; i < segment.count; ++i) {
    for (size_t head = 0; head < c.heads; ++head) {
      const size_t from = i * c.heads + head;
      if (taken.l[from] == 0.0f) continue;
      Partial& partial = s.partials[segment.row + i][head][share.begin / context.span];
      partial.empty = false;
      partial.m = taken.m[from];
      partial.l = taken.l[from];
      const std::span<const float> o = std::span(taken.o).subspan(from * c.kv_lora, c.kv_lora);
      partial.o.assign(o.begin(), o.end());
    }
  }
  return true;
}

void ReferenceAttention::finish(const AttentionContext& context, Pass& pass, ShardStep step) const {
  ReferenceScratch& s = scratch_of(pass);
  for (const Segment& segment : pass.segments) {
    for (uint32_t i = 0; i < segment.count; ++i) {
      const uint32_t r = segment.row + i, count = segment.position + i + 1;
      if (step == ShardStep::kAttend) {
        add_to(row_of(pass.h, r, context.config.hidden), output(std::move(s.partials[r])));
      } else if (!segment.away.empty() && count > context.config.indexer->topk) {
        s.selected[r] = choose_among(context, count, s.candidates[r]);
      }
    }
  }
}

bool ReferenceAttention::answer(const AttentionContext& context, const KvView& kv, KvRange range,
                                ShardStep step, base::ByteView question, base::Bytes& out) const {
  const ModelConfig& c = context.config;
  if (step == ShardStep::kIndex) {
    IndexQuestion asked;
    if (!indexer_ || !read(question, c.indexer->heads, c.indexer->head_dim, asked)) return false;
    std::vector<IndexCandidates> candidates;
    for (size_t i = 0; i < asked.rows.count; ++i) {
      const auto part = [i](const std::vector<float>& values, size_t width) {
        const auto begin = values.begin() + static_cast<ptrdiff_t>(i * width);
        return std::vector<float>(begin, begin + static_cast<ptrdiff_t>(width));
      };
      const size_t heads = c.indexer->heads;
      const IndexQuery query{part(asked.q, heads * c.indexer->head_dim), part(asked.w, heads)};
      const uint32_t count = asked.rows.position + static_cast<uint32_t>(i) + 1;
      candidates.push_back(best_of(context, kv, query, range, count));
    }
    out = write(candidates);
    return true;
  }
  AttendQuestion asked;
  if (!read(question, size_t{c.heads} * c.latent(), range, asked)) return false;
  if (asked.rows.position < range.end) return false;
  ShardPartials answered;
  answered.assign(size_t{asked.rows.count} * c.heads, c.kv_lora);
  for (size_t i = 0; i < asked.rows.count; ++i) {
    std::vector<std::vector<float>> query;
    for (size_t head = 0; head < c.heads; ++head) {
      const std::span<float> of_head = row_of(asked.q, i * c.heads + head, c.latent());
      query.emplace_back(of_head.begin(), of_head.end());
    }
    Partials partials = empty_partials(context, range.count() / context.span);
    const auto positions = asked.chosen[i] ? *asked.chosen[i] : all_of(range);
    absorb(context, kv, query, positions, range.begin / context.span, partials);
    for (size_t head = 0; head < c.heads; ++head) {
      merge_spans(partials[head]);
      const Partial& whole = partials[head][0];
      if (whole.empty) continue;
      answered.m[i * c.heads + head] = whole.m;
      answered.l[i * c.heads + head] = whole.l;
      std::ranges::copy(whole.o, row_of(answered.o, i * c.heads + head, c.kv_lora).begin());
    }
  }
  out = write(answered);
  return true;
}

}  // namespace model
