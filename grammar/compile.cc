// Grammar::compile: which front end reads which kind of text.
#include "grammar/ebnf.h"
#include "grammar/grammar.h"
#include "grammar/json_rules.h"
#include "grammar/json_schema.h"
#include "grammar/regex.h"
#include "model/json.h"

namespace grammar {

using base::Code;
using base::GrammarKind;
using base::Status;

namespace {

constexpr size_t kChoicesMost = 10'000;

Status add_choice(Rules& rules, std::string_view text) {
  const auto list = model::parse_json(text, "the choices");
  if (!list || !list->is(model::Json::Kind::kList) || list->list.empty() ||
      list->list.size() > kChoicesMost) {
    return base::fail(Code::kInvalidArgument, "the choices must be a list of 1 to {} strings",
                      kChoicesMost);
  }
  std::vector<std::string> texts;
  for (const model::Json& entry : list->list) {
    if (!entry.is(model::Json::Kind::kText) || entry.text.empty())
      return base::fail(Code::kInvalidArgument, "a choice must be a string that is not empty");
    texts.push_back(entry.text);
  }
  rules.set_root(rules.add("choice", one_of(rules, std::move(texts))));
  return {};
}

Status add_rules(Rules& rules, const base::GrammarText& text) {
  switch (text.kind) {
    case GrammarKind::kJsonObject:
      rules.set_root(rules.add("json object", JsonRules(rules).object()));
      return {};
    case GrammarKind::kJsonSchema:
      return add_json_schema(rules, text.text);
    case GrammarKind::kRegex: {
      const ExprId body = TRY(parse_regex(rules, text.text, {}));
      rules.set_root(rules.add("pattern", body));
      return {};
    }
    case GrammarKind::kChoice:
      return add_choice(rules, text.text);
    case GrammarKind::kEbnf:
      return add_ebnf(rules, text.text);
    case GrammarKind::kNone:
      break;
  }
  return base::fail(Code::kUnsupported, "no such kind of grammar");
}

}  // namespace

base::Result<std::unique_ptr<Grammar>> Grammar::compile(const base::GrammarText& text,
                                                        const Vocabulary& vocabulary) {
  if (text.text.size() > Limits::kText)
    return base::fail(Code::kTooLarge, "the grammar is longer than {} bytes", Limits::kText);
  Rules rules;
  TRY(add_rules(rules, text));
  return make(rules, vocabulary);
}

}  // namespace grammar
