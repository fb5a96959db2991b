// Where the values of one token stand in its KV row (kv_pool.h) and how they are rounded to the
// wire type.
#pragma once
#include <cstddef>
#include <span>

#include "model/config.h"
#include "model/engine.h"

namespace model {

class KvLayout {
 public:
  KvLayout(const ModelConfig& config, KvType type);

  uint32_t row_bytes() const { return row_bytes_; }
  KvType type() const { return type_; }
  // Byte offset of attention j's [latent | rope key].
  size_t latent_at(uint32_t j) const { return j * size_t{latent_} * value_bytes_; }
  // Byte offset of the index key.  REQUIRES: an LSA model
  size_t index_key_at() const { return latent_at(2); }

  // Rounds to the wire type (bf16 to nearest even) and writes; `at` need not be aligned.
  void store(std::byte* at, std::span<const float> values) const;
  void load(const std::byte* at, std::span<float> values) const;

 private:
  KvType type_;
  uint32_t value_bytes_, latent_, row_bytes_;
};

// The Shape of a model's engine, without the arithmetic digest.
Shape shape_of(const ModelConfig& config, const base::Hash128& model_digest,
               const EngineOptions& options);

}  // namespace model
