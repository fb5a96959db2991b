// The names of KV blocks: a hash chain over full blocks of 64 tokens, so that a key names the block
// and everything before it. The root binds the chain to a model, a KV layout (with the types
// of weights and KV), the arithmetic and a tenant's salt: equal keys, equal KV.
#pragma once
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"

namespace coordinator {

// All that KV depends on beside the tokens.
base::Hash128 block_space(const base::Hash128& model, const base::Hash128& layout,
                          const base::Hash128& arithmetic);
base::Hash128 block_root(const base::Hash128& space, std::string_view salt);
// proto::block_key() of every full block.
std::vector<base::Hash128> block_keys(const base::Hash128& root,
                                      std::span<const base::TokenId> tokens);
// Leading blocks of `tokens` tokens that may come from the store: all but those that would leave
// no token to compute, for the last token's logits are needed.
uint32_t cacheable_blocks(size_t tokens);

}  // namespace coordinator
