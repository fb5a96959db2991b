#include "grammar/cache.h"

#include <algorithm>

namespace grammar {

Cache::Handle& Cache::Handle::operator=(Handle&& other) noexcept {
  if (this != &other) {
    release();
    entry_ = std::exchange(other.entry_, nullptr);
  }
  return *this;
}

Cache::Handle Cache::find(const base::GrammarText& text) {
  const auto found = entries_.find(text);
  if (found == entries_.end()) return {};
  found->second.used = ++uses_;
  return Handle(&found->second);
}

std::unique_ptr<Grammar> Cache::take(const base::GrammarText& text) {
  const auto found = entries_.find(text);
  if (found == entries_.end() || found->second.users > 0) return nullptr;
  std::unique_ptr<Grammar> taken = std::move(found->second.grammar);
  entries_.erase(found);
  return taken;
}

Cache::Handle Cache::insert(const base::GrammarText& text, std::unique_ptr<Grammar> grammar) {
  const auto [it, fresh] = entries_.try_emplace(text);
  if (fresh) it->second.grammar = std::move(grammar);
  it->second.used = ++uses_;
  Handle made(&it->second);
  trim();
  return made;
}

void Cache::trim() {
  const auto idle = [](const auto& entry) { return entry.second.users == 0; };
  size_t count = 0, bytes = 0;
  for (const auto& entry : entries_) {
    if (!idle(entry)) continue;
    ++count;
    bytes += entry.second.grammar->bytes();
  }
  while (count > idle_most_ || bytes > kIdleBytes) {
    auto oldest = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (!idle(*it)) continue;
      if (oldest == entries_.end() || it->second.used < oldest->second.used) oldest = it;
    }
    bytes -= oldest->second.grammar->bytes();
    --count;
    entries_.erase(oldest);
  }
}

size_t Cache::users() const {
  size_t users = 0;
  for (const auto& [text, entry] : entries_) users += entry.users;
  return users;
}

}  // namespace grammar
