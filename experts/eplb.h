// Expert load balancing: which experts get replicas, and which rank holds which replica. Pure
// functions of one layer's loads.
//
// The algorithms are those of DeepSeek's EPLB, hierarchical and global, with the same results bit
// for bit (float sums, ties to the lowest index) where that one is defined: devices dividing slots,
// nodes dividing devices. Beyond it, any numbers: device d of D has the slots from
// ⌈d·P/D⌉ on, so that devices differ by one slot at most, and where the hierarchy does not divide
// evenly the global policy is used.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace experts {

// `count` items dealt to `packs`: the first one of pack i, in the order of packs. packs + 1 gives
// the end.
inline uint32_t first_of_pack(uint32_t pack, uint32_t packs, uint32_t count) {
  return static_cast<uint32_t>((static_cast<uint64_t>(pack) * count + packs - 1) / packs);
}

struct Packing {
  std::vector<uint32_t> pack;  // of each item
  std::vector<uint32_t> rank;  // of each item within its pack
};
// Heaviest first, each to the lightest pack that is not full; with as many packs as items, item i
// is pack i's. `kinds`, if given: two items of a kind are kept apart wherever that is possible; it
// is while no kind has more items than there are packs.
Packing pack_items(std::span<const float> weights, uint32_t packs,
                   std::span<const uint32_t> kinds = {});

struct Replicas {
  std::vector<uint32_t> expert;  // [slots]
  std::vector<uint32_t> rank;    // [slots]: which replica of its expert it is
  std::vector<uint32_t> count;   // [experts]: replicas, one at least
};
// One slot for every expert, and each further one for the expert whose replicas have most to do.
// An expert with `most` replicas gets no more while another has fewer.  REQUIRES: slots ≥ experts
Replicas replicate(std::span<const float> weights, uint32_t slots,
                   uint32_t most = std::numeric_limits<uint32_t>::max());

struct Topology {
  uint32_t slots = 0;    // of all devices, one at least for every expert
  uint32_t devices = 1;  // ranks
  // Consecutive experts that a token tends to use together, and devices with fast links between
  // them; 1: none such.
  uint32_t groups = 1, nodes = 1;
  // No device has an expert twice where that can be had. False: exactly the published algorithm,
  // which does not care.
  bool distinct = true;
};

struct LayerPlan {
  std::vector<uint32_t> expert;  // [slots], device by device
  std::vector<uint32_t> rank;    // [slots]
  std::vector<uint32_t> count;   // [experts]
};
// Hierarchical when the groups divide over the nodes (and experts over groups, slots and devices
// over nodes), else global: the same with one group and one node. `loads`: of each expert; finite,
// not negative.
LayerPlan balance_layer(std::span<const float> loads, const Topology& topology);

// What each device has to do when an expert's load is shared evenly by its replicas.
std::vector<double> device_loads(std::span<const float> loads, std::span<const uint16_t> expert,
                                 uint32_t devices);
// Mean over the most of the devices' loads, in (0, 1]; 1 when there is no load.
double balancedness(std::span<const double> device_loads);

}  // namespace experts
