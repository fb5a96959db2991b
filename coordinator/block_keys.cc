#include "coordinator/block_keys.h"

#include <string>

#include "base/bytes.h"
#include "model/kv_pool.h"
#include "proto/store.h"

namespace coordinator {

base::Hash128 block_space(const base::Hash128& model, const base::Hash128& layout,
                          const base::Hash128& arithmetic) {
  return base::hash128("serval kv block 2 " + model.hex() + layout.hex() + arithmetic.hex());
}

base::Hash128 block_root(const base::Hash128& space, std::string_view salt) {
  return base::hash_chain(space, base::as_bytes(salt));
}

std::vector<base::Hash128> block_keys(const base::Hash128& root,
                                      std::span<const base::TokenId> tokens) {
  std::vector<base::Hash128> keys;
  keys.reserve(tokens.size() / model::kBlockTokens);
  base::Hash128 key = root;
  for (size_t begin = 0; begin + model::kBlockTokens <= tokens.size();
       begin += model::kBlockTokens) {
    key = proto::block_key(key, tokens.subspan(begin, model::kBlockTokens));
    keys.push_back(key);
  }
  return keys;
}

uint32_t cacheable_blocks(size_t tokens) {
  return tokens == 0 ? 0 : static_cast<uint32_t>((tokens - 1) / model::kBlockTokens);
}

}  // namespace coordinator
