// Coordinator and prefill stages ↔ kvstore. The store is a cache: every answer but a verified hit
// means "compute it".
#pragma once
#include "proto/common.h"

namespace proto {

// Coordinator → store: how many leading blocks are complete in all layers. The found blocks are
// leased to the request until ReleaseLease or lease_ms. `tokens` are those of the blocks; they are
// compared, not only hashed.
struct LookupPrefix {
  static constexpr uint16_t kType = 50;
  static constexpr const char* kName = "LookupPrefix";
  RequestId request;
  uint32_t attempt = 0;
  std::vector<base::Hash128> keys;
  std::vector<uint32_t> tokens;  // keys.size() × block
  uint32_t lease_ms = 0;
  FIELDS(request, attempt, keys, tokens, lease_ms)
};
struct PrefixFound {
  static constexpr uint16_t kType = 51;
  static constexpr const char* kName = "PrefixFound";
  uint32_t blocks = 0;
  FIELDS(blocks)
};
struct ReleaseLease {
  static constexpr uint16_t kType = 52;
  static constexpr const char* kName = "ReleaseLease";
  RequestId request;
  uint32_t attempt = 0;
  FIELDS(request, attempt)
};
// Stage → store: one layer of some blocks. Answer: KvData with one blob a key, or kMissing without
// blobs.
struct FetchKv {
  static constexpr uint16_t kType = 53;
  static constexpr const char* kName = "FetchKv";
  std::vector<base::Hash128> keys;
  uint32_t layer = 0;
  FIELDS(keys, layer)
};
struct KvData {
  static constexpr uint16_t kType = 54;
  static constexpr const char* kName = "KvData";
  Outcome outcome = Outcome::kOk;
  std::vector<base::Hash128> digests;  // hash128 of each blob, as made by the producer
  FIELDS(outcome, digests)
};
// Stage → store: one layer of one full block. Blob: block rows. Answer: Done (kOk, kNoRoom,
// kCorrupt).
struct PutKv {
  static constexpr uint16_t kType = 55;
  static constexpr const char* kName = "PutKv";
  base::Hash128 key;
  uint32_t layer = 0, layers = 0;  // of the model
  std::vector<uint32_t> tokens;    // of the block
  base::Hash128 digest;            // hash128 of the blob
  FIELDS(key, layer, layers, tokens, digest)
};

}  // namespace proto
