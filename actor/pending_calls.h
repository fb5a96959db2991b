// PendingCalls: who waits for which answer. A call has a number, unique over the life of the table,
// and an entry that lives in the frame of the coroutine that waits.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "actor/message.h"
#include "base/task.h"

namespace actor {

class PendingCalls {
 public:
  using Answer = base::Result<Envelope>;

  // Numbers go up from `last`. Drawn at random for each life of a node: an answer to a former life
  // of a fixed node id must not pass for one to this life.
  explicit PendingCalls(uint64_t last = 0) : serial_(last) {}

  class Entry {
   public:
    Entry(PendingCalls& table, NodeId to);
    ~Entry() { table_.entries_.erase(number_); }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    uint64_t number() const { return number_; }
    // Takes the entry off the table and resumes who waits; the entry may be gone afterwards.
    void resolve(Answer answer);
    base::Slot<Answer> slot;

   private:
    friend class PendingCalls;
    PendingCalls& table_;
    NodeId to_;
    uint64_t number_;
  };

  // Answers the call, if it waits; `from` must be the node that was called. False: a late or
  // repeated answer, or one from a stranger.
  bool answer(uint64_t number, NodeId from, Answer answer);
  // Fails the call, if it still waits.
  void fail(uint64_t number, base::Error error);

  std::vector<uint64_t> all() const;
  std::vector<uint64_t> to(NodeId node) const;
  size_t size() const { return entries_.size(); }

 private:
  std::map<uint64_t, Entry*> entries_;
  uint64_t serial_;
};

}  // namespace actor
