#include "grammar/states.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"

namespace grammar {

namespace {

uint64_t key_of(uint32_t high, uint32_t low) { return uint64_t{high} << 32 | low; }

}  // namespace

States::States(const Automaton& automaton) : automaton_(automaton), classes_(automaton.classes()) {
  clear();
}

void States::clear() {
  ++age_;
  table_.assign(classes_, kDead);
  infos_.assign(1, Info{});
  configs_.clear();
  frames_.assign({Frame{}, Frame{0, kBelow, kBelowDepth}});
  stacks_.clear();
  by_content_.clear();
  start_ = kUnknown;
}

void States::trim() {
  const bool full = infos_.size() > kMostStates || frames_.size() > kMostStacks ||
                    configs_.size() > kMostConfigs || table_.size() > kMostCells;
  if (full) clear();
}

size_t States::bytes() const {
  constexpr size_t kEntry = 48;  // of a hash table
  return table_.size() * sizeof(StateId) + infos_.size() * (sizeof(Info) + kEntry) +
         configs_.size() * sizeof(Config) + frames_.size() * (sizeof(Frame) + kEntry);
}

StateId States::start() {
  if (start_ != kUnknown) return start_;
  add({automaton_.start(automaton_.root()), kEmpty});
  return start_ = intern();
}

StackId States::push(NodeId back, StackId below) {
  const auto [it, fresh] =
      stacks_.try_emplace(key_of(back, below), static_cast<StackId>(frames_.size()));
  if (fresh) frames_.push_back({back, below, frames_[below].depth + 1});
  return it->second;
}

// A way that cannot be completed within the bound on open calls is none.
void States::add(Config config) {
  const uint32_t depth = automaton_.depth(config.node);
  if (depth == kUnlimited || frames_[config.stack].depth + depth > Limits::kStack) return;
  if (first_visit(key_of(config.node, config.stack))) open_.push_back(config);
}

bool States::first_visit(uint64_t key) {
  constexpr size_t kFew = 24;
  if (visited_.empty()) {
    if (std::ranges::find(visited_few_, key) != visited_few_.end()) return false;
    visited_few_.push_back(key);
    if (visited_few_.size() == kFew) visited_.insert(visited_few_.begin(), visited_few_.end());
    return true;
  }
  return visited_.insert(key).second;
}

void States::close() {
  while (!open_.empty() && !overfull_) {
    const Config way = open_.back();
    open_.pop_back();
    overfull_ = visited_.size() > size_t{8} * Limits::kConfigs || kept_.size() > Limits::kConfigs;
    if (!automaton_.byte_edges(way.node).empty()) kept_.push_back(way);
    for (const NodeId to : automaton_.empty_edges(way.node)) add({to, way.stack});
    for (const Automaton::Call& call : automaton_.calls(way.node)) {
      const NodeId start = automaton_.start(call.rule);
      if (automaton_.depth(call.back) == kUnlimited) continue;
      add({start, call.tail ? way.stack : push(call.back, way.stack)});
    }
    if (!automaton_.ends_rule(way.node)) continue;
    if (way.stack == kEmpty) {
      accepting_ = true;
    } else if (way.stack == kBelow) {
      popped_ = true;
    } else {
      add({frames_[way.stack].back, frames_[way.stack].below});
    }
  }
}

// A set over the bound is dead: it is so on every node.
StateId States::intern() {
  close();
  if (overfull_) {
    kept_.clear();
    accepting_ = popped_ = false;
  }
  std::sort(kept_.begin(), kept_.end());
  StateId found = kDead;
  if (!kept_.empty() || accepting_ || popped_) {
    const uint64_t flags = (accepting_ ? 1u : 0u) | (popped_ ? 2u : 0u);
    const uint64_t hash = base::hash64(std::as_bytes(std::span(kept_)), flags);
    const auto [first, last] = by_content_.equal_range(hash);
    for (auto it = first; it != last && found == kDead; ++it) {
      const Info& info = infos_[it->second];
      const bool same = info.accepting == accepting_ && info.popped == popped_ &&
                        std::equal(configs_.begin() + info.begin, configs_.begin() + info.end,
                                   kept_.begin(), kept_.end());
      if (same) found = it->second;
    }
    if (found == kDead) {
      found = static_cast<StateId>(infos_.size());
      const auto begin = static_cast<uint32_t>(configs_.size());
      configs_.insert(configs_.end(), kept_.begin(), kept_.end());
      infos_.push_back({begin, static_cast<uint32_t>(configs_.size()), accepting_, popped_});
      table_.resize(infos_.size() * classes_, kUnknown);
      by_content_.emplace(hash, found);
    }
  }
  open_.clear();
  kept_.clear();
  visited_few_.clear();
  if (!visited_.empty()) visited_.clear();
  accepting_ = popped_ = overfull_ = false;
  return found;
}

StateId States::find_next(StateId state, uint32_t byte_class) {
  const uint8_t byte = automaton_.byte_of_class(byte_class);
  const Info info = infos_[state];
  for (uint32_t i = info.begin; i < info.end; ++i) {
    const Config way = configs_[i];
    for (const Automaton::ByteEdge& edge : automaton_.byte_edges(way.node)) {
      if (edge.first <= byte && byte <= edge.last) add({edge.to, way.stack});
    }
  }
  const StateId next = intern();
  table_[state * classes_ + byte_class] = next;
  return next;
}

StackId States::common_stack(StateId state) const {
  const Info& info = infos_[state];
  StackId common = configs_[info.begin].stack;
  for (uint32_t i = info.begin; i < info.end; ++i) {
    StackId other = configs_[i].stack;
    while (common != other) {
      if (frames_[common].depth < frames_[other].depth) {
        other = frames_[other].below;
      } else {
        common = frames_[common].below;
      }
    }
  }
  return common;
}

StackId States::rebase(StackId stack, StackId base) {
  std::vector<NodeId> backs;
  for (; stack != base; stack = frames_[stack].below) backs.push_back(frames_[stack].back);
  StackId made = kBelow;
  for (size_t i = backs.size(); i-- > 0;) made = push(backs[i], made);
  return made;
}

StateId States::local(StateId state) {
  const Info info = infos_[state];
  if (info.begin == info.end) return kDead;
  const StackId base = common_stack(state);
  if (base == kEmpty || base == kBelow || frames_[base].depth > kBelowDepth) return kDead;
  // An end of the answer belongs to the empty stack, which is below the base of no way.
  if (info.accepting) return kDead;
  for (uint32_t i = info.begin; i < info.end; ++i) {
    const Config way = configs_[i];
    add({way.node, rebase(way.stack, base)});
  }
  return intern();
}

}  // namespace grammar
