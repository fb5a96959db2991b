// StoreSites: which kvstores should hold which blocks of a prompt. Blocks are placed in groups
// (base/rendezvous.h) by the names of the stores that are ready; whoever knows the same stores
// places alike. Views may differ for a moment: a block looked for elsewhere is a miss. Pure.
#pragma once
#include <string_view>
#include <vector>

#include "base/rendezvous.h"
#include "node/membership_client.h"

namespace node {

class StoreSites {
 public:
  void add(NodeId store, std::string_view name);
  // The first `copies` stores for a group (base::group_key), the best first.
  std::vector<NodeId> of(const base::Hash128& group, size_t copies = 1) const;
  size_t size() const { return nodes_.size(); }

 private:
  std::vector<NodeId> nodes_;
  std::vector<base::Site> sites_;  // of the same
};

StoreSites stores_in(const View& view);

}  // namespace node
