// Coordinator and prefill stages ↔ kvstore. The store is a cache: every answer but a verified hit
// means "compute it".
#pragma once
#include <span>

#include "proto/common.h"

namespace proto {

// The name of a block: the name of the block before it (of a first block the root, which binds
// model, layout, arithmetic and salt) chained with its tokens as little-endian u32.
base::Hash128 block_key(const base::Hash128& parent, std::span<const uint32_t> tokens);

// Blocks of a prompt that follow each other.
struct BlockRun {
  uint32_t blocks = 0;
  base::Hash128 parent;  // what the first of them is chained to
  FIELDS(blocks, parent)
};

// Coordinator → store: how many leading blocks of each run are complete in all layers. The found
// blocks are leased to the request until ReleaseLease or lease_ms. `tokens` are those of the
// blocks; they are compared, not only hashed.
struct LookupPrefix {
  static constexpr uint16_t kType = 50;
  static constexpr const char* kName = "LookupPrefix";
  RequestId request;
  uint32_t attempt = 0;
  std::vector<base::Hash128> keys;
  std::vector<uint32_t> tokens;  // keys.size() × block
  uint32_t lease_ms = 0;
  base::Hash128 parent;  // what keys[0] is chained to (PutKv); zero: not told, not compared
  // Cut `keys` into runs, of a prompt whose other blocks are at other stores. Empty: one run.
  std::vector<BlockRun> runs;
  FIELDS(request, attempt, keys, tokens, lease_ms, parent, runs)
};
struct PrefixFound {
  static constexpr uint16_t kType = 51;
  static constexpr const char* kName = "PrefixFound";
  uint32_t blocks = 0;         // of the first run
  std::vector<uint32_t> runs;  // of each run that was asked for
  FIELDS(blocks, runs)
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
  base::Hash128 bound;                 // bound_of(the FetchKv it answers, digests)
  FIELDS(outcome, digests, bound)
};
// Binds an answer to its question, so that a key or layer damaged on the way there is noticed: the
// asker computes it of what it asked.
base::Hash128 bound_of(const FetchKv& asked, const std::vector<base::Hash128>& digests);
// Whether this is all of what was asked, whole: what a receiver has to see before it uses a byte.
bool answers(const FetchKv& asked, const KvData& data, const base::Blobs& blobs);

// Stage → store: one layer of one full block. Blob: block rows. Answer: Done (kOk, kNoRoom,
// kCorrupt).
struct PutKv {
  static constexpr uint16_t kType = 55;
  static constexpr const char* kName = "PutKv";
  base::Hash128 key;
  uint32_t layer = 0, layers = 0;  // of the model
  std::vector<uint32_t> tokens;    // of the block
  base::Hash128 digest;            // hash128 of the blob
  // Key of the block before, of a first block the root that binds model, layout and salt. With the
  // tokens compared at every block of a prefix, equal parents make whole prefixes equal. Zero: not
  // told, not compared.
  base::Hash128 parent;
  uint32_t depth = 0, chain = 0;  // blocks before it; full blocks of the prompt it stands in
  base::Hash128 space;  // model, weights, layout, dtype: all that keys bind beside salt and tokens
  base::Hash128 bound;  // bound_of(this message); zero: not told, not checked
  FIELDS(key, layer, layers, tokens, digest, parent, depth, chain, space, bound)
};
// Hash of every other field: the digest covers the rows, this what they are said to be.
base::Hash128 bound_of(const PutKv& put);

}  // namespace proto
