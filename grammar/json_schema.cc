#include "grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>

#include "grammar/automaton.h"
#include "grammar/json_rules.h"
#include "grammar/number_range.h"
#include "grammar/regex.h"
#include "grammar/schema_parts.h"

namespace grammar {

using base::Code;
using base::Result;
using base::Status;
using Kind = Json::Kind;

namespace {

constexpr uint32_t kCountMost = 100'000;
constexpr size_t kNameMost = 512, kNamesMost = 2000;

class Compiler {
 public:
  Compiler(Rules& rules, const Json& root) : rules_(rules), json_(rules), root_(root) {}

  Status run() {
    const RuleId root = rules_.declare("#");
    rules_.set_root(root);
    rules_.define(root, TRY(reference("#", "#")));
    for (; !waiting_.empty(); waiting_.pop_front()) {
      const auto [rule, schema, at] = waiting_.front();
      rules_.define(rule, TRY(any_schema(*schema, at)));
    }
    return {};
  }

 private:
  template <class... Args>
  static tl::unexpected<base::Error> bad(const std::string& at, fmt::format_string<Args...> text,
                                         Args&&... args) {
    return base::fail(Code::kInvalidArgument, "{}: {}", at,
                      fmt::format(text, std::forward<Args>(args)...));
  }
  template <class... Args>
  static tl::unexpected<base::Error> refuse(const std::string& at, fmt::format_string<Args...> text,
                                            Args&&... args) {
    return base::fail(Code::kUnsupported, "{}: {}", at,
                      fmt::format(text, std::forward<Args>(args)...));
  }
  // Only these keywords, and those that describe.
  static Status allow(const Json& schema, const std::string& at,
                      std::initializer_list<std::string_view> keywords) {
    for (const auto& [keyword, value] : schema.map) {
      if (is_annotation(keyword)) continue;
      if (std::find(keywords.begin(), keywords.end(), keyword) == keywords.end())
        return refuse(at, "the keyword '{}' is not supported here", keyword);
    }
    return {};
  }
  static bool has(const Json& schema, std::string_view keyword) {
    return std::ranges::any_of(schema.map,
                               [&](const auto& entry) { return entry.first == keyword; });
  }

  // A rule for what the reference points to; compiled later, so that it may point back.
  Result<ExprId> reference(const std::string& pointer, const std::string& at) {
    const auto found = references_.find(pointer);
    if (found != references_.end()) return rules_.rule(found->second);
    const Json* schema = resolve(root_, pointer);
    if (schema == nullptr)
      return bad(at, "'$ref' to '{}' points to nothing in the schema", pointer);
    const RuleId rule = rules_.declare(pointer);
    references_.emplace(pointer, rule);
    waiting_.push_back({rule, schema, pointer});
    return rules_.rule(rule);
  }

  Result<ExprId> any_schema(const Json& schema, const std::string& at) {
    if (rules_.size() > Limits::kExpressions)
      return base::fail(Code::kTooLarge, "the schema has more than {} parts", Limits::kExpressions);
    if (schema.is(Kind::kBool)) return schema.boolean ? json_.value() : rules_.any({});
    if (!schema.is(Kind::kMap)) return bad(at, "a schema must be an object, true or false");
    if (const Json* pointer = schema.find("$ref"); pointer != nullptr) {
      TRY(allow(schema, at, {"$ref"}));
      if (!pointer->is(Kind::kText)) return bad(at, "'$ref' must be a string");
      return reference(pointer->text, at);
    }
    if (has(schema, "const") || has(schema, "enum")) return constants(schema, at);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"})
      if (has(schema, keyword)) return combined(schema, keyword, at);
    const auto says = [](const auto& entry) {
      return entry.first != "type" && !is_annotation(entry.first);
    };
    const bool plain = std::ranges::none_of(schema.map, says);  // nothing but types
    if (plain && schema.find("type") == nullptr) return json_.value();
    std::vector<ExprId> ways;
    for (const std::string& type : TRY(types_of(schema, at)))
      ways.push_back(TRY(typed(schema, type, at)));
    return rules_.any(std::move(ways));
  }

  Result<ExprId> constants(const Json& schema, const std::string& at) {
    TRY(allow(schema, at, {"const", "enum", "type"}));
    std::vector<Json> values;
    for (const auto& [keyword, value] : schema.map) {
      if (keyword == "const") values.push_back(value);
      if (keyword != "enum") continue;
      if (!value.is(Kind::kList) || value.list.empty())
        return bad(at, "'enum' must be a list that is not empty");
      values = value.list;
    }
    if (schema.find("type") != nullptr) {
      const std::vector<std::string> types = TRY(types_of(schema, at));
      std::erase_if(values, [&](const Json& value) {
        return std::ranges::none_of(types, [&](const auto& type) { return has_type(value, type); });
      });
    }
    if (values.empty()) return bad(at, "no constant has the schema's type");
    std::vector<std::string> texts;
    for (const Json& value : values) texts.push_back(dump(value));
    return one_of(rules_, std::move(texts));
  }
  // As model::dump_python, with the escapes of json_escaped().
  static std::string dump(const Json& value) {
    if (value.is(Kind::kText)) return "\"" + json_escaped(value.text) + "\"";
    return model::dump_python(value);
  }

  Result<ExprId> combined(const Json& schema, const std::string& keyword, const std::string& at) {
    const Json* list = schema.find(keyword);
    if (list == nullptr || !list->is(Kind::kList) || list->list.empty())
      return bad(at, "'{}' must be a list that is not empty", keyword);
    if (keyword == "allOf") {
      if (++merges_ > Limits::kNesting) return refuse(at, "too many 'allOf'");
      Json own = schema;
      std::erase_if(own.map, [](const auto& entry) { return entry.first == "allOf"; });
      if (own.find("anyOf") != nullptr || own.find("oneOf") != nullptr)
        return refuse(at, "'allOf' beside 'anyOf' or 'oneOf'");
      return any_schema(TRY(merged(root_, own, list->list, at)), at);
    }
    TRY(allow(schema, at, {keyword}));
    if (keyword == "oneOf" && !exclusive(root_, list->list)) {
      return refuse(at,
                    "'oneOf' whose schemas are not seen to exclude each other (by type, or by "
                    "a required property with different constants); use 'anyOf'");
    }
    std::vector<ExprId> ways;
    for (size_t i = 0; i < list->list.size(); ++i)
      ways.push_back(TRY(any_schema(list->list[i], fmt::format("{}/{}/{}", at, keyword, i))));
    return rules_.any(std::move(ways));
  }

  Result<ExprId> typed(const Json& schema, const std::string& type, const std::string& at) {
    // With several types each takes the keywords that speak of it.
    TRY(allow(schema, at,
              {"type",
               "properties",
               "required",
               "additionalProperties",
               "minProperties",
               "maxProperties",
               "items",
               "prefixItems",
               "additionalItems",
               "minItems",
               "maxItems",
               "uniqueItems",
               "pattern",
               "format",
               "minLength",
               "maxLength",
               "minimum",
               "maximum",
               "exclusiveMinimum",
               "exclusiveMaximum",
               "multipleOf"}));
    if (type == "object") return speaks_of(schema, type) ? object(schema, at) : json_.object();
    if (type == "array") return speaks_of(schema, type) ? array(schema, at) : json_.array();
    if (type == "string") return string(schema, at);
    if (type == "integer" || type == "number") return number(schema, type == "integer", at);
    return type == "boolean" ? json_.boolean() : json_.null();
  }

  Result<uint32_t> count(const Json& schema, const char* keyword, uint32_t otherwise,
                         const std::string& at) {
    const Json* value = schema.find(keyword);
    if (value == nullptr) return otherwise;
    const bool whole = value->is(Kind::kInteger) ||
                       (value->is(Kind::kReal) && value->real == std::floor(value->real));
    if (!whole || value->real < 0) return bad(at, "'{}' must be a whole number from 0", keyword);
    if (value->real > kCountMost)
      return base::fail(Code::kTooLarge, "{}: '{}' is more than {}", at, keyword, kCountMost);
    return static_cast<uint32_t>(value->real);
  }

  Result<ExprId> string(const Json& schema, const std::string& at) {
    const uint32_t least = TRY(count(schema, "minLength", 0, at));
    const uint32_t most = TRY(count(schema, "maxLength", kUnlimited, at));
    const Json *pattern = schema.find("pattern"), *format = schema.find("format");
    if (pattern == nullptr && format == nullptr) {
      if (least == 0 && most == kUnlimited) return json_.string();
      if (least > most) return bad(at, "'minLength' is more than 'maxLength'");
      return as_rule("string", json_.string_of(least, most));
    }
    if ((pattern != nullptr && format != nullptr) || least > 0 || most != kUnlimited)
      return refuse(at, "'pattern' or 'format' together with other limits of a string");
    const Json* text = pattern != nullptr ? pattern : format;
    if (!text->is(Kind::kText)) return bad(at, "'pattern' and 'format' must be strings");
    std::string_view regex = text->text;
    if (format != nullptr) regex = format_pattern(format->text);
    if (regex.empty() && format != nullptr)
      return refuse(at, "the format '{}' is not supported", format->text);
    auto body = parse_regex(rules_, regex, {.search = true, .json_string = true});
    if (!body) return base::fail(body.error().code, "{}: {}", at, body.error().what);
    const ExprId quote = rules_.bytes("\"");
    return as_rule("pattern", rules_.sequence({quote, *body, quote}));
  }

  Result<ExprId> number(const Json& schema, bool integer, const std::string& at) {
    if (const Json* step = schema.find("multipleOf"); step != nullptr) {
      if (!integer || !step->is(Kind::kInteger) || step->integer != 1)
        return refuse(at, "'multipleOf' is not supported");
    }
    NumberRange range;
    TRY(bound(schema, "minimum", "exclusiveMinimum", 1, range.least, range.above_least, at));
    TRY(bound(schema, "maximum", "exclusiveMaximum", -1, range.most, range.below_most, at));
    if (!range.bounded()) return integer ? json_.integer() : json_.number();
    return as_rule("number",
                   integer ? integer_between(rules_, range) : number_between(rules_, range));
  }
  // The tighter of an inclusive and an exclusive bound. `inward` 1: the larger is tighter.
  Status bound(const Json& schema, const char* inclusive, const char* exclusive, int inward,
               std::optional<Decimal>& out, bool& open, const std::string& at) {
    for (const char* keyword : {inclusive, exclusive}) {
      const Json* value = schema.find(keyword);
      if (value == nullptr) continue;
      if (!value->is(Kind::kInteger) && !value->is(Kind::kReal))
        return bad(at, "'{}' must be a number", keyword);
      auto made = parse_decimal(value->is(Kind::kInteger) ? fmt::format("{}", value->integer)
                                                          : value->text);
      if (!made) return base::fail(made.error().code, "{}: {}", at, made.error().what);
      const int order = out ? compare(*made, *out) * inward : 1;
      if (order < 0 || (order == 0 && keyword != exclusive)) continue;
      out = *made;
      open = keyword == exclusive;
    }
    return {};
  }

  Result<ExprId> array(const Json& schema, const std::string& at) {
    if (const Json* unique = schema.find("uniqueItems"); unique != nullptr)
      if (!unique->is(Kind::kBool) || unique->boolean)
        return refuse(at, "'uniqueItems' is not supported");
    const Json *items = schema.find("items"), *prefix = schema.find("prefixItems");
    if (items != nullptr && items->is(Kind::kList)) {  // before 2020
      prefix = items;
      items = schema.find("additionalItems");
    } else if (schema.find("additionalItems") != nullptr) {
      return refuse(at, "'additionalItems' without a list of 'items'");
    }
    const uint32_t least = TRY(count(schema, "minItems", 0, at));
    uint32_t most = TRY(count(schema, "maxItems", kUnlimited, at));
    std::vector<ExprId> first;
    if (prefix != nullptr) {
      if (!prefix->is(Kind::kList)) return bad(at, "'prefixItems' must be a list");
      for (size_t i = 0; i < prefix->list.size(); ++i)
        first.push_back(TRY(any_schema(prefix->list[i], fmt::format("{}/prefixItems/{}", at, i))));
    }
    const auto known = static_cast<uint32_t>(first.size());
    const bool closed =
        items == nullptr ? prefix != nullptr : items->is(Kind::kBool) && !items->boolean;
    if (closed) most = std::min(most, known);
    if (least > most) return bad(at, "an array needs more items than it may have");
    ExprId item = 0;
    if (!closed && most > known)
      item = items == nullptr ? json_.value()
                              : as_rule("item", TRY(any_schema(*items, at + "/items")));
    if (known == 0)
      return as_rule("array", json_.enclosed("[", json_.list(item, least, most), "]"));
    first.resize(std::min(known, most));
    return as_rule("array", json_.enclosed("[", tuple(first, item, least, most), "]"));
  }
  // `first`, then `item` up to `most` in all; from `least` on it may end.
  ExprId tuple(const std::vector<ExprId>& first, ExprId item, uint32_t least, uint32_t most) {
    const auto known = static_cast<uint32_t>(first.size());
    ExprId tail = rules_.empty();
    if (most > known) {
      tail =
          rules_.repeat(rules_.sequence({json_.comma(), item}), least > known ? least - known : 0,
                        most == kUnlimited ? kUnlimited : most - known);
    }
    for (uint32_t i = known; i-- > 0;) {
      tail = i == 0 ? rules_.sequence({first[i], tail})
                    : rules_.sequence({json_.comma(), first[i], tail});
      if (i >= least) tail = rules_.optional(tail);
    }
    return tail;
  }

  ExprId as_rule(const char* name, ExprId body) { return rules_.rule(rules_.add(name, body)); }

  struct Property {
    ExprId member;  // key, colon, value
    bool required;
  };
  Result<std::vector<Property>> properties(const Json& schema, std::vector<std::string>& names,
                                           const std::string& at) {
    std::vector<std::string> required;
    if (const Json* list = schema.find("required"); list != nullptr) {
      if (!list->is(Kind::kList)) return bad(at, "'required' must be a list of names");
      for (const Json& name : list->list) {
        if (!name.is(Kind::kText)) return bad(at, "'required' must be a list of names");
        required.push_back(name.text);
      }
    }
    std::vector<Property> out;
    const auto add = [&](const std::string& name, ExprId value) -> Status {
      if (name.size() > kNameMost || names.size() >= kNamesMost)
        return base::fail(Code::kTooLarge,
                          "{}: more than {} properties, or a name of more than {} "
                          "bytes",
                          at, kNamesMost, kNameMost);
      const bool needed = std::ranges::find(required, name) != required.end();
      out.push_back({rules_.sequence({json_.key(name), value}), needed});
      names.push_back(name);
      return {};
    };
    if (const Json* map = schema.find("properties"); map != nullptr) {
      if (!map->is(Kind::kMap)) return bad(at, "'properties' must be an object");
      for (const auto& [name, property] : map->map) {
        const bool needed = std::ranges::find(required, name) != required.end();
        if (property.is(Kind::kBool) && !property.boolean && !needed) {
          names.push_back(name);  // may not be there
          continue;
        }
        TRY(add(name, TRY(any_schema(property, fmt::format("{}/properties/{}", at, name)))));
      }
    }
    for (const std::string& name : required)  // required and not described
      if (std::ranges::find(names, name) == names.end()) TRY(add(name, json_.value()));
    return out;
  }

  Result<ExprId> object(const Json& schema, const std::string& at) {
    std::vector<std::string> names;
    const std::vector<Property> known = TRY(properties(schema, names, at));
    const Json* more = schema.find("additionalProperties");
    // Where nothing is said of others, an object that lists its properties has no others.
    const bool open = more == nullptr ? names.empty() : !more->is(Kind::kBool) || more->boolean;
    uint32_t least = TRY(count(schema, "minProperties", 0, at));
    const uint32_t most = TRY(count(schema, "maxProperties", kUnlimited, at));
    if (least > most) return bad(at, "'minProperties' is more than 'maxProperties'");
    if (!known.empty()) {
      const auto needed = static_cast<uint32_t>(std::ranges::count_if(known, &Property::required));
      const bool enough = needed >= least,
                 few = most >= known.size() && (!open || most == kUnlimited);
      if (!enough || !few)
        return refuse(at,
                      "'minProperties' or 'maxProperties' that the listed properties do not "
                      "already satisfy");
      least = 0;
    }
    if (!open && least > 0) return bad(at, "an object needs more properties than it may have");
    ExprId others = rules_.empty();  // after nothing
    ExprId more_others = others;     // after a member
    if (open) {
      const bool free = more == nullptr || more->is(Kind::kBool);
      const ExprId value =
          free ? json_.value() : TRY(any_schema(*more, at + "/additionalProperties"));
      const ExprId member = as_rule("member", rules_.sequence({json_.key_except(names), value}));
      others = json_.list(member, least, most);
      more_others = rules_.repeat(rules_.sequence({json_.comma(), member}), 0, kUnlimited);
    }
    return as_rule("object", json_.enclosed("{", members(known, others, more_others), "}"));
  }
  // In the schema's order. Two chains of rules, before and after the first member that is written.
  ExprId members(const std::vector<Property>& known, ExprId none_after, ExprId some_after) {
    RuleId none = rules_.add("members", none_after), some = rules_.add("members", some_after);
    for (size_t i = known.size(); i-- > 0;) {
      const RuleId member =
          rules_.add("member", rules_.sequence({known[i].member, rules_.rule(some)}));
      std::vector<ExprId> first = {rules_.rule(member)};
      std::vector<ExprId> later = {rules_.sequence({json_.comma(), rules_.rule(member)})};
      if (!known[i].required) {
        first.push_back(rules_.rule(none));
        later.push_back(rules_.rule(some));
      }
      none = rules_.add("members", rules_.any(std::move(first)));
      some = rules_.add("members", rules_.any(std::move(later)));
    }
    return rules_.rule(none);
  }

  struct Waiting {
    RuleId rule;
    const Json* schema;
    std::string at;
  };
  Rules& rules_;
  JsonRules json_;
  const Json& root_;
  std::map<std::string, RuleId> references_;
  std::deque<Waiting> waiting_;
  uint32_t merges_ = 0;
};

}  // namespace

Status add_json_schema(Rules& rules, std::string_view schema) {
  const auto root = model::parse_json(schema, "the schema");
  if (!root) return base::fail(Code::kInvalidArgument, "{}", root.error().what);
  return Compiler(rules, *root).run();
}

}  // namespace grammar
