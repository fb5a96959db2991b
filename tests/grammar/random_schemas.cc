#include "tests/grammar/random_schemas.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

namespace grammar {

using json = nlohmann::ordered_json;

namespace {

constexpr uint32_t kDeepest = 4, kDefinitions = 3;

template <class T, size_t n>
const T& pick(base::Rng& rng, const T (&list)[n]) {
  return list[rng.below(n)];
}

int between(base::Rng& rng, int least, int most) {
  return least + static_cast<int>(rng.below(static_cast<uint64_t>(most - least + 1)));
}

class Maker {
 public:
  explicit Maker(base::Rng& rng) : rng_(rng) {}

  json whole() {
    json root = object(0);
    json definitions = json::object();
    for (uint32_t i = 0; i < kDefinitions; ++i)
      definitions[fmt::format("d{}", i)] = object(kDeepest - 1);
    // A list and a tree: recursion through an optional member, an array or a null.
    definitions["list"] = {
        {"type", "object"},
        {"properties", {{"value", leaf()}, {"next", {{"anyOf", {ref("list"), null()}}}}}},
        {"required", {"value", "next"}},
        {"additionalProperties", false}};
    definitions["tree"] = {
        {"type", "object"},
        {"properties", {{"sons", {{"type", "array"}, {"items", ref("tree")}, {"maxItems", 3}}}}},
        {"required", {"sons"}},
        {"additionalProperties", false}};
    root["$defs"] = std::move(definitions);
    return root;
  }

 private:
  static json null() { return {{"type", "null"}}; }
  static json ref(const std::string& name) { return {{"$ref", "#/$defs/" + name}}; }

  json any(uint32_t depth) {
    if (depth >= kDeepest) return leaf();
    switch (rng_.below(9)) {
      case 0:
      case 1:
        return object(depth + 1);
      case 2:
        return array(depth + 1);
      case 3:
        return tuple(depth + 1);
      case 4:
        return {{"anyOf", {any(depth + 1), any(depth + 1), leaf()}}};
      case 5:
        return reference();
      case 6:
        return exclusive();
      default:
        return leaf();
    }
  }
  json reference() {
    static const char* const kNames[] = {"list", "tree", "d0", "d1", "d2"};
    // A definition that may refer to itself without end is for the optional members only.
    return ref(kNames[rng_.below(2)]);
  }
  json exclusive() {
    json ways = json::array();
    for (int i = 0; i < 3; ++i) {
      ways.push_back({{"type", "object"},
                      {"properties", {{"kind", {{"const", fmt::format("k{}", i)}}}, {"x", leaf()}}},
                      {"required", {"kind"}},
                      {"additionalProperties", false}});
    }
    return {{"oneOf", ways}};
  }
  json object(uint32_t depth) {
    json properties = json::object(), required = json::array();
    const int count = between(rng_, 0, 5);
    for (int i = 0; i < count; ++i) {
      const std::string name = fmt::format("{}{}", pick(rng_, kWords), i);
      properties[name] = any(depth);
      if (rng_.chance(0.5)) required.push_back(name);
    }
    if (rng_.chance(0.2)) properties["again"] = ref(fmt::format("d{}", rng_.below(kDefinitions)));
    json out = {{"type", "object"}, {"properties", properties}, {"required", required}};
    if (rng_.chance(0.6))
      out["additionalProperties"] = false;
    else if (rng_.chance(0.5))
      out["additionalProperties"] = leaf();
    return out;
  }
  json array(uint32_t depth) {
    json out = {{"type", "array"}, {"items", any(depth)}};
    const int least = between(rng_, 0, 3);
    if (rng_.chance(0.5)) out["minItems"] = least;
    if (rng_.chance(0.7)) out["maxItems"] = least + between(rng_, 0, 3);
    return out;
  }
  json tuple(uint32_t depth) {
    json out = {{"type", "array"}, {"prefixItems", {any(depth), leaf()}}};
    if (rng_.chance(0.5))
      out["items"] = leaf();
    else if (rng_.chance(0.5))
      out["items"] = false;
    if (rng_.chance(0.5)) out["minItems"] = between(rng_, 0, 2);
    return out;
  }
  json leaf() {
    switch (rng_.below(8)) {
      case 0:
        return number("integer", 1);
      case 1:
        return number("number", 1000);
      case 2:
        return {{"enum", {"red", "r\"ed", 3, nullptr, 2.5, json::array({1, "a"})}}};
      case 3:
        return {{"type", {"boolean", "null"}}};
      case 4:
        return {{"const", pick(rng_, kWords)}};
      case 5:
        return {{"type", "string"}, {"pattern", pick(rng_, kPatterns)}};
      case 6:
        return {{"type", "string"}, {"format", pick(rng_, kFormats)}};
      default: {
        json out = {{"type", "string"}};
        const int least = between(rng_, 0, 5);
        if (rng_.chance(0.5)) out["minLength"] = least;
        if (rng_.chance(0.5)) out["maxLength"] = least + between(rng_, 0, 10);
        return out;
      }
    }
  }
  json number(const char* type, int parts) {
    json out = {{"type", type}};
    const auto value = [&](int whole) {
      return parts == 1 ? json(whole) : json(static_cast<double>(whole) / parts);
    };
    const int low = between(rng_, -5000, 5000), high = low + between(rng_, 2, 9000);
    if (rng_.chance(0.4)) out[rng_.chance(0.5) ? "minimum" : "exclusiveMinimum"] = value(low);
    if (rng_.chance(0.4)) out[rng_.chance(0.5) ? "maximum" : "exclusiveMaximum"] = value(high);
    return out;
  }

  static constexpr const char* kWords[] = {"name", "age",       "a", "ab",
                                           "x\"y", "h\xc3\xa9", "",  "le ft"};
  static constexpr const char* kPatterns[] = {"^[a-z]{2,6}$",       "^\\d+(\\.\\d+)?$",
                                              "^(GET|POST) /\\w*$", "[A-Z]{2}",
                                              "^\"[^\"]*\"$",       "a|b$",
                                              "^\\S+\\s\\S+$",      "\\\\"};
  static constexpr const char* kFormats[] = {"date", "time",     "date-time", "duration", "email",
                                             "ipv4", "hostname", "ipv6",      "uuid",     "uri"};
  base::Rng& rng_;
};

}  // namespace

json random_schema(base::Rng& rng) { return Maker(rng).whole(); }

}  // namespace grammar
