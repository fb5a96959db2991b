#include "grammar/automaton.h"

#include <algorithm>
#include <bitset>
#include <queue>

#include "grammar/builder.h"

namespace grammar {

namespace {

// Lists of what leads to a node, by node.
class Reverse {
 public:
  explicit Reverse(size_t nodes) : lists_(nodes) {}
  void add(NodeId to, uint32_t what) { lists_[to].push_back(what); }
  std::span<const uint32_t> operator[](NodeId node) const { return lists_[node]; }

 private:
  std::vector<std::vector<uint32_t>> lists_;
};

}  // namespace

base::Result<Automaton> Automaton::make(const Rules& rules) {
  Automaton made = TRY(Builder(rules).build());
  made.find_depths();
  made.find_classes();
  TRY(made.check_recursion(rules));
  const uint32_t depth = made.depth(made.start(made.root_));
  if (depth == kUnlimited) {
    return base::fail(base::Code::kInvalidArgument, "no text can satisfy the grammar");
  }
  if (depth > Limits::kStack / 2) {
    return base::fail(base::Code::kTooLarge, "the shortest answer is nested deeper than {} levels",
                      Limits::kStack / 2);
  }
  return made;
}

// Least fixed point of depth(n) = min(0 at the end of a rule; depth(to) over byte and empty edges;
// max(push + depth(start), depth(back)) over calls), by ascending depth.
void Automaton::find_depths() {
  const auto count = static_cast<NodeId>(nodes());
  depths_.assign(count, kUnlimited);
  Reverse edges(count), returns(count), callers(count);
  std::vector<NodeId> call_from(calls_.size());
  for (NodeId node = 0; node < count; ++node) {
    for (const ByteEdge& edge : byte_edges(node)) edges.add(edge.to, node);
    for (const NodeId to : empty_edges(node)) edges.add(to, node);
    for (uint32_t i = call_at_[node]; i < call_at_[node + 1]; ++i) {
      call_from[i] = node;
      returns.add(calls_[i].back, i);
      callers.add(starts_[calls_[i].rule], i);
    }
  }
  using Entry = std::pair<uint32_t, NodeId>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open;
  const auto offer = [&](NodeId node, uint32_t depth) {
    if (depth >= depths_[node]) return;
    depths_[node] = depth;
    open.push({depth, node});
  };
  const auto offer_call = [&](uint32_t index) {
    const Call& call = calls_[index];
    const uint32_t inner = depths_[starts_[call.rule]], after = depths_[call.back];
    if (inner == kUnlimited || after == kUnlimited) return;
    offer(call_from[index], std::max(inner + (call.tail ? 0u : 1u), after));
  };
  for (NodeId node = 0; node < count; ++node)
    if (ends_[node] != 0) offer(node, 0);
  while (!open.empty()) {
    const auto [depth, node] = open.top();
    open.pop();
    if (depth > depths_[node]) continue;
    for (const NodeId before : edges[node]) offer(before, depth);
    for (const uint32_t call : returns[node]) offer_call(call);
    for (const uint32_t call : callers[node]) offer_call(call);
  }
}

void Automaton::find_classes() {
  std::bitset<257> begins;
  begins.set(0);
  for (const ByteEdge& edge : bytes_) {
    begins.set(edge.first);
    begins.set(size_t{edge.last} + 1);
  }
  class_count_ = 0;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (begins.test(byte)) samples_[class_count_++] = static_cast<uint8_t>(byte);
    classes_[byte] = static_cast<uint8_t>(class_count_ - 1);
  }
}

// What each rule may call before it has read a byte.
base::Result<std::vector<std::vector<RuleId>>> Automaton::left_calls() const {
  constexpr uint64_t kWorkMost = 20'000'000;
  const size_t rule_count = starts_.size();
  std::vector<uint8_t> passable(rule_count, 0);  // without a byte; grows to a fixed point
  std::vector<std::vector<RuleId>> left(rule_count);
  std::vector<uint32_t> seen(nodes(), 0);
  std::vector<NodeId> todo;
  uint32_t mark = 0;
  uint64_t work = 0;
  const auto look = [&](RuleId rule) {
    ++mark;
    left[rule].clear();
    bool passed = false;
    const auto visit = [&](NodeId node) {
      if (std::exchange(seen[node], mark) != mark) todo.push_back(node);
    };
    visit(starts_[rule]);
    while (!todo.empty()) {
      const NodeId node = todo.back();
      todo.pop_back();
      ++work;
      passed |= ends_rule(node);
      for (const NodeId to : empty_edges(node)) visit(to);
      for (const Call& call : calls(node)) {
        left[rule].push_back(call.rule);
        if (passable[call.rule] != 0) visit(call.back);
      }
    }
    return passed && std::exchange(passable[rule], 1) == 0;
  };
  for (bool changed = true; changed;) {
    changed = false;
    // Rules mostly refer to later ones, so that few rounds suffice.
    for (size_t i = rule_count; i-- > 0 && work < kWorkMost;)
      changed |= look(static_cast<RuleId>(i));
    if (work >= kWorkMost) {
      return base::fail(base::Code::kTooLarge, "the grammar has too many empty rules");
    }
  }
  return left;
}

// A rule that can call itself before it has read a byte would open calls without end.
base::Status Automaton::check_recursion(const Rules& rules) const {
  const std::vector<std::vector<RuleId>> left = TRY(left_calls());
  enum Colour : uint8_t { kNew, kOnPath, kDone };
  std::vector<Colour> colour(left.size(), kNew);
  std::vector<std::pair<RuleId, size_t>> path;  // and which of its calls comes next
  for (RuleId from = 0; from < left.size(); ++from) {
    if (colour[from] != kNew) continue;
    path.emplace_back(from, 0);
    colour[from] = kOnPath;
    while (!path.empty()) {
      auto& [rule, next] = path.back();
      if (next == left[rule].size()) {
        colour[rule] = kDone;
        path.pop_back();
        continue;
      }
      const RuleId callee = left[rule][next++];
      if (colour[callee] == kOnPath) {
        return base::fail(base::Code::kUnsupported,
                          "'{}' refers to itself before any character (left recursion)",
                          rules.name(callee));
      }
      if (colour[callee] == kDone) continue;
      colour[callee] = kOnPath;
      path.emplace_back(callee, 0);
    }
  }
  return {};
}

}  // namespace grammar
