#include "proto/store.h"

#include <array>
#include <bit>

namespace proto {

namespace {

template <class T>
base::Hash128 chain_all(const base::Hash128& before, const std::vector<T>& values) {
  return base::hash_chain(before, std::as_bytes(std::span<const T>(values)));
}

}  // namespace

base::Hash128 block_key(const base::Hash128& parent, std::span<const uint32_t> tokens) {
  static_assert(std::endian::native == std::endian::little, "tokens are hashed as they stand");
  return base::hash_chain(parent, std::as_bytes(tokens));
}

base::Hash128 bound_of(const FetchKv& asked, const std::vector<base::Hash128>& digests) {
  const std::array<uint64_t, 2> head{asked.layer, asked.keys.size()};
  const base::Hash128 name = base::hash128(std::as_bytes(std::span(head)));
  return chain_all(chain_all(name, asked.keys), digests);
}

bool answers(const FetchKv& asked, const KvData& data, const base::Blobs& blobs) {
  const size_t count = asked.keys.size();
  bool whole = data.outcome == Outcome::kOk && data.digests.size() == count &&
               blobs.size() == count && data.bound == bound_of(asked, data.digests);
  for (size_t i = 0; whole && i < count; ++i)
    whole = base::hash128(blobs[i].view()) == data.digests[i];
  return whole;
}

base::Hash128 bound_of(const PutKv& put) {
  const std::array<uint64_t, 5> head{put.layer, put.layers, put.tokens.size(), put.depth,
                                     put.chain};
  const std::array<base::Hash128, 4> names{put.key, put.digest, put.parent, put.space};
  const base::Hash128 numbers = base::hash128(std::as_bytes(std::span(head)));
  return chain_all(base::hash_chain(numbers, std::as_bytes(std::span(names))), put.tokens);
}

}  // namespace proto
