// Compiled grammars by their text, shared by the sequences of a node that use them. Those in use
// stay; of the others the least recently used leave first. One thread at a time.
#pragma once
#include <map>
#include <memory>

#include "grammar/grammar.h"

namespace grammar {

class Cache {
 public:
  explicit Cache(size_t idle_most = 32) : idle_most_(idle_most) {}
  static constexpr size_t kIdleBytes = 48u << 20;  // of those not in use, together

  // Keeps a grammar in use as long as it lives; it must not outlive the cache.
  class Handle {
   public:
    Handle() = default;
    Handle(Handle&& other) noexcept : entry_(std::exchange(other.entry_, nullptr)) {}
    Handle& operator=(Handle&& other) noexcept;
    ~Handle() { release(); }
    explicit operator bool() const { return entry_ != nullptr; }
    Grammar& operator*() const { return *entry_->grammar; }

   private:
    friend class Cache;
    struct Entry {
      std::unique_ptr<Grammar> grammar;
      uint64_t used = 0;  // when last taken
      uint32_t users = 0;
    };
    explicit Handle(Entry* entry) : entry_(entry) { ++entry->users; }
    void release() {
      if (entry_ != nullptr) --std::exchange(entry_, nullptr)->users;
    }
    Entry* entry_ = nullptr;
  };

  // Empty when the grammar is not here.
  Handle find(const base::GrammarText& text);
  // Takes it out, for the caller alone; null when it is not here, or in use. insert() gives it
  // back.
  std::unique_ptr<Grammar> take(const base::GrammarText& text);
  // A grammar of equal text that is here already stays.
  Handle insert(const base::GrammarText& text, std::unique_ptr<Grammar> grammar);
  size_t size() const { return entries_.size(); }
  size_t users() const;

 private:
  void trim();

  const size_t idle_most_;
  std::map<base::GrammarText, Handle::Entry> entries_;
  uint64_t uses_ = 0;
};

}  // namespace grammar
