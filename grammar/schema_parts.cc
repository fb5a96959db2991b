#include "grammar/schema_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

namespace grammar {

using base::Code;
using base::Result;
using Kind = Json::Kind;

namespace {

constexpr std::string_view kAnnotations[] = {
    "title",    "description", "default",  "examples",  "example", "$schema",    "$id",
    "$comment", "deprecated",  "readOnly", "writeOnly", "$defs",   "definitions"};

struct Format {
  std::string_view name, pattern;
};
#define DATE                                                                    \
  "[0-9]{4}-(0[13578]-(0[1-9]|[12][0-9]|3[01])|1[02]-(0[1-9]|[12][0-9]|3[01])|" \
  "(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
#define TIME \
  "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define OCTET "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define LABEL "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
constexpr Format kFormats[] = {
    {"date", "^" DATE "$"},
    {"time", "^" TIME "$"},
    {"date-time", "^" DATE "T" TIME "$"},
    {"duration",
     "^P([0-9]{1,4}W|([0-9]{1,4}Y([0-9]{1,4}M)?([0-9]{1,4}D)?|[0-9]{1,4}M([0-9]{1,4}D)?|"
     "[0-9]{1,4}D)(T([0-9]{1,4}H([0-9]{1,4}M)?([0-9]{1,4}S)?|[0-9]{1,4}M([0-9]{1,4}S)?|"
     "[0-9]{1,4}S))?|T([0-9]{1,4}H([0-9]{1,4}M)?([0-9]{1,4}S)?|[0-9]{1,4}M([0-9]{1,4}S)?|"
     "[0-9]{1,4}S))$"},
    {"email", "^[A-Za-z0-9_+-]{1,20}(\\.[A-Za-z0-9_+-]{1,20}){0,2}@" LABEL "(\\." LABEL "){1,3}$"},
    {"hostname", "^" LABEL "(\\." LABEL "){0,4}$"},
    {"ipv4", "^" OCTET "(\\." OCTET "){3}$"},
    {"ipv6", "^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$"},
    {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    {"uri", "^[a-z][a-z0-9+.-]{0,15}://[A-Za-z0-9._~:/?#@!$&'()*+,;=-]{1,200}$"},
};
#undef DATE
#undef TIME
#undef OCTET
#undef LABEL

constexpr std::pair<std::string_view, std::string_view> kSpeakOf[] = {
    {"properties", "object"},
    {"required", "object"},
    {"additionalProperties", "object"},
    {"minProperties", "object"},
    {"maxProperties", "object"},
    {"items", "array"},
    {"prefixItems", "array"},
    {"minItems", "array"},
    {"maxItems", "array"},
    {"uniqueItems", "array"},
    {"additionalItems", "array"},
    {"multipleOf", "number"},
    {"pattern", "string"},
    {"format", "string"},
    {"minLength", "string"},
    {"maxLength", "string"},
    {"minimum", "number"},
    {"maximum", "number"},
    {"exclusiveMinimum", "number"},
    {"exclusiveMaximum", "number"}};

constexpr std::array<std::string_view, 7> kTypes = {"object",  "array",   "string", "number",
                                                    "integer", "boolean", "null"};

std::vector<Json> constants_of(const Json& schema) {
  if (const Json* values = schema.find("enum"); values != nullptr) return values->list;
  // find() takes null for absent, and null may be the constant.
  for (const auto& [key, value] : schema.map)
    if (key == "const") return {value};
  return {};
}

bool disjoint(const std::vector<Json>& a, const std::vector<Json>& b) {
  if (a.empty() || b.empty()) return false;
  return std::ranges::none_of(a, [&](const Json& x) {
    return std::ranges::any_of(b, [&](const Json& y) { return same_value(x, y); });
  });
}

bool requires_property(const Json& schema, const std::string& name) {
  const Json* list = schema.find("required");
  return list != nullptr && std::ranges::any_of(list->list, [&](const Json& entry) {
           return entry.is(Kind::kText) && entry.text == name;
         });
}

const Json& followed(const Json& root, const Json& schema) {
  const Json* at = &schema;
  for (int i = 0; i < 8; ++i) {
    const Json* reference = at->find("$ref");
    const Json* to = reference != nullptr ? resolve(root, reference->text) : nullptr;
    if (to == nullptr) break;
    at = to;
  }
  return *at;
}

bool apart(const Json& root, const Json& first, const Json& second) {
  const Json &a = followed(root, first), &b = followed(root, second);
  const std::vector<Json> constants_a = constants_of(a), constants_b = constants_of(b);
  if (disjoint(constants_a, constants_b)) return true;
  const auto type_apart = [](const Json& x, const Json& y) {
    if (x.find("type") == nullptr || y.find("type") == nullptr) return false;
    const auto types_x = types_of(x, ""), types_y = types_of(y, "");
    if (!types_x || !types_y) return false;
    const auto meets = [](const std::string& s, const std::string& t) {
      return s == t || (s == "number" && t == "integer") || (s == "integer" && t == "number");
    };
    return std::ranges::none_of(*types_x, [&](const std::string& s) {
      return std::ranges::any_of(*types_y, [&](const std::string& t) { return meets(s, t); });
    });
  };
  if (type_apart(a, b)) return true;
  const Json *own = a.find("properties"), *other = b.find("properties");
  if (own == nullptr || other == nullptr) return false;
  for (const auto& [name, schema] : own->map) {
    const Json* same = other->find(name);
    const bool both = same != nullptr && requires_property(a, name) && requires_property(b, name);
    if (both && disjoint(constants_of(schema), constants_of(*same))) return true;
  }
  return false;
}

}  // namespace

bool is_annotation(std::string_view keyword) {
  return std::ranges::find(kAnnotations, keyword) != std::end(kAnnotations);
}

std::string_view format_pattern(std::string_view format) {
  for (const Format& known : kFormats)
    if (known.name == format) return known.pattern;
  return {};
}

Result<std::vector<std::string>> types_of(const Json& schema, const std::string& at) {
  std::vector<std::string> out;
  if (const Json* type = schema.find("type"); type != nullptr) {
    const std::vector<Json> list = type->is(Kind::kList) ? type->list : std::vector<Json>{*type};
    for (const Json& entry : list) {
      if (!entry.is(Kind::kText) || std::ranges::find(kTypes, entry.text) == kTypes.end()) {
        return base::fail(Code::kInvalidArgument, "{}: 'type' names no JSON type", at);
      }
      out.push_back(entry.text);
    }
    if (out.empty()) return base::fail(Code::kInvalidArgument, "{}: 'type' is empty", at);
    return out;
  }
  for (const auto& [keyword, value] : schema.map) {
    for (const auto& [known, type] : kSpeakOf)
      if (keyword == known && std::ranges::find(out, type) == out.end()) out.emplace_back(type);
  }
  if (out.empty()) out = {"object", "array", "string", "number", "boolean", "null"};
  return out;
}

bool speaks_of(const Json& schema, std::string_view type) {
  return std::ranges::any_of(schema.map, [type](const auto& entry) {
    return std::ranges::any_of(kSpeakOf, [&](const auto& known) {
      return known.first == entry.first && known.second == type;
    });
  });
}

bool has_type(const Json& value, std::string_view type) {
  switch (value.kind) {
    case Kind::kNull:
      return type == "null";
    case Kind::kBool:
      return type == "boolean";
    case Kind::kInteger:
      return type == "integer" || type == "number";
    case Kind::kReal:
      return type == "number";
    case Kind::kText:
      return type == "string";
    case Kind::kList:
      return type == "array";
    case Kind::kMap:
      return type == "object";
  }
  return false;
}

bool same_value(const Json& a, const Json& b) {
  const auto number = [](const Json& x) { return x.is(Kind::kInteger) || x.is(Kind::kReal); };
  if (number(a) && number(b)) return a.real == b.real;
  if (a.kind != b.kind) return false;
  if (a.boolean != b.boolean || a.text != b.text || a.list.size() != b.list.size()) return false;
  if (!std::equal(a.list.begin(), a.list.end(), b.list.begin(), same_value)) return false;
  if (a.map.size() != b.map.size()) return false;
  return std::ranges::all_of(a.map, [&](const auto& entry) {
    const auto same = std::ranges::find(b.map, entry.first, &decltype(b.map)::value_type::first);
    return same != b.map.end() && same_value(entry.second, same->second);
  });
}

bool exclusive(const Json& root, const std::vector<Json>& schemas) {
  for (size_t i = 0; i < schemas.size(); ++i)
    for (size_t j = i + 1; j < schemas.size(); ++j)
      if (!apart(root, schemas[i], schemas[j])) return false;
  return true;
}

namespace {

base::Status merge_into(Json& all, const Json& schema, const std::string& at) {
  for (const auto& [keyword, value] : schema.map) {
    if (is_annotation(keyword) || keyword == "allOf") continue;
    const auto found = std::ranges::find(all.map, keyword, &decltype(all.map)::value_type::first);
    if (found == all.map.end()) {
      all.map.emplace_back(keyword, value);
    } else if (keyword == "properties") {
      for (const auto& [name, property] : value.map) {
        const Json* known = found->second.find(name);
        if (known == nullptr) {
          found->second.map.emplace_back(name, property);
        } else if (!same_value(*known, property)) {
          return base::fail(Code::kUnsupported, "{}: 'allOf' defines the property '{}' twice", at,
                            name);
        }
      }
    } else if (keyword == "required") {
      for (const Json& name : value.list) found->second.list.push_back(name);
    } else if (!same_value(found->second, value)) {
      return base::fail(Code::kUnsupported, "{}: 'allOf' has two different '{}'", at, keyword);
    }
  }
  return {};
}

// Of the properties that a schema lists.
std::set<std::string> names_in(const Json& schema) {
  std::set<std::string> names;
  if (const Json* properties = schema.find("properties"); properties != nullptr)
    for (const auto& [name, property] : properties->map) names.insert(name);
  return names;
}

}  // namespace

Result<Json> merged(const Json& root, const Json& own, const std::vector<Json>& schemas,
                    const std::string& at) {
  Json all;
  all.kind = Kind::kMap;
  std::vector<Json> parts = {own};
  for (const Json& schema : schemas) {
    const Json& part = followed(root, schema);
    if (!part.is(Kind::kMap) || part.find("$ref") != nullptr || part.find("anyOf") != nullptr ||
        part.find("oneOf") != nullptr || part.find("allOf") != nullptr) {
      return base::fail(Code::kUnsupported, "{}: 'allOf' of anything but simple schemas", at);
    }
    parts.push_back(part);
  }
  for (const Json& part : parts) TRY(merge_into(all, part, at));
  const std::set<std::string> names = names_in(all);
  for (const Json& part : parts) {
    const Json* more = part.find("additionalProperties");
    const bool closed = more != nullptr && !(more->is(Kind::kBool) && more->boolean);
    if (closed && names_in(part) != names) {
      return base::fail(Code::kUnsupported,
                        "{}: 'additionalProperties' beside 'allOf' that adds properties", at);
    }
  }
  return all;
}

const Json* resolve(const Json& root, std::string_view reference) {
  if (!reference.starts_with('#')) return nullptr;
  reference.remove_prefix(1);
  const Json* at = &root;
  while (!reference.empty() && at != nullptr) {
    if (!reference.starts_with('/')) return nullptr;
    reference.remove_prefix(1);
    const std::string_view part = reference.substr(0, reference.find('/'));
    reference.remove_prefix(part.size());
    std::string name;
    for (size_t i = 0; i < part.size(); ++i) {
      const bool escaped = part[i] == '~' && i + 1 < part.size();
      name += escaped ? (part[++i] == '1' ? '/' : '~') : part[i];
    }
    if (at->is(Kind::kList)) {
      size_t index = 0;
      const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), index);
      const bool good = problem == std::errc{} && end == name.data() + name.size();
      at = good && index < at->list.size() ? &at->list[index] : nullptr;
    } else {
      at = at->find(name);
    }
  }
  return at;
}

}  // namespace grammar
