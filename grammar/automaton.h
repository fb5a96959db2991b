// Automaton: rules as one nondeterministic machine over bytes. A node has byte edges, empty edges
// and calls of rules; a call that is the last thing in its rule leaves nothing on the stack.
// Constant after make(); every node of it can be completed.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "grammar/rules.h"

namespace grammar {

using NodeId = uint32_t;

// What a grammar may cost. Counts, not seconds: all nodes of a cluster come to the same verdict.
struct Limits {
  static constexpr size_t kText = 64u << 10;        // bytes of a grammar
  static constexpr uint32_t kExpressions = 50'000;  // before repetition is written out
  static constexpr uint32_t kNodes = 50'000;        // of the automaton
  static constexpr uint32_t kNesting = 64;          // of groups, schemas and JSON
  static constexpr uint32_t kStack = 256;           // calls open at once while an answer is written
  static constexpr uint32_t kConfigs = 2048;        // ways in which one text may be read at once
  // Of one mask: ways times nodes of the vocabulary's trie at which they are looked at.
  static constexpr uint64_t kMaskWork = 12'000'000;
};

class Automaton {
 public:
  struct ByteEdge {
    uint8_t first = 0, last = 0;
    NodeId to = 0;
  };
  struct Call {
    RuleId rule = 0;
    NodeId back = 0;
    bool tail = false;  // `back` only ends its rule
  };

  // kTooLarge: over a limit. kUnsupported: left recursion. kInvalidArgument: no text fits.
  static base::Result<Automaton> make(const Rules& rules);

  NodeId start(RuleId rule) const { return starts_[rule]; }
  RuleId root() const { return root_; }
  size_t nodes() const { return ends_.size(); }
  std::span<const ByteEdge> byte_edges(NodeId node) const { return of(bytes_, byte_at_, node); }
  std::span<const NodeId> empty_edges(NodeId node) const { return of(empties_, empty_at_, node); }
  std::span<const Call> calls(NodeId node) const { return of(calls_, call_at_, node); }
  bool ends_rule(NodeId node) const { return ends_[node] != 0; }
  // Calls that must be opened, one in another, to come from the node to the end of its rule;
  // kUnlimited: it never comes there.
  uint32_t depth(NodeId node) const { return depths_[node]; }
  // Bytes that no edge tells apart have one class.
  uint8_t byte_class(uint8_t byte) const { return classes_[byte]; }
  uint32_t classes() const { return class_count_; }
  uint8_t byte_of_class(uint32_t c) const { return samples_[c]; }

 private:
  friend class Builder;
  template <class T>
  static std::span<const T> of(const std::vector<T>& all, const std::vector<uint32_t>& at,
                               NodeId node) {
    return std::span<const T>(all).subspan(at[node], at[node + 1] - at[node]);
  }
  void find_depths();
  void find_classes();
  base::Result<std::vector<std::vector<RuleId>>> left_calls() const;
  base::Status check_recursion(const Rules& rules) const;

  std::vector<ByteEdge> bytes_;
  std::vector<NodeId> empties_;
  std::vector<Call> calls_;
  std::vector<uint32_t> byte_at_, empty_at_, call_at_;  // [nodes + 1]
  std::vector<uint8_t> ends_;
  std::vector<NodeId> starts_;  // of each rule
  std::vector<uint32_t> depths_;
  std::array<uint8_t, 256> classes_{};
  std::array<uint8_t, 256> samples_{};
  uint32_t class_count_ = 0;
  RuleId root_ = 0;
};

}  // namespace grammar
