#include "decode_node/grammars.h"

namespace decode {

void Grammars::load(const MakeVocabulary& make) {
  if (make) vocabulary_ = make();
}

Grammars::Compiled Grammars::compile(const base::GrammarText& text) const {
  if (!vocabulary_) return base::fail(vocabulary_.error());
  return grammar::Grammar::compile(text, *vocabulary_);
}

bool Grammars::must_compile(Sequence& sequence) {
  const base::GrammarText& text = sequence.sampling.grammar;
  if (!sequence.waits_for_grammar()) return false;
  if (auto found = cache_.find(text)) {
    sequence.grammar = std::move(found);
    sequence.matcher.emplace(*sequence.grammar, sequence.sampling.stop_tokens);
    return false;
  }
  return compiling_.insert(text).second;
}

void Grammars::hand_in(const base::GrammarText& text, std::unique_ptr<grammar::Grammar> grammar) {
  compiling_.erase(text);
  if (grammar) cache_.insert(text, std::move(grammar));
}

}  // namespace decode
