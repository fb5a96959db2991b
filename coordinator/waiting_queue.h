// WaitingQueue: whose turn it is to be placed, among requests that wait for room. Pure.
//
// The lowest priority number first; of equals those that were placed before (an attempt of theirs
// failed or gave way), as they were admitted; then tenants in turns by cost, each tenant's requests
// as they were admitted. Fair by cost (start-time fair queueing): whoever has been given least is
// next, and one that begins to wait counts as given what the clock says one that always waited has.
// So n tenants get an n-th each however many requests they send, and who was away has saved up
// nothing.
//
// Every kTurnOfOldest-th turn goes to the request that was admitted first, whatever its priority
// and tenant: nobody waits for ever.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/ids.h"

namespace coordinator {

using base::RequestId;

class WaitingQueue {
 public:
  static constexpr uint32_t kTurnOfOldest = 8;

  struct Entry {
    RequestId id;
    uint64_t arrival = 0;  // order of admission
    int32_t priority = 0;
    bool again = false;  // was placed before, and has been charged for it
    std::string tenant;
    uint64_t cost = 0;  // tokens
  };
  void add(Entry entry);
  void remove(RequestId id);  // may be unknown
  // Whose turn it is; stays the same until somebody comes or leaves.  REQUIRES: !empty()
  RequestId first();
  // first() was given a place: it leaves, and its tenant is charged.
  void take_first();

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }

 private:
  struct Tenant {
    uint64_t given = 0;  // tokens, on the clock
    size_t waiting = 0;  // requests
  };
  using Order = std::set<std::pair<uint64_t, RequestId>>;  // by arrival
  struct Level {                                           // of one priority; never empty
    Order again;
    std::map<std::string, Order> tenants;  // none empty
  };
  RequestId choose() const;
  void charge(const Entry& entry);
  void forget_tenants();

  std::map<RequestId, Entry> entries_;
  Order all_;
  std::map<int32_t, Level> levels_;
  std::map<std::string, Tenant> tenants_;  // that wait, or are ahead of the clock
  uint64_t clock_ = 0;                     // tokens
  uint32_t turns_ = 0;
  std::optional<RequestId> first_;  // as chosen, while it holds
};

}  // namespace coordinator
