// Byte-pair encoding of one piece of text: merges neighbours, lowest rank first and leftmost among
// equals, until none can merge. O(n log n) in the length of the piece, so that a long run without a
// break is no attack.
//
// Thread safety: constant once all tokens and merges are added.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/ids.h"

namespace model {

class Bpe {
 public:
  // The token of a single byte. Every byte must have one.
  void set_byte(uint8_t byte, base::TokenId id) { bytes_[byte] = id; }
  // The next merge, in order of rank; a pair that is already there takes the later rank.
  void add_merge(base::TokenId left, base::TokenId right, base::TokenId merged);
  // `ignore_merges`: a piece that is a token as a whole is that token.
  void add_whole(std::string bytes, base::TokenId id) { whole_.emplace(std::move(bytes), id); }

  void encode(std::string_view piece, std::vector<base::TokenId>* out) const;

 private:
  struct Merge {
    base::TokenId left = 0, right = 0, merged = 0;
  };
  struct PairHash {
    size_t operator()(uint64_t pair) const {
      pair *= 0x9E3779B97F4A7C15ull;
      return static_cast<size_t>(pair ^ (pair >> 32));
    }
  };
  static constexpr uint32_t kNone = UINT32_MAX;
  uint32_t rank_of(base::TokenId left, base::TokenId right) const;
  void merge_short(std::vector<base::TokenId>* symbols) const;
  void merge_long(std::vector<base::TokenId>* symbols) const;

  std::array<base::TokenId, 256> bytes_{};
  std::vector<Merge> merges_;                              // by rank
  std::unordered_map<uint64_t, uint32_t, PairHash> rank_;  // left << 32 | right
  std::unordered_map<std::string, base::TokenId> whole_;
};

}  // namespace model
