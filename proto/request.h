// The life of a request between coordinator, prefill stages and decode rank. Every message carries
// (request, attempt); a receiver answers kStale to an attempt lower than the highest it knows. All
// are calls with idempotent handlers. docs/PROTOCOL.md "A request".
#pragma once
#include "proto/common.h"
#include "proto/shards.h"

namespace proto {

// Coordinator → decode rank: hold blocks before any work is started, for the tokens and some more
// or for the whole sequence.
struct ReserveKv {
  static constexpr uint16_t kType = 20;
  static constexpr const char* kName = "ReserveKv";
  RequestId request;
  uint32_t attempt = 0;
  std::vector<uint32_t> tokens;  // prompt, then what earlier attempts emitted
  uint32_t prompt_tokens = 0;    // of those, the prompt
  SamplingFields sampling;
  uint64_t deadline_ms = 0;  // from now
  // Of the names of the sequence's blocks (StartPrefill); zero: none of them is offered to a store.
  base::Hash128 block_root, space;
  std::vector<KvShare> shares;  // what others hold, from position 0 on without gaps
  int32_t priority = 0;         // lower is earlier; of equals the earlier request (lower id) is
  bool whole = false;  // blocks for the longest answer; such an attempt is never preempted. With
                       // shares it is so whatever this says
  FIELDS(request, attempt, tokens, prompt_tokens, sampling, deadline_ms, block_root, space, shares,
         priority, whole)
};
struct KvReserved {
  static constexpr uint16_t kType = 21;
  static constexpr const char* kName = "KvReserved";
  Outcome outcome = Outcome::kOk;
  uint32_t credits = 0;  // KvLayer messages each stage may have unacknowledged
  // Leading blocks of the tokens whose KV the rank has, in every layer: nobody ships them.
  uint32_t held_blocks = 0;
  FIELDS(outcome, credits, held_blocks)
};

// Coordinator → every stage of the chain.
struct StartPrefill {
  static constexpr uint16_t kType = 22;
  static constexpr const char* kName = "StartPrefill";
  RequestId request;
  uint32_t attempt = 0;
  std::vector<uint32_t>
      tokens;  // as in ReserveKv: all of them get KV, the last one's logits give the next token
  uint32_t prompt_tokens = 0;
  SamplingFields sampling;
  std::vector<NodeId> stages;  // with sequence parallelism the ranks of a stage, stage by stage
  NodeId decode;
  NodeId store;  // of the cached blocks for which `sources` has no entry; 0: none
  uint32_t credits = 0;
  uint32_t cached_blocks = 0;  // leading blocks to load from the store instead of computing
  std::vector<base::Hash128> block_keys;  // of every full block of tokens, cached or not
  uint64_t deadline_ms = 0;               // from now
  base::Hash128 block_root;               // what the first block is chained to: model, salt …
  base::Hash128 space;                    // PutKv.space of these blocks
  // Of each group of base::kBlocksOfGroup cached blocks: the store that has it, and the store that
  // should have it and has not (0: none), to which the loaded blocks are offered.
  std::vector<NodeId> sources, copy_to;
  uint32_t sequence_ranks = 1;  // of each stage
  uint32_t held_blocks = 0;     // KvReserved
  std::vector<KvShare> shares;  // KV that goes to others than `decode`, as in ReserveKv
  FIELDS(request, attempt, tokens, prompt_tokens, sampling, stages, decode, store, credits,
         cached_blocks, block_keys, deadline_ms, block_root, space, sources, copy_to,
         sequence_ranks, held_blocks, shares)
};

// Stage s → stage s+1: the hidden rows of one chunk. Blob: f32 [token_count, hidden]; between ranks
// of sequence parallelism, which are those of equal number, only the rows of the sender's tokens.
struct StageInput {
  static constexpr uint16_t kType = 23;
  static constexpr const char* kName = "StageInput";
  RequestId request;
  uint32_t attempt = 0;
  uint32_t token_begin = 0, token_count = 0;
  base::Hash128 digest;  // of the blob
  FIELDS(request, attempt, token_begin, token_count, digest)
};

// Rank of a stage → each other one, at each attention: what it has written into the KV rows of its
// tokens of a chunk. Blob: [tokens of the sender's share, bytes of that attention].
struct SequenceKv {
  static constexpr uint16_t kType = 31;
  static constexpr const char* kName = "SequenceKv";
  RequestId request;
  uint32_t attempt = 0;
  uint32_t token_begin = 0, token_count = 0;  // of the chunk
  uint32_t layer = 0, part = 0;               // attention `part` of the layer
  base::Hash128 digest;                       // sequence_digest(this, blob)
  FIELDS(request, attempt, token_begin, token_count, layer, part, digest)
};
base::Hash128 sequence_digest(const SequenceKv& message, base::ByteView rows);

// Stage → decode rank: KV rows of one layer of one chunk, as soon as the layer is done. Blob:
// token_count rows. Where the model drafts its block's layer comes last, and there the row that
// goes with a token is that of the position before it (model/draft_slots.h).
struct KvLayer {
  static constexpr uint16_t kType = 24;
  static constexpr const char* kName = "KvLayer";
  RequestId request;
  uint32_t attempt = 0;
  uint32_t layer = 0, token_begin = 0, token_count = 0;
  base::Hash128 digest;  // kv_digest(layer, token_begin, blob)
  FIELDS(request, attempt, layer, token_begin, token_count, digest)
};
// Answer to KvLayer. kCorrupt: send again now.
struct KvAck {
  static constexpr uint16_t kType = 25;
  static constexpr const char* kName = "KvAck";
  Outcome outcome = Outcome::kOk;
  FIELDS(outcome)
};
// The digest a KvLayer carries: binds the bytes to where they belong.
base::Hash128 kv_digest(uint32_t layer, uint32_t token_begin, base::ByteView rows);
// One more link of the chain of a layer's KvLayer digests that KvCommit carries; starts from {}.
base::Hash128 kv_chain(const base::Hash128& chain, const base::Hash128& digest);

struct LogprobFields {
  float logprob = 0;
  std::vector<std::pair<uint32_t, float>> top;
  FIELDS(logprob, top)
};

// Stage → decode rank, when each of its KvLayer was acknowledged: these layers are complete. The
// sequence runs when the commits of all stages cover all layers and the digests match. The last
// stage's carries the first token and, for a model that drafts, its last token's final hidden row:
// one blob, f32 [hidden].
struct KvCommit {
  static constexpr uint16_t kType = 26;
  static constexpr const char* kName = "KvCommit";
  RequestId request;
  uint32_t attempt = 0;
  uint32_t layer_begin = 0, layer_end = 0;
  uint32_t tokens = 0;                 // the receiver's rows end here
  std::vector<base::Hash128> digests;  // per layer: chain of the KvLayer digests in token order
  bool has_token = false;
  uint32_t token = 0;
  std::vector<LogprobFields> logprobs;  // none or one
  uint32_t cached_tokens = 0;
  base::Hash128 hidden;  // hash128 of the blob; zero: none
  FIELDS(request, attempt, layer_begin, layer_end, tokens, digests, has_token, token, logprobs,
         cached_tokens, hidden)
};

// Decode rank → coordinator: newly emitted tokens of any number of sequences, one message a step.
// Answer: TokenAck.
struct TokenEntry {
  RequestId request;
  uint32_t attempt = 0;
  uint32_t index = 0;  // of the first token here, counted over all attempts from 0
  std::vector<uint32_t> tokens;
  std::vector<LogprobFields> logprobs;                    // none, or one per token
  base::FinishReason finish = base::FinishReason::kNone;  // with the last token
  FIELDS(request, attempt, index, tokens, logprobs, finish)
};
struct TokenOut {
  static constexpr uint16_t kType = 27;
  static constexpr const char* kName = "TokenOut";
  std::vector<TokenEntry> entries;
  FIELDS(entries)
};
struct TokenAck {
  static constexpr uint16_t kType = 28;
  static constexpr const char* kName = "TokenAck";
  std::vector<RequestId>
      stale;  // of the entries: ended or running in a later attempt; the rank drops them
  FIELDS(stale)
};

// Stage or rank → coordinator: this attempt cannot go on here. Answer: Done.
struct AttemptFailed {
  static constexpr uint16_t kType = 29;
  static constexpr const char* kName = "AttemptFailed";
  RequestId request;
  uint32_t attempt = 0;
  uint16_t code = 0;  // base::Code
  std::string what;
  bool without_cache = false;  // an entry of the store was missing or bad
  NodeId blamed;               // who let the sender down; 0: nobody in particular
  bool preempted = false;      // nothing failed: its KV was wanted for a request before it
  FIELDS(request, attempt, code, what, without_cache, blamed, preempted)
};

// Coordinator → everyone who has part in it: free all that belongs to attempts ≤ attempt. Answer:
// Done.
struct Cancel {
  static constexpr uint16_t kType = 30;
  static constexpr const char* kName = "Cancel";
  RequestId request;
  uint32_t attempt = 0;
  FIELDS(request, attempt)
};

}  // namespace proto
