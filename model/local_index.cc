#include "model/local_index.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "model/kernels_attention.h"
#include "model/kv_layout.h"

namespace model {

namespace {

static_assert(kKeyPanel == kBlockTokens);

constexpr uint32_t kGroupRows = 8;          // rows that share a panel while it is in cache
constexpr uint32_t kChunkBlocks = 64;       // blocks of a task
constexpr size_t kScoresAtOnce = 4u << 20;  // flat scores kept at a time

// What a thread works with, kept from task to task.
struct Buffers {
  std::vector<float> coarse;     // [rows, blocks rounded up]
  std::vector<float> fine;       // [candidate blocks, 64]
  std::vector<uint32_t> blocks;  // candidates, ascending
  std::vector<uint32_t> picked;  // indices into fine
};
Buffers& buffers() {
  thread_local Buffers own;
  return own;
}

// select_positions() of numerics.h; of the scores it reads those between the forced positions.
void choose_flat(const IndexerConfig& config, std::span<const float> scores,
                 std::vector<uint32_t>& out) {
  const auto count = static_cast<uint32_t>(scores.size());
  if (count <= config.topk) return select_positions(config, scores, out);
  const ForcedPositions forced = forced_positions(config, count);
  out.clear();
  for (uint32_t p = 0; p < forced.sink_end; ++p) out.push_back(p);
  if (forced.free > 0) {
    select_highest_fast(scores.subspan(forced.sink_end, forced.local_begin - forced.sink_end),
                        forced.free, out);
    for (size_t i = forced.sink_end; i < out.size(); ++i) out[i] += forced.sink_end;
  }
  for (uint32_t p = forced.local_begin; p < forced.local_end; ++p) out.push_back(p);
}

void fetch_ahead(const std::byte* from, size_t bytes) {
  constexpr size_t kLine = 64;
  for (size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at);
}

uint32_t panels_of(uint32_t blocks) { return (blocks + kKeyPanel - 1) / kKeyPanel; }

}  // namespace

LocalIndex::LocalIndex(const ModelConfig& config, const EngineOptions& options,
                       const Compute& compute)
    : config_(*config.indexer),
      compute_(compute),
      hierarchical_(options.hierarchical),
      heads_(config.indexer->heads),
      dim_(config.indexer->head_dim),
      bf16_(options.kv != KvType::kF32),
      value_bytes_(bf16_ ? 2 : 4),
      key_at_(KvLayout(config, options.kv).index_key_at()),
      derived_bytes_((mean_bytes() + panel_bytes() + 63) / 64 * 64) {
  CHECK(dim_ <= 2 * kDotSegment, "index keys of {} values", dim_);
}

void LocalIndex::choose(uint32_t layer, const Pass& pass, const IndexQueries& queries,
                        IndexScratch& s, PositionSets& chosen) const {
  collect(pass, queries.probe, s);
  derive(layer, s);
  score_flat(layer, queries, s, chosen);
  gather_means(layer, s);
  const auto task = [&](uint32_t i) {
    choose_hierarchical(layer, queries, s.hierarchical[i], s, chosen);
  };
  const auto groups = static_cast<uint32_t>(s.hierarchical.size());
  if (queries.probe == nullptr) {
    compute_.threads.run(groups, task);
  } else {
    for (uint32_t i = 0; i < groups; ++i) task(i);  // a probe hears one row after the other
  }
}

// Rows below the budget attend everything; they are scored only for a probe.
void LocalIndex::collect(const Pass& pass, const Probe* probe, IndexScratch& s) const {
  s.sequences.clear();
  s.flat.clear();
  s.hierarchical.clear();
  for (const Segment& segment : pass.segments) {
    if (segment.kv.first_block > 0) continue;
    const uint32_t end = segment.position + segment.count;
    const uint32_t from = probe != nullptr ? 0 : config_.topk;
    const uint32_t first = std::max(from, segment.position) - segment.position;
    if (first >= segment.count) continue;
    const auto sequence = static_cast<uint32_t>(s.sequences.size());
    s.sequences.push_back({&segment, first, end, 0});
    segment.kv.pool->reserve_derived(derived_bytes_);
    for (uint32_t row = first; row < segment.count;) {
      const bool coarse = hierarchical(segment.position + row);
      uint32_t count = 1;
      while (count < kGroupRows && row + count < segment.count &&
             hierarchical(segment.position + row + count) == coarse)
        ++count;
      (coarse ? s.hierarchical : s.flat).push_back({sequence, row, count, 0});
      row += count;
    }
  }
}

void LocalIndex::pack_block(uint32_t layer, const Sequence& sequence, uint32_t block,
                            std::byte* panel, float* mean) const {
  const uint32_t begin = block * kBlockTokens;
  const uint32_t n = std::min(kBlockTokens, sequence.end - begin);
  for (uint32_t i = 0; i < n; ++i) {
    const std::byte* key = sequence.segment->kv.row(layer, begin + i) + key_at_;
    if (bf16_) {
      const auto* from = reinterpret_cast<const uint16_t*>(key);
      auto* to = reinterpret_cast<uint16_t*>(panel) + i;
      for (uint32_t k = 0; k < dim_; ++k) to[k * kKeyPanel] = from[k];
      if (mean == nullptr) continue;
      for (uint32_t k = 0; k < dim_; ++k) mean[k] = mean[k] + from_bf16(from[k]);
    } else {
      const auto* from = reinterpret_cast<const float*>(key);
      auto* to = reinterpret_cast<float*>(panel) + i;
      for (uint32_t k = 0; k < dim_; ++k) to[k * kKeyPanel] = from[k];
      if (mean == nullptr) continue;
      for (uint32_t k = 0; k < dim_; ++k) mean[k] = mean[k] + from[k];
    }
  }
  if (mean == nullptr) return;
  for (uint32_t k = 0; k < dim_; ++k) mean[k] = mean[k] * (1.0f / kBlockTokens);
}

// Brings the panels and means of all full blocks up to date, and packs the last, partial ones.
void LocalIndex::derive(uint32_t layer, IndexScratch& s) const {
  s.stale.clear();
  for (uint32_t i = 0; i < s.sequences.size(); ++i) {
    const uint32_t full = s.sequences[i].end / kBlockTokens;
    for (uint32_t block = s.sequences[i].segment->kv.first_block; block < full; ++block) {
      const KvPool::Derived own = derived(layer, s.sequences[i], block);
      if (own.ready != 0) continue;
      own.ready = 1;  // below; a block that several sequences share is one thread's
      s.stale.emplace_back(i, block);
    }
  }
  compute_.threads.run(static_cast<uint32_t>(s.stale.size()), [&](uint32_t task) {
    const auto [i, block] = s.stale[task];
    const KvPool::Derived own = derived(layer, s.sequences[i], block);
    auto* mean = reinterpret_cast<float*>(own.data);
    std::fill_n(mean, dim_, 0.0f);
    pack_block(layer, s.sequences[i], block, own.data + mean_bytes(), mean);
  });
  if (s.partial.bytes() < s.sequences.size() * panel_bytes())
    s.partial = AlignedBuffer(s.sequences.size() * panel_bytes());
  for (uint32_t i = 0; i < s.sequences.size(); ++i) {
    const Sequence& sequence = s.sequences[i];
    if (sequence.end % kBlockTokens == 0) continue;
    std::byte* to = s.partial.as<std::byte>() + i * panel_bytes();
    pack_block(layer, sequence, sequence.end / kBlockTokens, to, nullptr);
  }
}

const std::byte* LocalIndex::panel(uint32_t layer, const IndexScratch& s, const Sequence& sequence,
                                   uint32_t block) const {
  if (block < sequence.end / kBlockTokens)
    return derived(layer, sequence, block).data + mean_bytes();
  const auto i = static_cast<size_t>(&sequence - s.sequences.data());
  return s.partial.as<std::byte>() + i * panel_bytes();
}

// I(t, ·) of a row of the segment over the positions of a block.  out: [64]
void LocalIndex::score_block(uint32_t layer, const IndexQueries& queries, const IndexScratch& s,
                             const Sequence& sequence, uint32_t row, uint32_t block,
                             float* out) const {
  const size_t at = sequence.segment->row + row;
  const IndexQuery query{queries.q + at * heads_ * dim_, queries.w + at * heads_, heads_, dim_};
  const std::byte* keys = panel(layer, s, sequence, block);
  if (bf16_) {
    score_keys(query, reinterpret_cast<const uint16_t*>(keys), out);
  } else {
    score_keys(query, reinterpret_cast<const float*>(keys), out);
  }
}

// As many groups at a time as their scores fit the scratch: first all scores, block by block, then
// the choices, row by row.
void LocalIndex::score_flat(uint32_t layer, const IndexQueries& queries, IndexScratch& s,
                            PositionSets& chosen) const {
  const auto stride = [&](const Group& group) {
    return static_cast<size_t>(s.sequences[group.sequence].end + kBlockTokens - 1) / kBlockTokens *
           kBlockTokens;
  };
  for (size_t begin = 0; begin < s.flat.size();) {
    size_t end = begin, floats = 0;
    s.chunks.clear();
    for (; end < s.flat.size(); ++end) {
      Group& group = s.flat[end];
      const size_t need = group.count * stride(group);
      if (end > begin && floats + need > kScoresAtOnce) break;
      group.scores_at = floats;
      floats += need;
      // Forced positions need no score.
      const Sequence& sequence = s.sequences[group.sequence];
      const uint32_t last = sequence.segment->position + group.first + group.count;  // past it
      const ForcedPositions forced = forced_positions(config_, last);
      const uint32_t from = queries.probe != nullptr ? 0 : forced.sink_end / kBlockTokens;
      const uint32_t to = KvPool::blocks_for(queries.probe != nullptr ? last : forced.local_begin);
      for (uint32_t block = from; block < to; block += kChunkBlocks)
        s.chunks.push_back({static_cast<uint32_t>(end), block, std::min(to, block + kChunkBlocks)});
    }
    if (s.scores.size() < floats) s.scores.resize(floats);
    compute_.threads.run(static_cast<uint32_t>(s.chunks.size()), [&](uint32_t task) {
      const IndexScratch::Chunk& chunk = s.chunks[task];
      const Group& group = s.flat[chunk.group];
      for (uint32_t block = chunk.begin; block < chunk.end; ++block)
        for (uint32_t r = 0; r < group.count; ++r)
          score_block(layer, queries, s, s.sequences[group.sequence], group.first + r, block,
                      s.scores.data() + group.scores_at + r * stride(group) +
                          static_cast<size_t>(block) * kBlockTokens);
    });
    const auto choose_rows = [&](uint32_t task) {
      const Group& group = s.flat[begin + task];
      const Segment& segment = *s.sequences[group.sequence].segment;
      for (uint32_t r = 0; r < group.count; ++r) {
        const uint32_t row = segment.row + group.first + r;
        const uint32_t count = segment.position + group.first + r + 1;
        const std::span<const float> scores(s.scores.data() + group.scores_at + r * stride(group),
                                            count);
        choose_flat(config_, scores, chosen[row]);
        if (queries.probe != nullptr) {
          queries.probe->index_scores(layer, row, scores);
          queries.probe->selected(layer, row, chosen[row]);
        }
        if (count <= config_.topk) chosen[row].clear();
      }
    };
    const auto groups = static_cast<uint32_t>(end - begin);
    if (queries.probe == nullptr) {
      compute_.threads.run(groups, choose_rows);
    } else {
      for (uint32_t i = 0; i < groups; ++i) choose_rows(i);
    }
    begin = end;
  }
}

// --- of sequences that several ranks hold

void LocalIndex::candidates(uint32_t layer, const Segment& segment, KvRange range,
                            const IndexQueries& queries, IndexScratch& s,
                            std::vector<IndexCandidates>& out) const {
  out.assign(segment.count, {});
  s.sequences.assign(1, {&segment, 0, range.end, 0});
  segment.kv.pool->reserve_derived(derived_bytes_);
  derive(layer, s);
  const uint32_t first = range.begin / kBlockTokens, blocks = KvPool::blocks_for(range.end) - first;
  const uint32_t parts = (blocks + kChunkBlocks - 1) / kChunkBlocks;
  const size_t stride = size_t{blocks} * kBlockTokens;
  if (s.scores.size() < stride * segment.count) s.scores.resize(stride * segment.count);
  compute_.threads.run(segment.count * parts, [&](uint32_t task) {
    const uint32_t row = task / parts, part = task % parts;
    const uint32_t end = std::min(blocks, (part + 1) * kChunkBlocks);
    for (uint32_t block = part * kChunkBlocks; block < end; ++block)
      score_block(layer, queries, s, s.sequences[0], row, first + block,
                  s.scores.data() + row * stride + size_t{block} * kBlockTokens);
  });
  compute_.threads.run(segment.count, [&](uint32_t row) {
    const uint32_t count = segment.position + row + 1;
    if (count <= config_.topk) return;
    const ForcedPositions forced = forced_positions(config_, count);
    const uint32_t begin = std::max(forced.sink_end, range.begin);
    const uint32_t end = std::min(forced.local_begin, range.end);
    if (begin >= end || forced.free == 0) return;
    const std::span<const float> scores(
        s.scores.data() + row * stride + (begin - first * kBlockTokens), end - begin);
    std::vector<uint32_t>& positions = out[row].positions;
    select_highest_fast(scores, forced.free, positions);
    for (uint32_t& position : positions) {
      out[row].scores.push_back(scores[position]);
      position += begin;
    }
  });
}

void LocalIndex::choose_among(uint32_t count, std::span<const IndexCandidates* const> candidates,
                              std::vector<uint32_t>& chosen) const {
  chosen.clear();
  if (count <= config_.topk) return;
  const ForcedPositions forced = forced_positions(config_, count);
  IndexCandidates all;
  for (const IndexCandidates* some : candidates) {
    all.positions.insert(all.positions.end(), some->positions.begin(), some->positions.end());
    all.scores.insert(all.scores.end(), some->scores.begin(), some->scores.end());
  }
  std::vector<uint32_t> picked;
  if (forced.free > 0) select_highest_fast(all.scores, forced.free, picked);
  for (uint32_t p = 0; p < forced.sink_end; ++p) chosen.push_back(p);
  for (const uint32_t i : picked) chosen.push_back(all.positions[i]);
  for (uint32_t p = forced.local_begin; p < forced.local_end; ++p) chosen.push_back(p);
}

// --- hierarchical

// The mean keys of each sequence with hierarchical rows, 64 blocks a panel.
void LocalIndex::gather_means(uint32_t layer, IndexScratch& s) const {
  size_t panels = 0;
  s.chunks.clear();
  uint32_t last = UINT32_MAX;
  for (const Group& group : s.hierarchical) {
    if (group.sequence == last) continue;
    last = group.sequence;
    Sequence& sequence = s.sequences[last];
    sequence.means_at = panels;
    const uint32_t full = sequence.end / kBlockTokens;
    for (uint32_t block = 0; block < full; block += kKeyPanel)
      s.chunks.push_back({last, block, std::min(full, block + kKeyPanel)});
    panels += panels_of(full);
  }
  const size_t panel_floats = static_cast<size_t>(kKeyPanel) * dim_;
  if (s.means.bytes() < panels * panel_floats * sizeof(float))
    s.means = AlignedBuffer(panels * panel_floats * sizeof(float));
  compute_.threads.run(static_cast<uint32_t>(s.chunks.size()), [&](uint32_t task) {
    const IndexScratch::Chunk& chunk = s.chunks[task];
    const Sequence& sequence = s.sequences[chunk.group];
    float* to = s.means.as<float>() + (sequence.means_at + chunk.begin / kKeyPanel) * panel_floats;
    for (uint32_t block = chunk.begin; block < chunk.end; ++block, ++to) {
      const auto* mean = reinterpret_cast<const float*>(derived(layer, sequence, block).data);
      for (uint32_t k = 0; k < dim_; ++k) to[k * kKeyPanel] = mean[k];
    }
  });
}

// Coarse scores of the group's rows over all full blocks, then row by row the choice.
void LocalIndex::choose_hierarchical(uint32_t layer, const IndexQueries& queries,
                                     const Group& group, const IndexScratch& s,
                                     PositionSets& chosen) const {
  Buffers& own = buffers();
  const Sequence& sequence = s.sequences[group.sequence];
  const Segment& segment = *sequence.segment;
  const uint32_t last = segment.position + group.first + group.count;  // past the last row
  const uint32_t panels = panels_of(last / kBlockTokens);
  const size_t stride = static_cast<size_t>(panels) * kKeyPanel;
  if (own.coarse.size() < stride * group.count) own.coarse.resize(stride * group.count);
  const float* means =
      s.means.as<float>() + sequence.means_at * static_cast<size_t>(kKeyPanel) * dim_;
  for (uint32_t panel = 0; panel < panels; ++panel) {
    for (uint32_t r = 0; r < group.count; ++r) {
      const size_t at = segment.row + group.first + r;
      const IndexQuery query{queries.q + at * heads_ * dim_, queries.w + at * heads_, heads_, dim_};
      score_keys(query, means + panel * static_cast<size_t>(kKeyPanel) * dim_,
                 own.coarse.data() + r * stride + panel * kKeyPanel);
    }
  }
  for (uint32_t r = 0; r < group.count; ++r)
    choose_among(layer, queries, sequence, s, group.first + r, own.coarse.data() + r * stride,
                 chosen[segment.row + group.first + r]);
}

// Candidates: the blocks of the sink, the highest `keep` of those between, the blocks from the
// first local position on. Of these all are scored that hold a position which is not forced.
void LocalIndex::choose_among(uint32_t layer, const IndexQueries& queries, const Sequence& sequence,
                              const IndexScratch& s, uint32_t row, const float* coarse,
                              std::vector<uint32_t>& chosen) const {
  Buffers& own = buffers();
  const uint32_t count = sequence.segment->position + row + 1;
  const ForcedPositions forced = forced_positions(config_, count);
  const uint32_t sinks = KvPool::blocks_for(std::min(config_.init_tokens, count));
  const uint32_t between_end = std::max(sinks, forced.local_begin / kBlockTokens);
  own.blocks.clear();
  for (uint32_t block = 0; block < sinks; ++block) own.blocks.push_back(block);
  select_highest_fast({coarse + sinks, between_end - sinks}, hierarchical_.keep, own.blocks);
  for (size_t i = sinks; i < own.blocks.size(); ++i) own.blocks[i] += sinks;
  // The block in which the local positions begin.
  const bool split = between_end * kBlockTokens < forced.local_begin;
  if (split) own.blocks.push_back(between_end);

  const size_t scored = own.blocks.size() * kBlockTokens;
  if (own.fine.size() < scored) own.fine.resize(scored);
  for (size_t i = 0; i < own.blocks.size(); ++i) {
    if (i + 1 < own.blocks.size())
      fetch_ahead(panel(layer, s, sequence, own.blocks[i + 1]), panel_bytes());
    score_block(layer, queries, s, sequence, row, own.blocks[i],
                own.fine.data() + i * kBlockTokens);
  }
  // Scores of the positions between the forced ones: a run, since sinks come first, locals last.
  const size_t begin = std::min<size_t>(forced.sink_end, scored);
  size_t end = split ? scored - kBlockTokens + forced.local_begin % kBlockTokens : scored;
  if (forced.local_begin < sinks * kBlockTokens) end = forced.local_begin;
  own.picked.clear();
  if (forced.free > 0 && end > begin)
    select_highest_fast({own.fine.data() + begin, end - begin}, forced.free, own.picked);
  chosen.clear();
  for (uint32_t p = 0; p < forced.sink_end; ++p) chosen.push_back(p);
  for (const uint32_t i : own.picked) {
    const size_t at = begin + i;
    chosen.push_back(own.blocks[at / kBlockTokens] * kBlockTokens +
                     static_cast<uint32_t>(at % kBlockTokens));
  }
  for (uint32_t p = forced.local_begin; p < forced.local_end; ++p) chosen.push_back(p);
  if (queries.probe != nullptr)
    report(layer, queries, sequence, s, row, split ? between_end + 1 : between_end, chosen);
}

// Tells a probe the scores of all candidates, −inf for the rest. `forced_from`: the first of the
// blocks of local positions alone.
void LocalIndex::report(uint32_t layer, const IndexQueries& queries, const Sequence& sequence,
                        const IndexScratch& s, uint32_t row, uint32_t forced_from,
                        const std::vector<uint32_t>& chosen) const {
  const uint32_t count = sequence.segment->position + row + 1;
  std::vector<uint32_t> blocks = buffers().blocks;
  for (uint32_t block = forced_from; block < KvPool::blocks_for(count); ++block)
    blocks.push_back(block);
  std::vector<float> scores(count, -std::numeric_limits<float>::infinity());
  for (const uint32_t block : blocks) {
    float of_block[kBlockTokens];
    score_block(layer, queries, s, sequence, row, block, of_block);
    const uint32_t begin = block * kBlockTokens;
    std::copy_n(of_block, std::min(kBlockTokens, count - begin), scores.data() + begin);
  }
  queries.probe->index_scores(layer, sequence.segment->row + row, scores);
  queries.probe->selected(layer, sequence.segment->row + row, chosen);
}

}  // namespace model
