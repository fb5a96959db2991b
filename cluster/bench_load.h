// The load of a bench run, the same against a server and in one process: what request `index` of a
// seed asks for.
#pragma once
#include <cstdint>
#include <vector>

namespace cluster {

// Every LongCat tokenizer, the built-in model's too, has that many ordinary tokens.
inline constexpr uint32_t kCommonVocab = 2800;

// A prompt of exact length: token ids of ordinary text, different in each request so that no prefix
// is shared.
std::vector<uint32_t> bench_prompt(uint64_t seed, uint32_t index, uint32_t tokens,
                                   uint32_t vocab = kCommonVocab);

}  // namespace cluster
