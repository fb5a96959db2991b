// Strong ids: an integer that cannot be mistaken for another kind of integer.
#pragma once
#include <compare>
#include <cstdint>
#include <functional>

namespace base {

template <class Tag, class Int = uint64_t>
struct Id {
  Int value = 0;
  auto operator<=>(const Id&) const = default;
  explicit operator bool() const { return value != 0; }
};

// One life of one process: drawn at random when the process starts (or starts over), so a restarted
// node is a different NodeId and a late message from its former life is recognised by id alone.
using NodeId = Id<struct NodeTag>;
// One client request; unique over the life of a cluster, coordinator restarts included. 0 is none.
using RequestId = Id<struct RequestTag>;
// One token id of the model's vocabulary.
using TokenId = uint32_t;

}  // namespace base

template <class Tag, class Int>
struct std::hash<base::Id<Tag, Int>> {
  size_t operator()(const base::Id<Tag, Int>& id) const noexcept {
    return static_cast<size_t>(id.value * 0x9E3779B97F4A7C15ull);
  }
};
