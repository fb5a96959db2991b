#include "model/shard_wire.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace model {

namespace {

constexpr uint32_t kAll = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kRowsMost = std::numeric_limits<uint16_t>::max();

class Writer {
 public:
  template <class T>
  void add(std::span<const T> values) {
    const base::ByteView bytes = std::as_bytes(values);
    out_.insert(out_.end(), bytes.begin(), bytes.end());
  }
  void add(uint32_t value) { add(std::span<const uint32_t>(&value, 1)); }
  base::Bytes take() { return std::move(out_); }

 private:
  base::Bytes out_;
};

class Taker {
 public:
  explicit Taker(base::ByteView bytes) : left_(bytes) {}
  template <class T>
  bool take(size_t count, std::vector<T>& out) {
    if (count > left_.size() / sizeof(T)) return false;
    out.resize(count);
    if (count > 0) std::memcpy(out.data(), left_.data(), count * sizeof(T));
    left_ = left_.subspan(count * sizeof(T));
    return true;
  }
  bool take(uint32_t& value) {
    if (left_.size() < sizeof value) return false;
    std::memcpy(&value, left_.data(), sizeof value);
    left_ = left_.subspan(sizeof value);
    return true;
  }
  bool take(ShardRows& rows) {
    return take(rows.position) && take(rows.count) && rows.count > 0 && rows.count <= kRowsMost &&
           rows.position <= kAll - rows.count;
  }
  // Ascending inside the range.
  bool take(uint32_t count, KvRange range, std::vector<uint32_t>& positions) {
    if (!take(count, positions)) return false;
    for (size_t i = 0; i < positions.size(); ++i) {
      if (positions[i] < range.begin || positions[i] >= range.end) return false;
      if (i > 0 && positions[i] <= positions[i - 1]) return false;
    }
    return true;
  }
  bool done() const { return left_.empty(); }

 private:
  base::ByteView left_;
};

template <class T>
std::span<const T> view(const std::vector<T>& values) {
  return values;
}

}  // namespace

void ShardPartials::assign(size_t rows, size_t width) {
  m.assign(rows, 0.0f);
  l.assign(rows, 0.0f);
  o.assign(rows * width, 0.0f);
}

base::Bytes write(const IndexQuestion& question) {
  Writer out;
  out.add(question.rows.position);
  out.add(question.rows.count);
  out.add(view(question.q));
  out.add(view(question.w));
  return out.take();
}

bool read(base::ByteView bytes, size_t heads, size_t dim, IndexQuestion& out) {
  Taker in(bytes);
  return in.take(out.rows) && in.take(out.rows.count * heads * dim, out.q) &&
         in.take(out.rows.count * heads, out.w) && in.done();
}

base::Bytes write(std::span<const IndexCandidates> rows) {
  Writer out;
  for (const IndexCandidates& row : rows) {
    out.add(static_cast<uint32_t>(row.positions.size()));
    out.add(view(row.positions));
    out.add(view(row.scores));
  }
  return out.take();
}

bool read(base::ByteView bytes, size_t rows, KvRange range, std::vector<IndexCandidates>& out) {
  Taker in(bytes);
  out.assign(rows, {});
  for (IndexCandidates& row : out) {
    uint32_t count = 0;
    if (!in.take(count) || !in.take(count, range, row.positions) || !in.take(count, row.scores))
      return false;
  }
  return in.done();
}

base::Bytes write(const AttendQuestion& question) {
  Writer out;
  out.add(question.rows.position);
  out.add(question.rows.count);
  out.add(view(question.q));
  for (const auto& chosen : question.chosen) {
    out.add(chosen ? static_cast<uint32_t>(chosen->size()) : kAll);
    if (chosen) out.add(view(*chosen));
  }
  return out.take();
}

bool read(base::ByteView bytes, size_t width, KvRange range, AttendQuestion& out) {
  Taker in(bytes);
  if (!in.take(out.rows) || !in.take(out.rows.count * width, out.q)) return false;
  out.chosen.assign(out.rows.count, std::nullopt);
  for (auto& chosen : out.chosen) {
    uint32_t count = 0;
    if (!in.take(count)) return false;
    if (count != kAll && !in.take(count, range, chosen.emplace())) return false;
  }
  return in.done();
}

base::Bytes write(const ShardPartials& partials) {
  Writer out;
  out.add(view(partials.m));
  out.add(view(partials.l));
  out.add(view(partials.o));
  return out.take();
}

bool read(base::ByteView bytes, size_t rows, size_t width, ShardPartials& out) {
  Taker in(bytes);
  return in.take(rows, out.m) && in.take(rows, out.l) && in.take(rows * width, out.o) && in.done();
}

}  // namespace model
