#include "kvstore/replay.h"

#include <charconv>
#include <fstream>

#include "kvstore/block_index.h"

namespace kvstore {

namespace {

// One request's blocks; false when the line is not of the format.
bool read_line(const std::string& line, std::vector<uint32_t>& blocks) {
  const char *at = line.data(), *const end = at + line.size();
  while (at != end) {
    uint32_t first = 0, more = 0;
    auto [rest, problem] = std::from_chars(at, end, first);
    if (problem == std::errc() && rest != end && *rest == '+')
      std::tie(rest, problem) = std::tuple(std::from_chars(rest + 1, end, more).ptr, std::errc());
    if (problem != std::errc() || (rest != end && *rest != ' ')) return false;
    for (uint32_t i = 0; i <= more; ++i) blocks.push_back(first + i);
    at = rest == end ? end : rest + 1;
  }
  return true;
}

proto::PutKv put_of(uint32_t block, uint32_t depth, size_t chain, const base::Blob& rows) {
  proto::PutKv put;
  put.key = {block, 1};
  put.layers = 1;
  put.tokens = {block};
  put.digest = base::hash128(rows.view());
  put.depth = depth;
  put.chain = static_cast<uint32_t>(chain);
  return put;
}

}  // namespace

base::Result<Trace> read_trace(const std::string& path) {
  std::ifstream file(path);
  if (!file) return base::fail(base::Code::kNotFound, "{} cannot be read", path);
  Trace trace;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with('#')) continue;
    if (!read_line(line, trace.emplace_back())) {
      return base::fail(base::Code::kCorrupt, "{}: request {} is not numbers and runs", path,
                        trace.size());
    }
  }
  return trace;
}

Replayed replay(const Trace& trace, const ReplayOptions& options) {
  const base::Blob rows(base::Bytes(1, std::byte{1}));
  IndexLimits limits;
  {
    BlockIndex one{limits};
    one.put(put_of(0, 0, 1, rows), rows);
    constexpr uint64_t kAll = 1u << 22;
    limits.bytes = one.bytes() * (options.blocks > 0 ? options.blocks : kAll);
  }
  limits.policy = options.policy;
  BlockIndex index{limits};
  Replayed out;
  for (size_t request = 0; request < trace.size(); ++request) {
    const std::vector<uint32_t>& blocks = trace[request];
    proto::LookupPrefix lookup;
    lookup.request = {request + 1};
    lookup.attempt = 1;
    lookup.lease_ms = 1000;
    for (const uint32_t block : blocks) {
      lookup.keys.push_back({block, 1});
      lookup.tokens.push_back(block);
    }
    uint32_t found = options.leases ? index.lookup(lookup, {}) : 0;
    for (uint32_t i = found; i < blocks.size(); ++i) {
      const uint64_t stored = index.counters().stored;
      index.put(put_of(blocks[i], i, blocks.size(), rows), rows);
      if (!options.leases && index.counters().stored == stored) ++found;
    }
    index.release(lookup.request, 1);
    out.asked += blocks.size();
    out.hits += found;
    for (uint32_t i = 0; i < blocks.size(); ++i) {
      out.cost += recompute_cost(i);
      if (i < found) out.saved += recompute_cost(i);
    }
  }
  return out;
}

}  // namespace kvstore
