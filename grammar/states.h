// States: the automaton made deterministic as far as it is used. A state is the set of ways in
// which the bytes so far can be read, each a node and a stack of open calls; stacks share their
// lower parts. What is found is kept, up to a bound: trim() then forgets everything, and ids of an
// earlier age() mean nothing any more.
//
// One thread at a time.
#pragma once
#include <unordered_map>
#include <unordered_set>

#include "grammar/automaton.h"

namespace grammar {

using StateId = uint32_t;
using StackId = uint32_t;

inline constexpr StateId kDead = 0;  // no way to read the bytes

class States {
 public:
  struct Config {
    NodeId node = 0;
    StackId stack = 0;
    auto operator<=>(const Config&) const = default;
  };
  // `automaton` outlives this.
  explicit States(const Automaton& automaton);

  StateId start();
  StateId next(StateId state, uint8_t byte) {
    return next_class(state, automaton_.byte_class(byte));
  }
  // REQUIRES: automaton's class
  StateId next_class(StateId state, uint32_t byte_class) {
    const StateId known = table_[state * classes_ + byte_class];
    return known != kUnknown ? known : find_next(state, byte_class);
  }
  bool accepting(StateId state) const { return infos_[state].accepting; }
  // The bytes may have ended what lies above the unknown part of the stack (local()).
  bool popped(StateId state) const { return infos_[state].popped; }

  // The state with the part of the stack that all its ways share taken away: what can be said of
  // it holds on top of any stack. kDead when there is no such part, or it reaches so far that the
  // bound on open calls could matter.
  StateId local(StateId state);

  // Forgets everything when more than the bounds allow is kept.
  void trim();
  uint64_t age() const { return age_; }
  size_t size() const { return infos_.size(); }
  size_t bytes() const;  // of memory, about
  size_t ways(StateId state) const { return infos_[state].end - infos_[state].begin; }

 private:
  static constexpr StateId kUnknown = UINT32_MAX;
  static constexpr StackId kEmpty = 0, kBelow = 1;             // nothing; something unknown
  static constexpr uint32_t kBelowDepth = Limits::kStack / 2;  // what is assumed to lie there
  static constexpr size_t kMostStates = 20'000, kMostStacks = 200'000, kMostConfigs = 1'000'000;
  static constexpr size_t kMostCells = 2'000'000;  // of the table
  struct Info {
    uint32_t begin = 0, end = 0;  // in configs_
    bool accepting = false, popped = false;
  };
  struct Frame {
    NodeId back = 0;
    StackId below = 0;
    uint32_t depth = 0;
  };

  void clear();
  StackId push(NodeId back, StackId below);
  void add(Config config);  // to the set under construction
  bool first_visit(uint64_t key);
  void close();      // follows empty edges, calls and ends
  StateId intern();  // the set under construction
  StateId find_next(StateId state, uint32_t byte_class);
  StackId common_stack(StateId state) const;
  StackId rebase(StackId stack, StackId base);

  // Constant after construction.
  const Automaton& automaton_;
  const uint32_t classes_;
  // Owned state.
  std::vector<StateId> table_;  // [states, classes]
  std::vector<Info> infos_;
  std::vector<Config> configs_;
  std::vector<Frame> frames_;
  std::unordered_map<uint64_t, StackId> stacks_;           // by (back, below)
  std::unordered_multimap<uint64_t, StateId> by_content_;  // hash of the set
  StateId start_ = kUnknown;
  uint64_t age_ = 0;
  // The set under construction.
  std::vector<Config> open_, kept_;
  std::vector<uint64_t> visited_few_;  // the first ones; then all of them in visited_
  std::unordered_set<uint64_t> visited_;
  bool accepting_ = false, popped_ = false, overfull_ = false;
};

}  // namespace grammar
