// The fields by which a request says what its answer must keep to, in the three dialects that
// clients speak: OpenAI's response_format, vLLM's structured_outputs and guided_…, SGLang's
// json_schema, regex and ebnf (llama.cpp's grammar too).
#pragma once
#include <map>
#include <string_view>

#include "base/hash.h"
#include "coordinator/api_fields.h"
#include "grammar/grammar.h"

namespace coordinator {

// Into request.sampling.grammar and request.grammar_field; at most one field may ask for something.
// `text` is the whole body: schemas are taken from it with their members in order.
void parse_grammar(Fields& body, std::string_view text, GenerationRequest& request);

// A body that may hold such a field. False for one whose field names are written with escapes.
bool may_name_grammar(std::string_view body);

// Whether grammars can be followed, with the reason why not. Compiling takes up to a quarter of a
// second, so it belongs on a worker thread; verdicts are kept, the grammars are not: decode ranks
// compile their own. One thread at a time.
class GrammarCheck {
 public:
  GrammarCheck(const model::Tokenizer& tokenizer, const ApiModel& model)
      : tokenizer_(tokenizer), model_(model) {}
  // 400 with the reason.
  std::optional<ApiError> check(const GenerationRequest& request);

 private:
  static constexpr size_t kVerdicts = 2048;
  const model::Tokenizer& tokenizer_;
  const ApiModel& model_;
  std::optional<grammar::Vocabulary> vocabulary_;  // made when first needed
  struct Verdict {
    std::string refusal;  // empty: it is good
    uint64_t used = 0;
  };
  std::map<base::Hash128, Verdict> verdicts_;
  uint64_t uses_ = 0;
};

}  // namespace coordinator
