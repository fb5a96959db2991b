#include "actor/pending_calls.h"

namespace actor {

PendingCalls::Entry::Entry(PendingCalls& table, NodeId to)
    : table_(table), to_(to), number_(++table.serial_) {
  table_.entries_.emplace(number_, this);
}

void PendingCalls::Entry::resolve(Answer answer) {
  table_.entries_.erase(number_);
  slot.set(std::move(answer));
}

bool PendingCalls::answer(uint64_t number, NodeId from, Answer answer) {
  const auto it = entries_.find(number);
  if (it == entries_.end() || it->second->to_ != from) return false;
  it->second->resolve(std::move(answer));
  return true;
}

void PendingCalls::fail(uint64_t number, base::Error error) {
  const auto it = entries_.find(number);
  if (it != entries_.end()) it->second->resolve(base::fail(std::move(error)));
}

std::vector<uint64_t> PendingCalls::all() const {
  std::vector<uint64_t> numbers;
  for (const auto& [number, entry] : entries_) numbers.push_back(number);
  return numbers;
}

std::vector<uint64_t> PendingCalls::to(NodeId node) const {
  std::vector<uint64_t> numbers;
  for (const auto& [number, entry] : entries_) {
    if (entry->to_ == node) numbers.push_back(number);
  }
  return numbers;
}

}  // namespace actor
