#include "node/store_sites.h"

namespace node {

void StoreSites::add(NodeId store, std::string_view name) {
  nodes_.push_back(store);
  sites_.push_back({base::site_id(name)});
}

std::vector<NodeId> StoreSites::of(const base::Hash128& group, size_t copies) const {
  std::vector<NodeId> stores;
  for (const size_t index : base::sites_of(group, sites_, copies)) stores.push_back(nodes_[index]);
  return stores;
}

StoreSites stores_in(const View& view) {
  StoreSites sites;
  for (const proto::ViewNode* store : view.ready(proto::Role::kKvstore))
    sites.add(store->node, store->name);
  return sites;
}

}  // namespace node
