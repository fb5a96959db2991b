// Grammars as a rank serves them: what they take of its memory, and of its steps.
#pragma once
#include <string>

#include "grammar/grammar.h"

namespace bench {

// `count` random schemas one after the other through a cache, 32 in use at once, each with an
// answer of up to 200 tokens. Prints the memory of the process as it goes.
void measure_memory(const grammar::Vocabulary& vocabulary, uint32_t count);
// Answers of a model's engine with and without each grammar: CPU time a token, and what of it the
// grammar took. `folder`: a checkpoint; its tokens are given the bytes of `vocabulary`.
base::Status measure_steps(const std::string& folder, const grammar::Vocabulary& vocabulary);

}  // namespace bench
