#include "coordinator/api_grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "model/json.h"

namespace coordinator {

using base::GrammarKind;
using base::GrammarText;
using nlohmann::json;

namespace {

constexpr size_t kMaxGrammar = grammar::Limits::kText;
constexpr size_t kMaxChoices = 10'000;

struct Field {
  const char* name;
  GrammarKind kind;
};
constexpr Field kBodyFields[] = {{"guided_json", GrammarKind::kJsonSchema},
                                 {"guided_regex", GrammarKind::kRegex},
                                 {"guided_choice", GrammarKind::kChoice},
                                 {"guided_grammar", GrammarKind::kEbnf},
                                 {"json_schema", GrammarKind::kJsonSchema},
                                 {"regex", GrammarKind::kRegex},
                                 {"ebnf", GrammarKind::kEbnf},
                                 {"grammar", GrammarKind::kEbnf},
                                 {"guided_json_object", GrammarKind::kJsonObject}};
constexpr Field kStructuredFields[] = {{"json", GrammarKind::kJsonSchema},
                                       {"regex", GrammarKind::kRegex},
                                       {"choice", GrammarKind::kChoice},
                                       {"grammar", GrammarKind::kEbnf},
                                       {"json_object", GrammarKind::kJsonObject}};

class Reader {
 public:
  Reader(Fields& body, std::string_view text, GenerationRequest& request)
      : body_(body), text_(text), request_(request) {}

  void read() {
    response_format();
    for (const Field& field : kBodyFields) {
      if (const json* value = given(body_, field.name)) take(body_, field, *value, {field.name});
    }
    const json* structured = body_.object("structured_outputs");
    if (!structured) return;
    std::optional<ApiError> error;
    Fields inner(*structured, "structured_outputs", error);
    for (const Field& field : kStructuredFields) {
      if (const json* value = given(inner, field.name))
        take(inner, field, *value, {"structured_outputs", field.name});
    }
    if (given(inner, "structural_tag"))
      inner.fail("structural_tag", "Structural tags are not supported", "unsupported_parameter");
    if (error) body_.fail(error->param, error->message, error->code);
  }

 private:
  using Path = std::vector<std::string_view>;

  // Null, false and absent ask for nothing.
  static const json* given(const Fields& fields, const char* name) {
    const json* value = fields.any(name);
    return value && *value != json(false) ? value : nullptr;
  }

  void set(Fields& fields, const char* name, GrammarText grammar) {
    if (request_.sampling.grammar.kind != GrammarKind::kNone) {
      return fields.fail(name, fmt::format("'{}' and '{}' cannot both say what the answer is",
                                           request_.grammar_field, fields.path(name)));
    }
    if (grammar.text.size() > kMaxGrammar) {
      return fields.fail(
          name, fmt::format("'{}' must have at most {} bytes", fields.path(name), kMaxGrammar));
    }
    request_.grammar_field = fields.path(name);
    request_.sampling.grammar = std::move(grammar);
  }

  void take(Fields& fields, const Field& field, const json& value, const Path& path) {
    if (field.kind == GrammarKind::kJsonObject) {
      if (fields.boolean(field.name)) set(fields, field.name, {field.kind, ""});
    } else if (field.kind == GrammarKind::kJsonSchema && !value.is_string()) {
      set(fields, field.name, {field.kind, ordered(path)});
    } else if (field.kind == GrammarKind::kChoice) {
      if (fields.array(field.name, kMaxChoices))
        set(fields, field.name, {field.kind, value.dump()});
    } else if (const auto text = fields.text(field.name)) {
      if (text->empty()) return;  // as absent: clients send empty strings
      set(fields, field.name, {field.kind, *text});
    }
  }

  // The value at the path as the client wrote it: with its members in order.
  std::string ordered(const Path& path) const {
    const auto whole = model::parse_json(text_, "the body");
    if (!whole) return "";  // refused as a schema, with a reason that is said below
    const model::Json* at = &*whole;
    for (const std::string_view name : path)
      if (at) at = at->find(name);
    return at ? model::dump_python(*at) : "";
  }

  void response_format() {
    const json* format = body_.object("response_format");
    if (!format) return;
    std::optional<ApiError> error;
    Fields fields(*format, "response_format", error);
    const std::string type = fields.text("type", 256).value_or("");
    if (type == "json_object") {
      set(fields, "type", {GrammarKind::kJsonObject, ""});
    } else if (type == "json_schema") {
      json_schema(fields, error);
    } else if (type != "text") {
      fields.fail("type", "'response_format.type' must be text, json_object or json_schema");
    }
    if (error) body_.fail(error->param, error->message, error->code);
  }
  void json_schema(Fields& format, std::optional<ApiError>& error) {
    const json* named = format.object("json_schema");
    if (!named) return format.fail("json_schema", "'response_format.json_schema' is missing");
    Fields fields(*named, "response_format.json_schema", error);
    const json* schema = fields.any("schema");
    if (!schema) return fields.fail("schema", "'json_schema.schema' is missing");
    if (!schema->is_object()) return fields.fail("schema", "A schema must be an object");
    set(fields, "schema",
        {GrammarKind::kJsonSchema, ordered({"response_format", "json_schema", "schema"})});
  }

  Fields& body_;
  const std::string_view text_;
  GenerationRequest& request_;
};

}  // namespace

void parse_grammar(Fields& body, std::string_view text, GenerationRequest& request) {
  Reader(body, text, request).read();
  if (request.sampling.grammar.kind == GrammarKind::kNone) return;
  if (request.chat.thinking) {
    body.fail(request.grammar_field, "Structured output together with thinking is not supported",
              "unsupported_parameter");
  }
}

bool may_name_grammar(std::string_view body) {
  for (const std::string_view name : {"response_format", "structured_outputs", "guided_",
                                      "json_schema", "\"regex\"", "\"ebnf\"", "\"grammar\""}) {
    if (body.find(name) != std::string_view::npos) return true;
  }
  return false;
}

std::optional<ApiError> GrammarCheck::check(const GenerationRequest& request) {
  const GrammarText& text = request.sampling.grammar;
  if (!vocabulary_) vocabulary_ = grammar::Vocabulary::of(tokenizer_, model_.vocab, model_.eos);
  const base::Hash128 key =
      base::hash128(fmt::format("{} {}", static_cast<int>(text.kind), text.text));
  const auto [it, fresh] = verdicts_.try_emplace(key);
  Verdict& verdict = it->second;
  verdict.used = ++uses_;
  if (fresh) {
    const auto made = grammar::Grammar::compile(text, *vocabulary_);
    if (!made) verdict.refusal = made.error().what;
  }
  std::optional<ApiError> refusal;
  if (!verdict.refusal.empty())
    refusal = invalid(request.grammar_field,
                      fmt::format("The answer cannot be constrained so: {}", verdict.refusal));
  if (verdicts_.size() > kVerdicts) {
    const auto oldest = std::ranges::min_element(
        verdicts_, {}, [](const auto& entry) { return entry.second.used; });
    verdicts_.erase(oldest);
  }
  return refusal;
}

}  // namespace coordinator
