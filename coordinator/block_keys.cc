#include "coordinator/block_keys.h"

#include <bit>
#include <string>

#include "base/bytes.h"
#include "model/kv_pool.h"

namespace coordinator {

static_assert(std::endian::native == std::endian::little, "token bytes are hashed as they stand");

base::Hash128 block_root(const base::Hash128& model, const base::Hash128& layout,
                         std::string_view salt) {
  const base::Hash128 name = base::hash128("serval kv block 1 " + model.hex() + layout.hex());
  return base::hash_chain(name, base::as_bytes(salt));
}

std::vector<base::Hash128> block_keys(const base::Hash128& root,
                                      std::span<const base::TokenId> tokens) {
  std::vector<base::Hash128> keys;
  keys.reserve(tokens.size() / model::kBlockTokens);
  base::Hash128 key = root;
  for (size_t begin = 0; begin + model::kBlockTokens <= tokens.size();
       begin += model::kBlockTokens) {
    key = base::hash_chain(key, std::as_bytes(tokens.subspan(begin, model::kBlockTokens)));
    keys.push_back(key);
  }
  return keys;
}

uint32_t cacheable_blocks(size_t tokens) {
  return tokens == 0 ? 0 : static_cast<uint32_t>((tokens - 1) / model::kBlockTokens);
}

}  // namespace coordinator
