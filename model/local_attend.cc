// The attention proper: some queries of one sequence over the tiles of the cache that they attend.
#include <algorithm>
#include <bit>
#include <cmath>

#include "model/kernels_attention.h"
#include "model/kernels_kv.h"
#include "model/local_attention.h"

namespace model {

namespace {

// Queries · heads of a task: their outputs and the tile stay in a core's cache.
uint32_t most_rows(uint32_t kv_lora) { return kv_lora > 256 ? 64 : 128; }

// Positions attended together: consecutive ones, or some of a chosen set; all of one span.
struct Stretch {
  uint32_t span = 0;
  uint32_t begin = 0;                      // first position
  uint32_t n = 0;                          // 0: there is none
  const std::byte* const* rows = nullptr;  // [n]
  // Rows a tile's length further on: worth fetching now.
  const std::byte* const* ahead = nullptr;
  uint32_t ahead_n = 0;
};

// The tiles of the positions that a task attends, in order.
class TileWalk {
 public:
  struct Cache {
    KvView kv;
    uint32_t layer = 0;
    size_t offset = 0;  // of the latent in a KV row
    uint32_t span = 0;  // positions of one
  };
  // chosen: empty for all positions of the range, which begins with a span.
  void start(const Cache& cache, std::span<const uint32_t> chosen, KvRange range) {
    cache_ = cache;
    chosen_ = chosen;
    total_ = chosen.empty() ? range.end : static_cast<uint32_t>(chosen.size());
    at_ = chosen.empty() ? range.begin : 0;
    rows_.resize(chosen.empty() ? 2 * kTile : chosen.size());
    for (uint32_t i = 0; i < chosen.size(); ++i) rows_[i] = row(chosen[i]);
    if (chosen.empty()) fill(at_);
  }

  Stretch next() {
    Stretch tile;
    if (at_ >= total_) return tile;
    tile.begin = chosen_.empty() ? at_ : chosen_[at_];
    tile.span = tile.begin / cache_.span;
    const uint64_t span_end = (uint64_t{tile.span} + 1) * cache_.span;
    if (chosen_.empty()) {
      tile.n = static_cast<uint32_t>(std::min<uint64_t>({kTile, span_end - at_, total_ - at_}));
      tile.rows = rows_.data() + half_;
      half_ = kTile - half_;
      fill(at_ + tile.n);
      tile.ahead = rows_.data() + half_;
      tile.ahead_n = std::min(kTile, total_ - at_ - tile.n);
    } else {
      while (tile.n < kTile && at_ + tile.n < total_ && chosen_[at_ + tile.n] < span_end) ++tile.n;
      tile.rows = rows_.data() + at_;
      const uint32_t ahead = std::min(at_ + kTile, total_);
      tile.ahead = rows_.data() + ahead;
      tile.ahead_n = std::min(tile.n, total_ - ahead);
    }
    at_ += tile.n;
    return tile;
  }

 private:
  const std::byte* row(uint32_t position) const {
    return cache_.kv.row(cache_.layer, position) + cache_.offset;
  }
  // The half of rows_ at hand ← those of positions from `begin` on.
  void fill(uint32_t begin) {
    for (uint32_t i = 0; i < kTile && begin + i < total_; ++i) rows_[half_ + i] = row(begin + i);
  }

  Cache cache_;
  std::span<const uint32_t> chosen_;
  uint32_t total_ = 0, at_ = 0, half_ = 0;
  std::vector<const std::byte*> rows_;  // of all chosen positions, or of two tiles in turn
};

// Softmax partials of the rows of a task: those of the span at hand, and of whole subtrees of spans
// before it: one a level, as in a binary counter. That is merge_spans() of numerics.h in the order
// in which spans come.
class SpanTree {
 public:
  void start(uint32_t rows, uint32_t width) {
    rows_ = rows;
    width_ = width;
    stride_ = round_up_panel(width);
    spans_ = 0;
    own(0);
  }
  float* outputs() { return levels_[0].o.as<float>(); }
  size_t stride() const { return stride_; }
  // The span at hand is whole: row r has partial (m, l) and outputs(), or nothing.
  void set(uint32_t row, float m, float l) {
    levels_[0].m[row] = m;
    levels_[0].l[row] = l;
    levels_[0].empty[row] = false;
  }
  // Spans that are left out between two have no partials.
  void begin_span(uint32_t index) {
    for (; spans_ < index; ++spans_) carry(/*empty=*/true);
    Level& own = levels_[0];
    std::fill_n(own.o.as<float>(), rows_ * stride_, 0.0f);
    std::fill(own.empty.begin(), own.empty.end(), true);
  }
  void end_span() {
    carry(/*empty=*/false);
    ++spans_;
  }
  // The span at hand is a whole subtree that begins with it, as finish() left its rows there.
  void set(const ShardPartials& partials, size_t first_row) {
    for (uint32_t r = 0; r < rows_; ++r) {
      const size_t from = first_row + r;
      if (partials.l[from] == 0.0f) continue;
      set(r, partials.m[from], partials.l[from]);
      std::copy_n(partials.o.data() + from * width_, width_, outputs() + r * stride_);
    }
  }
  // out: row r's output, divided, `width` apart.
  void finish(float* out) {
    const Level& all = *whole();
    for (uint32_t r = 0; r < rows_; ++r)
      divide_outputs(all.o.as<float>() + r * stride_, all.l[r], width_,
                     out + static_cast<size_t>(r) * width_);
  }
  // As partials, those of row r at first_row + r; rows without a position stay as they are there.
  void finish(ShardPartials& out, size_t first_row) {
    const Level* all = whole();
    for (uint32_t r = 0; all != nullptr && r < rows_; ++r) {
      if (all->empty[r]) continue;
      out.m[first_row + r] = all->m[r];
      out.l[first_row + r] = all->l[r];
      std::copy_n(all->o.as<float>() + r * stride_, width_,
                  out.o.data() + (first_row + r) * width_);
    }
  }

 private:
  struct Level {
    AlignedBuffer o;  // [rows, stride]
    std::vector<float> m, l;
    std::vector<uint8_t> empty;
  };
  // levels_[0] is the span at hand, levels_[i + 1] a subtree of 2^i spans.
  Level& own(size_t level) {
    if (levels_.size() <= level) levels_.resize(level + 1);
    Level& it = levels_[level];
    const size_t bytes = rows_ * stride_ * sizeof(float);
    if (it.o.bytes() < bytes) it.o = AlignedBuffer(bytes);
    if (it.m.size() < rows_) {
      it.m.resize(rows_);
      it.l.resize(rows_);
      it.empty.resize(rows_, true);
    }
    return it;
  }
  // All of it, merged; null: there was no span.
  const Level* whole() {
    const Level* all = nullptr;
    for (uint32_t level = 1; (spans_ >> (level - 1)) != 0; ++level) {
      if (((spans_ >> (level - 1)) & 1) == 0) continue;
      if (all != nullptr) merge(levels_[level], *all, levels_[level]);
      all = &levels_[level];
    }
    return all;
  }
  // Adds levels_[0] as span number spans_: what it completes merges into ever larger subtrees.
  void carry(bool empty) {
    if (empty) std::fill(levels_[0].empty.begin(), levels_[0].empty.end(), true);
    const auto full = static_cast<size_t>(std::countr_one(spans_));
    own(full + 1);
    Level* young = &levels_[0];
    for (size_t at = 1; at <= full; ++at) {
      merge(levels_[at], *young, levels_[at]);
      young = &levels_[at];
    }
    std::swap(levels_[full + 1], *young);
    own(0);
  }
  // to ← a with b, a being the earlier; to may be either.
  void merge(const Level& a, const Level& b, Level& to) {
    for (uint32_t first = 0; first < rows_; first += kMostLanes) {
      MergedRows merged;
      const uint32_t n = std::min(kMostLanes, rows_ - first);
      merge_states(n, {a.m.data() + first, a.l.data() + first},
                   {b.m.data() + first, b.l.data() + first}, merged);
      for (uint32_t i = 0; i < n; ++i) merge_row(first + i, i, merged, a, b, to);
    }
  }
  void merge_row(uint32_t row, uint32_t i, const MergedRows& merged, const Level& a, const Level& b,
                 Level& to) {
    const float* ao = a.o.as<float>() + row * stride_;
    const float* bo = b.o.as<float>() + row * stride_;
    float* out = to.o.as<float>() + row * stride_;
    if (a.empty[row] || b.empty[row]) {
      const Level& one = a.empty[row] ? b : a;
      if (&one == &to) return;
      if (!one.empty[row]) std::copy_n(one.o.as<float>() + row * stride_, width_, out);
      to.m[row] = one.m[row];
      to.l[row] = one.l[row];
      to.empty[row] = one.empty[row];
      return;
    }
    merge_outputs(ao, merged.ea[i], bo, merged.eb[i], width_, out);
    to.m[row] = merged.m[i];
    to.l[row] = merged.l[i];
  }

  uint32_t rows_ = 0, width_ = 0, spans_ = 0;
  size_t stride_ = 0;
  std::vector<Level> levels_;
};

// What a thread works with, kept from task to task.
struct Buffers {
  AlignedBuffer tile, queries, scores;
  std::vector<GroupState> states;
  SpanTree tree;
  TileWalk walk;
};
Buffers& buffers() {
  thread_local Buffers own;
  return own;
}

void reserve(AlignedBuffer& buffer, size_t floats) {
  if (buffer.bytes() < floats * sizeof(float)) buffer = AlignedBuffer(floats * sizeof(float));
}

}  // namespace

// Queries [first, first + count) of a segment: over all positions up to their own, or, one query
// alone, over a chosen set.
class LocalAttention::Worker {
 public:
  Worker(const LocalAttention& of, const AttentionSite& site, const AttentionTask& task,
         AttentionScratch& s)
      : c_(of.config_),
        of_(of),
        task_(task),
        own_(buffers()),
        heads_(task.heads),
        rows_(task.count * heads_),
        widens_(rows_ > kMostLanes || of.kv_.type() == KvType::kInt8 ||
                c_.kv_lora % kMostLanes != 0 || c_.latent() % 2 != 0),
        first_row_(static_cast<size_t>(task.segment->row + task.first) * c_.heads + task.head),
        s_(s) {
    const uint32_t end = task.segment->position + task.first + task.count;
    own_.walk.start({task.segment->kv, site.layer, of.kv_.latent_at(site.j), of.span_}, task.chosen,
                    {task.range.begin, std::min(task.range.end, end)});
  }

  void run() {
    pack_queries();
    own_.tree.start(rows_, c_.kv_lora);
    if (widens_) reserve(own_.tile, tile_floats(c_.latent()));
    reserve(own_.scores, kTileRows * kMostLanes);
    for (Stretch tile = own_.walk.next(); tile.n > 0;) {
      const uint32_t span = tile.span;
      begin_span(span);
      for (; tile.n > 0 && tile.span == span; tile = own_.walk.next()) {
        if (widens_) widen(tile);
        for (uint32_t group = 0; group < own_.states.size(); ++group) take_tile(group, tile);
      }
      end_span(span);
    }
    if (task_.partials == nullptr) {
      own_.tree.finish(s_.out_latent.data() + first_row_ * c_.kv_lora);
    } else {
      own_.tree.finish(*task_.partials, task_.first * size_t{c_.heads} + task_.head);
    }
  }

 private:
  CachedRows cached(const Stretch& tile) const {
    return {tile.rows, tile.n, c_.latent(), of_.kv_.type() == KvType::kBf16};
  }
  void widen(const Stretch& tile) {
    if (of_.kv_.type() != KvType::kInt8) return widen_tile(cached(tile), own_.tile.as<float>());
    widen_codes({tile.rows, tile.n, c_.kv_lora, c_.rope, of_.kv_.rope_at()}, own_.tile.as<float>());
  }
  // Rows worth fetching, by their bytes.
  CachedRows ahead(const Stretch& tile) const {
    return {tile.ahead, tile.ahead_n, of_.kv_.part_bytes() / 2, /*bf16=*/true};
  }
  uint32_t lanes(uint32_t group) const { return lanes_for(rows_ - group * kMostLanes); }
  uint32_t members(uint32_t group) const {
    return std::min(kMostLanes, rows_ - group * kMostLanes);
  }
  uint32_t position_of(uint32_t row) const {
    return task_.segment->position + task_.first + row / heads_;
  }
  const float* queries(uint32_t group) const {
    return own_.queries.as<float>() + static_cast<size_t>(group) * kMostLanes * c_.latent();
  }

  // Groups of rows, value by value: [group][latent][lanes].
  void pack_queries() {
    const uint32_t groups = (rows_ + kMostLanes - 1) / kMostLanes, latent = c_.latent();
    own_.states.resize(groups);
    reserve(own_.queries, static_cast<size_t>(groups) * kMostLanes * latent);
    for (uint32_t group = 0; group < groups; ++group) {
      float* to = own_.queries.as<float>() + static_cast<size_t>(group) * kMostLanes * latent;
      const uint32_t width = lanes(group), used = members(group);
      const float* from = s_.q_latent.data() + (first_row_ + group * kMostLanes) * latent;
      for (uint32_t k = 0; k < latent; ++k, to += width) {
        for (uint32_t lane = 0; lane < used; ++lane)
          to[lane] = from[static_cast<size_t>(lane) * latent + k];
        for (uint32_t lane = used; lane < width; ++lane) to[lane] = 0;
      }
    }
  }

  void begin_span(uint32_t span) {
    own_.tree.begin_span(span - task_.range.begin / of_.span_);
    for (GroupState& state : own_.states) state.reset();
  }

  void end_span(uint32_t span) {
    for (uint32_t row = 0; row < rows_; ++row) {
      if (task_.chosen.empty() && position_of(row) / of_.span_ < span) continue;  // ends before it
      const GroupState& state = own_.states[row / kMostLanes];
      own_.tree.set(row, state.m[row % kMostLanes], state.l[row % kMostLanes]);
    }
    own_.tree.end_span();
  }

  // Positions of the tile that a row sees.
  uint32_t visible(uint32_t row, const Stretch& tile) const {
    if (!task_.chosen.empty()) return tile.n;
    const uint32_t end = position_of(row) + 1;
    return end <= tile.begin ? 0 : std::min(tile.n, end - tile.begin);
  }

  void take_tile(uint32_t group, const Stretch& tile) {
    const uint32_t first = group * kMostLanes, used = members(group), width = lanes(group);
    const uint32_t most = visible(first + used - 1, tile);
    if (most == 0) return;
    const bool ragged = visible(first, tile) != most;
    float* scores = own_.scores.as<float>();
    GroupState& state = own_.states[group];
    const Tile values{cached(tile), widens_ ? own_.tile.as<float>() : nullptr};
    const CachedRows next = group == 0 ? ahead(tile) : CachedRows{};
    score_tile(values, most, queries(group), width, next, scores);
    alignas(64) float seen[kMostLanes] = {};
    for (uint32_t lane = 0; ragged && lane < used; ++lane)
      seen[lane] = static_cast<float>(visible(first + lane, tile));
    softmax_tile(scores, most, width, ragged ? seen : nullptr, of_.sigma_, state);
    for (uint32_t lane = 0; lane < used;) {
      const uint32_t n = visible(first + lane, tile);
      uint32_t end = ragged ? std::min(used, ((first + lane) / heads_ + 1) * heads_ - first) : used;
      if (n > 0) {
        weigh_tile({.first = lane,
                    .count = end - lane,
                    .n = n,
                    .lanes = width,
                    .width = c_.kv_lora,
                    .o_stride = own_.tree.stride()},
                   values, scores, state.alpha, own_.tree.outputs() + first * own_.tree.stride());
      }
      lane = end;
    }
  }

  const ModelConfig& c_;
  const LocalAttention& of_;
  const AttentionTask& task_;
  Buffers& own_;
  const uint32_t heads_;
  const uint32_t rows_;  // queries · heads
  const bool widens_;    // each tile once: for several groups, or out of codes
  const size_t first_row_;
  AttentionScratch& s_;
};

// Where queries are fewer than threads, as when one sequence decodes, their heads go to several.
void LocalAttention::split_heads(std::vector<AttentionTask>& tasks) const {
  constexpr uint32_t kFewest = 4;  // lanes of the narrowest group
  const uint32_t threads = compute_.threads.threads();
  if (tasks.empty() || tasks.size() >= threads) return;
  const auto parts = static_cast<uint32_t>((threads + tasks.size() - 1) / tasks.size());
  const uint32_t part = ((config_.heads + parts - 1) / parts + kFewest - 1) / kFewest * kFewest;
  const size_t whole = tasks.size();
  for (size_t i = 0; i < whole; ++i) {
    if (tasks[i].count > 1) continue;
    for (uint32_t head = part; head < config_.heads; head += part) {
      tasks.push_back(tasks[i]);
      tasks.back().head = head;
      tasks.back().heads = std::min(part, config_.heads - head);
    }
    tasks[i].heads = std::min(part, config_.heads);
  }
}

// The queries of a segment over the positions of `range` that are here.
void LocalAttention::add_tasks(const Segment& segment, const AttentionScratch& s, KvRange range,
                               ShardPartials* partials, std::vector<AttentionTask>& tasks) const {
  const uint32_t group = std::max(1u, most_rows(config_.kv_lora) / config_.heads);
  const auto all = [&](uint32_t i) { return s.chosen[segment.row + i].empty(); };
  for (uint32_t i = 0; i < segment.count;) {
    AttentionTask task{&segment, i, 1, /*head=*/0, config_.heads, {}, range, partials};
    if (!all(i)) {
      task.chosen = positions_within(s.chosen[segment.row + i], range);
      // Of partials there is none; a row of its own attends what is here.
      if (!task.chosen.empty() || partials == nullptr) tasks.push_back(task);
      ++i;
      continue;
    }
    while (task.count < group && i + task.count < segment.count && all(i + task.count))
      ++task.count;
    i += task.count;
    if (segment.position + i > range.begin) tasks.push_back(task);
  }
}

void LocalAttention::run_tasks(const AttentionSite& site, AttentionScratch& s) const {
  split_heads(s.tasks);
  // The longest come last in a segment: they start first.
  std::reverse(s.tasks.begin(), s.tasks.end());
  compute_.threads.run(static_cast<uint32_t>(s.tasks.size()),
                       [&](uint32_t task) { Worker(*this, site, s.tasks[task], s).run(); });
}

void LocalAttention::attend_rows(const AttentionSite& site, const Pass& pass,
                                 AttentionScratch& s) const {
  s.out_latent.resize(static_cast<size_t>(pass.rows()) * config_.heads * config_.kv_lora);
  s.tasks.clear();
  for (const Segment& segment : pass.segments)
    if (segment.away.empty())
      add_tasks(segment, s, {segment.kv.begin(), kNoEnd}, /*partials=*/nullptr, s.tasks);
  for (ShardedRows& rows : s.sharded)
    for (ShardedRows::Part& part : rows.own())
      add_tasks(*rows.segment, s, part.range, &part.partials, s.tasks);
  run_tasks(site, s);
}

void LocalAttention::merge_parts(const ShardedRows& rows, AttentionScratch& s) const {
  const uint32_t heads = config_.heads;
  compute_.threads.run(rows.segment->count, [&](uint32_t row) {
    SpanTree& tree = buffers().tree;
    tree.start(heads, config_.kv_lora);
    for (const ShardedRows::Part& part : rows.parts) {
      tree.begin_span(part.range.begin / span_);
      tree.set(part.partials, size_t{row} * heads);
      tree.end_span();
    }
    const size_t first = (rows.segment->row + size_t{row}) * heads;
    tree.finish(s.out_latent.data() + first * config_.kv_lora);
  });
}

}  // namespace model
