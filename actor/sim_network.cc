// The simulated network: what becomes of a message between two nodes.
#include <algorithm>

#include "actor/sim_internal.h"

namespace actor {
namespace {

constexpr Duration kReorderMost = std::chrono::milliseconds(20);

void append_u64(base::Bytes* out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out->push_back(static_cast<std::byte>(value >> (8 * i)));
}

void append_hash(base::Bytes* out, const base::Hash128& hash) {
  append_u64(out, hash.low);
  append_u64(out, hash.high);
}

uint64_t nanoseconds(Time t) { return static_cast<uint64_t>(t.time_since_epoch().count()); }

}  // namespace

size_t SimWire::size() const {
  size_t total = header.size() + body.size();
  for (const base::Bytes& blob : blobs) total += blob.size();
  return total;
}

bool SimHost::State::blocked(const Node& from, const Node& to) const {
  for (const Partition& partition : partitions) {
    if (host.now_ < partition.until &&
        partition.side.contains(from.name) != partition.side.contains(to.name)) {
      return true;
    }
  }
  const auto cut = cuts.find({from.index, to.index});
  return cut != cuts.end() && host.now_ < cut->second;
}

// Von Neumann's way: comparisons of uniform draws only, hence the same on every machine, which a
// logarithm of the C library is not.
Duration SimHost::State::exponential(Duration mean) {
  double whole = 0;
  while (true) {
    const double first = network_rng.uniform();
    double last = first;
    bool odd = true;  // length of the falling run
    for (double next = network_rng.uniform(); next < last; next = network_rng.uniform()) {
      last = next;
      odd = !odd;
    }
    if (odd) {
      return Duration(static_cast<int64_t>(static_cast<double>(mean.count()) * (whole + first)));
    }
    whole += 1;
  }
}

void SimHost::State::send(Node& from, Node* to, SimWire wire) {
  const SimNetwork& network = host.options_.network;
  if (to == nullptr || blocked(from, *to) || network_rng.chance(network.loss)) {
    return trace(from, to, wire, Time{});
  }
  if (network.corrupt > 0 && !wire.blobs.empty() && network_rng.chance(network.corrupt)) {
    base::Bytes& blob = wire.blobs[network_rng.below(wire.blobs.size())];
    if (!blob.empty()) {
      const uint64_t bit = network_rng.below(blob.size() * 8);
      blob[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    }
  }
  const Pair pair{from.index, to->index};
  const auto throttled = limits.find(pair);
  const double rate = throttled != limits.end() ? throttled->second : network.bytes_per_second;
  const double seconds = static_cast<double>(wire.size()) / rate;
  Time& line = line_free[pair];
  line = std::max(line, host.now_) + Duration(static_cast<int64_t>(seconds * 1e9));
  Time arrival = line + network.latency_least + exponential(network.latency_mean);
  if (const auto clog = clogs.find(pair); clog != clogs.end()) {
    if (host.now_ < clog->second) arrival = std::max(arrival, clog->second);
  }
  const auto held_back = [&] {
    return Duration(static_cast<int64_t>(network_rng.below(uint64_t{kReorderMost.count()})));
  };
  if (network_rng.chance(network.reorder)) {
    arrival += held_back();
  } else {
    Time& last = last_arrival[pair];
    arrival = last = std::max(last, arrival);
  }
  trace(from, to, wire, arrival);
  if (network_rng.chance(network.duplicate)) deliver(from, *to, arrival + held_back(), wire);
  deliver(from, *to, arrival, std::move(wire));
}

void SimHost::State::deliver(Node& from, Node& to, Time arrival, SimWire wire) {
  events.add(arrival, [this, &from, &to, wire = std::move(wire)]() mutable {
    if (blocked(from, to)) return;  // it was on its way when the network broke
    take_input(to, to.life,
               [this, &to, wire = std::move(wire)]() mutable { receive(to, std::move(wire)); });
  });
}

// As a socket would: parses the header again, and is deaf to what is for another life.
void SimHost::State::receive(Node& to, SimWire wire) {
  const base::Result<Header> header = Header::read(wire.header);
  CHECK(header, "{}", header.error().what);
  if (header->to_node != to.context->id().value || header->to_actor != to.actor_id) return;
  Envelope envelope{*header, std::move(wire.body), {}};
  for (base::Bytes& blob : wire.blobs) envelope.blobs.push_back(base::Blob(std::move(blob)));
  to.context->receive(std::move(envelope));
}

void SimHost::State::trace(const Node& from, const Node* to, const SimWire& wire, Time arrival) {
  base::Bytes entry;
  append_u64(&entry, nanoseconds(host.now_));
  append_u64(&entry, nanoseconds(arrival));
  append_u64(&entry, from.index);
  append_u64(&entry, to == nullptr ? ~uint64_t{0} : to->index);
  entry.insert(entry.end(), wire.header.begin(), wire.header.end());
  append_hash(&entry, base::hash128(wire.body));
  for (const base::Bytes& blob : wire.blobs) append_hash(&entry, base::hash128(blob));
  host.trace_ = base::hash_chain(host.trace_, entry);
}

}  // namespace actor
