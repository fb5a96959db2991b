// Builder: writes rules out as the nodes and edges of an Automaton. Stops at Limits::kNodes.
#pragma once
#include <map>
#include <tuple>

#include "grammar/automaton.h"

namespace grammar {

class Builder {
 public:
  explicit Builder(const Rules& rules) : rules_(rules) {}
  base::Result<Automaton> build();

 private:
  struct Node {
    std::vector<Automaton::ByteEdge> bytes;
    std::vector<NodeId> empties;
    std::vector<Automaton::Call> calls;
  };

  NodeId node();
  // Ways from `from` to `to` that read the expression.
  void write(ExprId id, NodeId from, NodeId to);
  void write_bytes(const std::string& bytes, NodeId from, NodeId to);
  void write_set(const CodeSet& set, NodeId from, NodeId to);
  void write_code_range(CodeRange range, NodeId from, NodeId to);
  void write_repeat(const Expr& expr, NodeId from, NodeId to);
  // The node from which the continuation bytes first[at..], last[at..] lead to `to`; shared.
  NodeId tail(std::span<const uint8_t> first, std::span<const uint8_t> last, NodeId to);
  void flatten(Automaton& out) const;

  const Rules& rules_;
  std::vector<Node> nodes_;
  std::vector<NodeId> starts_, ends_;
  std::map<std::tuple<uint8_t, uint8_t, NodeId>, NodeId> tails_;
  bool full_ = false;
};

}  // namespace grammar
