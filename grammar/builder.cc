#include "grammar/builder.h"

#include <algorithm>

#include "model/utf8.h"

namespace grammar {

namespace {

std::string utf8(uint32_t code) {
  std::string out;
  model::append_utf8(code, &out);
  return out;
}

uint32_t utf8_length(uint32_t code) {
  return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
}

// From the node there is nothing to do but end the rule.
bool only_ends(const Automaton& automaton, NodeId node) {
  constexpr int kSteps = 8;
  for (int i = 0; i < kSteps; ++i) {
    if (!automaton.byte_edges(node).empty() || !automaton.calls(node).empty()) return false;
    const std::span<const NodeId> empties = automaton.empty_edges(node);
    if (automaton.ends_rule(node)) return empties.empty();
    if (empties.size() != 1) return false;
    node = empties[0];
  }
  return false;
}

uint8_t byte_at(const std::string& text, size_t i) { return static_cast<uint8_t>(text[i]); }

}  // namespace

NodeId Builder::node() {
  if (nodes_.size() >= Limits::kNodes) {
    full_ = true;
    return 0;
  }
  nodes_.emplace_back();
  return static_cast<NodeId>(nodes_.size() - 1);
}

void Builder::write(ExprId id, NodeId from, NodeId to) {
  if (full_) return;
  const Expr& expr = rules_[id];
  switch (expr.kind) {
    case Expr::Kind::kBytes:
      return write_bytes(expr.bytes, from, to);
    case Expr::Kind::kSet:
      return write_set(expr.set, from, to);
    case Expr::Kind::kRepeat:
      return write_repeat(expr, from, to);
    case Expr::Kind::kRule:
      nodes_[from].calls.push_back({expr.rule, to, false});
      return;
    case Expr::Kind::kAny:
      for (const ExprId part : expr.parts) {
        const NodeId begin = node();
        nodes_[from].empties.push_back(begin);
        write(part, begin, to);
      }
      return;
    case Expr::Kind::kSequence: {
      NodeId at = from;
      for (size_t i = 0; i + 1 < expr.parts.size(); ++i) {
        const NodeId next = node();
        write(expr.parts[i], at, next);
        at = next;
      }
      if (expr.parts.empty()) {
        nodes_[at].empties.push_back(to);
      } else {
        write(expr.parts.back(), at, to);
      }
      return;
    }
  }
}

void Builder::write_bytes(const std::string& bytes, NodeId from, NodeId to) {
  if (bytes.empty()) return nodes_[from].empties.push_back(to);
  NodeId at = from;
  for (size_t i = 0; i < bytes.size() && !full_; ++i) {
    const NodeId next = i + 1 == bytes.size() ? to : node();
    nodes_[at].bytes.push_back({byte_at(bytes, i), byte_at(bytes, i), next});
    at = next;
  }
}

void Builder::write_set(const CodeSet& set, NodeId from, NodeId to) {
  tails_.clear();
  for (const CodeRange& range : set) {
    // Ranges within which UTF-8 has one length.
    uint32_t first = range.first;
    for (const uint32_t end : {0x7Fu, 0x7FFu, 0xFFFFu, kLastCode}) {
      if (first > range.last) break;
      if (first > end) continue;
      write_code_range({first, std::min(range.last, end)}, from, to);
      first = end + 1;
    }
  }
}

// Both ends have the same length. Where the ends differ before the last byte, the range is cut so
// that each piece is a product of byte ranges.
void Builder::write_code_range(CodeRange range, NodeId from, NodeId to) {
  const uint32_t length = utf8_length(range.first);
  for (uint32_t i = 1; i < length; ++i) {
    const uint32_t mask = (1u << (6 * i)) - 1;
    if ((range.first & ~mask) == (range.last & ~mask)) continue;
    if ((range.first & mask) != 0) {
      write_code_range({range.first, range.first | mask}, from, to);
      return write_code_range({(range.first | mask) + 1, range.last}, from, to);
    }
    if ((range.last & mask) != mask) {
      write_code_range({range.first, (range.last & ~mask) - 1}, from, to);
      return write_code_range({range.last & ~mask, range.last}, from, to);
    }
  }
  const std::string first = utf8(range.first), last = utf8(range.last);
  std::vector<uint8_t> low(first.begin(), first.end()), high(last.begin(), last.end());
  const NodeId next =
      length == 1 ? to : tail(std::span(low).subspan(1), std::span(high).subspan(1), to);
  if (!full_) nodes_[from].bytes.push_back({low[0], high[0], next});
}

NodeId Builder::tail(std::span<const uint8_t> first, std::span<const uint8_t> last, NodeId to) {
  const NodeId next = first.size() == 1 ? to : tail(first.subspan(1), last.subspan(1), to);
  const auto [it, fresh] = tails_.try_emplace({first[0], last[0], next}, 0);
  if (!fresh) return it->second;
  const NodeId made = node();
  it->second = made;
  if (!full_) nodes_[made].bytes.push_back({first[0], last[0], next});
  return made;
}

void Builder::write_repeat(const Expr& expr, NodeId from, NodeId to) {
  const ExprId part = expr.parts[0];
  NodeId at = from;
  for (uint32_t i = 0; i < expr.least && !full_; ++i) {
    const NodeId next = node();
    write(part, at, next);
    at = next;
  }
  if (expr.most == kUnlimited) {
    const NodeId loop = node(), back = node();
    if (full_) return;
    nodes_[at].empties.push_back(loop);
    nodes_[loop].empties.push_back(to);
    write(part, loop, back);
    nodes_[back].empties.push_back(loop);
    return;
  }
  for (uint32_t i = expr.least; i < expr.most && !full_; ++i) {
    nodes_[at].empties.push_back(to);
    const NodeId begin = node(), next = node();
    if (full_) return;
    nodes_[at].empties.push_back(begin);
    write(part, begin, next);
    at = next;
  }
  if (!full_) nodes_[at].empties.push_back(to);
}

void Builder::flatten(Automaton& out) const {
  const auto put = [](auto& all, auto& at, const auto& some) {
    at.push_back(static_cast<uint32_t>(all.size()));
    all.insert(all.end(), some.begin(), some.end());
  };
  for (const Node& node : nodes_) {
    put(out.bytes_, out.byte_at_, node.bytes);
    put(out.empties_, out.empty_at_, node.empties);
    put(out.calls_, out.call_at_, node.calls);
  }
  out.byte_at_.push_back(static_cast<uint32_t>(out.bytes_.size()));
  out.empty_at_.push_back(static_cast<uint32_t>(out.empties_.size()));
  out.call_at_.push_back(static_cast<uint32_t>(out.calls_.size()));
  out.ends_.assign(nodes_.size(), 0);
  for (const NodeId end : ends_) out.ends_[end] = 1;
  out.starts_ = starts_;
}

base::Result<Automaton> Builder::build() {
  if (rules_.size() > Limits::kExpressions) {
    return base::fail(base::Code::kTooLarge, "the grammar has more than {} parts",
                      Limits::kExpressions);
  }
  for (RuleId rule = 0; rule < rules_.rules(); ++rule) {
    starts_.push_back(node());
    ends_.push_back(node());
  }
  for (RuleId rule = 0; rule < rules_.rules() && !full_; ++rule)
    write(rules_.body(rule), starts_[rule], ends_[rule]);
  if (full_) {
    return base::fail(base::Code::kTooLarge,
                      "the grammar needs more than {} states: shorten its repetitions",
                      Limits::kNodes);
  }
  Automaton out;
  out.root_ = rules_.root();
  flatten(out);
  for (Automaton::Call& call : out.calls_) call.tail = only_ends(out, call.back);
  return out;
}

}  // namespace grammar
