// Grammars: what the constrained sequences of this rank must keep to, compiled off the reactor
// thread, once for all sequences of the same grammar. Compiling has no clock in it: a grammar that
// the coordinator has taken is taken here.
//
// Threads: compile() runs on the compute pool and touches only what it makes; everything else on
// the reactor thread. The masks of a step are found inside its sampling job.
#pragma once
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actor/context.h"
#include "decode_node/sequence.h"
#include "grammar/cache.h"

namespace decode {

using MakeVocabulary = std::function<base::Result<grammar::Vocabulary>()>;

class Grammars {
 public:
  // Called on the compute pool, once, before the first compile().
  void load(const MakeVocabulary& make);
  using Compiled = base::Result<std::unique_ptr<grammar::Grammar>>;
  Compiled compile(const base::GrammarText& text) const;

  // Gives the sequence its grammar if it is here. Else true for the first who asks: it is to be
  // compiled and handed in.
  bool must_compile(Sequence& sequence);
  // What compile() gave. Afterwards must_compile() finds it, unless it failed.
  void hand_in(const base::GrammarText& text, std::unique_ptr<grammar::Grammar> grammar);
  size_t compiling() const { return compiling_.size(); }

 private:
  base::Result<grammar::Vocabulary> vocabulary_ =
      base::fail(base::Code::kUnsupported, "this rank has no tokenizer");
  grammar::Cache cache_;
  std::set<base::GrammarText> compiling_;
};

}  // namespace decode
