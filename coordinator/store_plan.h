// StorePlan: which kvstores are asked for which blocks of a prompt, what their answers come to, and
// which of them should get a copy of what they lack. Pure.
//
// Blocks are placed by groups (base/rendezvous.h). Each group is asked of its owner and of the
// store next to it in rank, so that what a store held before another joined is found, and copied to
// where it belongs; a group that many ask for has more owners.
#pragma once
#include <map>
#include <span>
#include <vector>

#include "node/store_sites.h"
#include "proto/store.h"

namespace coordinator {

using base::NodeId;

class StorePlan {
 public:
  struct Facts {
    base::Hash128 root;                     // of the chain
    std::vector<base::Hash128> keys;        // of the blocks that may be loaded
    std::span<const base::TokenId> tokens;  // of these, at least; only read by the constructor
    uint64_t turn = 0;                      // spreads requests over equal copies
  };
  // `copies` of each group of the keys: how many owners it has.
  StorePlan(const Facts& facts, const node::StoreSites& stores, std::span<const size_t> copies);

  // What to ask each store, request and lease left to fill in. Ascending by node.
  using Questions = std::map<NodeId, proto::LookupPrefix>;
  const Questions& questions() const { return questions_; }
  Questions take_questions() { return std::move(questions_); }  // they hold all the tokens
  // Each store answers once; a store that is silent or gone has nothing. Strangers are not heard.
  void answered(NodeId store, const proto::PrefixFound& found) { close(store, &found); }
  void silent(NodeId store) { close(store, nullptr); }
  bool complete() const { return open_ == 0; }

  // Leading blocks that can be had.
  uint32_t blocks() const;
  // Of each group of the first `blocks` blocks: where it is, and who should have it and has not.
  std::vector<NodeId> sources(uint32_t blocks) const;
  std::vector<NodeId> copy_to(uint32_t blocks) const;

 private:
  struct Asked {
    NodeId store;
    uint32_t found = 0;  // blocks of the group
    bool heard = false;
  };
  struct Group {
    uint32_t blocks = 0;
    size_t owners = 1;         // the first of `asked`
    std::vector<Asked> asked;  // the best first
  };
  void close(NodeId store, const proto::PrefixFound* found);
  uint32_t most(const Group& group) const;
  const Asked& source(size_t group) const;

  uint64_t turn_ = 0;
  std::vector<Group> groups_;
  Questions questions_;
  // Of each question's runs: the groups it is made of, which follow each other.
  std::map<NodeId, std::vector<std::pair<size_t, size_t>>> runs_;  // first group, groups
  size_t open_ = 0;
};

}  // namespace coordinator
