// LinkWatch: how fast this stage's KV reaches each decode rank, and which ranks it reaches too
// slowly. Pure; time comes in as an argument.
//
// A link's pace is the quickest of its last few acknowledgements: a lost message or a pause makes
// some of them late, a slow link all of them. A transfer is late when KV is still unacknowledged
// half a second after its request had nothing left to compute. A link is slow when that happened in
// three different seconds of ten and its pace is far behind that of the others. It rests then: the
// coordinator places requests elsewhere (docs/PROTOCOL.md). After the rest it is tried again; found
// slow again soon, it rests twice as long.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace prefill {

class LinkWatch {
 public:
  static constexpr size_t kLates = 3;
  static constexpr base::Duration kWindow = std::chrono::seconds(10);
  static constexpr base::Duration kLateApart = std::chrono::seconds(1);
  static constexpr base::Duration kRest = std::chrono::seconds(30);
  static constexpr base::Duration kRestMost = std::chrono::seconds(300);
  static constexpr size_t kPaceOf = 8;  // acknowledgements
  static constexpr base::Duration kPaceGood = std::chrono::milliseconds(10);
  static constexpr int kFarBehind = 4;  // times the best of the others
  static constexpr base::Duration kRetryLeast = std::chrono::milliseconds(250);
  static constexpr base::Duration kRetryMost = std::chrono::seconds(2);

  // A message to the rank was acknowledged so long after it was first sent.
  void acknowledged(base::NodeId rank, base::Duration after);
  // A transfer to the rank is late. True: that makes the link a slow one.
  bool late(base::NodeId rank, base::Time now);
  // Nothing is known of it any more: it left the view.
  void forget(base::NodeId rank) { links_.erase(rank); }

  // When to repeat what is not acknowledged: on a slow link sooner would only lengthen its queue.
  base::Duration retry(base::NodeId rank) const;
  bool rests(base::NodeId rank, base::Time now) const;
  std::vector<base::NodeId> resting(base::Time now) const;
  // Some other rank is known to be reached far better than this one.
  bool has_better(base::NodeId rank, base::Time now) const;

 private:
  struct Link {
    std::deque<base::Duration> delays;  // of the last kPaceOf acknowledgements
    std::deque<base::Time> lates;       // the last kLates
    base::Time rests_until{};
    base::Duration rest{};  // the latest one's length
  };
  static std::optional<base::Duration> pace(const Link& link);

  std::map<base::NodeId, Link> links_;
};

}  // namespace prefill
