// Where the values of one token stand in its KV row (kv_pool.h) and how they are rounded to the
// wire type. The part of an attention, [latent | rope key]:
//   bf16, f32: the values side by side.
//   int8: the scale as f32, the codes of the latent, and the rope key in bf16, from an even byte
//   on; zeros fill it up to a multiple of four bytes (docs/NUMERICS.md, "KV types").
// The index key is bf16 with int8, and else of the same type.
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
  // Bytes of the part of an attention, and where that of attention j begins.
  uint32_t part_bytes() const { return part_bytes_; }
  size_t latent_at(uint32_t j) const { return j * size_t{part_bytes_}; }
  // Byte offset of the index key.  REQUIRES: an LSA model
  size_t index_key_at() const { return latent_at(2); }
  // Where the rope key begins in a part of int8.
  uint32_t rope_at() const { return rope_at_; }

  // Rounds the [latent | rope key] of one attention to the wire type and writes its part, every
  // byte of it; `at` need not be aligned.
  void store_part(std::byte* at, std::span<const float> values) const;
  void load_part(const std::byte* at, std::span<float> values) const;
  void store_index_key(std::byte* at, std::span<const float> values) const;
  void load_index_key(const std::byte* at, std::span<float> values) const;

 private:
  KvType type_;
  uint32_t latent_, rope_;
  uint32_t rope_at_ = 0, part_bytes_ = 0, row_bytes_ = 0;
};

const char* name_of(KvType type);

// The Shape of a model's engine, without the arithmetic digest.
Shape shape_of(const ModelConfig& config, const base::Hash128& model_digest,
               const EngineOptions& options);

}  // namespace model
