#include "tests/grammar/validator.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

namespace grammar {

using nlohmann::json;

namespace {

bool is_type(const json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  return type == "null" && value.is_null();
}

size_t characters(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

const char* pattern_of(const std::string& format) {
  static const std::map<std::string, const char*> kPatterns = {
      {"date", R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$)"},
      {"time", R"(^\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$)"},
      {"date-time", R"(^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$)"},
      {"duration", R"(^P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)$)"},
      {"email", R"(^[^@\s]+@[^@\s]+\.[^@\s]+$)"},
      {"hostname", R"(^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$)"},
      {"ipv4", R"(^(\d{1,3}\.){3}\d{1,3}$)"},
      {"ipv6", R"(^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$)"},
      {"uuid", R"(^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$)"},
      {"uri", R"(^[a-z][a-z0-9+.-]*://.+$)"}};
  return kPatterns.at(format);
}

std::string check_string(const json& schema, const std::string& value) {
  if (schema.contains("minLength") && characters(value) < schema["minLength"])
    return "too short: " + value;
  if (schema.contains("maxLength") && characters(value) > schema["maxLength"])
    return "too long: " + value;
  if (schema.contains("pattern") &&
      !std::regex_search(value, std::regex(schema["pattern"].get<std::string>())))
    return "does not match: " + value;
  if (schema.contains("format") &&
      !std::regex_search(value, std::regex(pattern_of(schema["format"]))))
    return fmt::format("no {}: {}", schema["format"].get<std::string>(), value);
  return {};
}

std::string check_number(const json& schema, const json& value) {
  const auto number = value.get<double>();
  const auto out = [&](const char* keyword, auto breaks) {
    return schema.contains(keyword) && breaks(number, schema[keyword].get<double>());
  };
  if (out("minimum", std::less<>()) || out("maximum", std::greater<>()) ||
      out("exclusiveMinimum", std::less_equal<>()) ||
      out("exclusiveMaximum", std::greater_equal<>()))
    return "out of range: " + value.dump();
  return {};
}

std::string check_array(const json& root, const json& schema, const json& value) {
  if (schema.contains("minItems") && value.size() < schema["minItems"]) return "too few items";
  if (schema.contains("maxItems") && value.size() > schema["maxItems"]) return "too many items";
  const json prefix = schema.value("prefixItems", json::array());
  for (size_t i = 0; i < value.size(); ++i) {
    const json item = i < prefix.size() ? prefix[i] : schema.value("items", json(true));
    if (auto why = violation(root, item, value[i]); !why.empty())
      return fmt::format("[{}] {}", i, why);
  }
  return {};
}

std::string check_object(const json& root, const json& schema, const json& value) {
  for (const json& name : schema.value("required", json::array()))
    if (!value.contains(name.get<std::string>())) return "lacks " + name.dump();
  const json properties = schema.value("properties", json::object());
  for (const auto& [name, member] : value.items()) {
    const json inner = properties.contains(name) ? properties[name]
                                                 : schema.value("additionalProperties", json(true));
    if (auto why = violation(root, inner, member); !why.empty()) return name + ": " + why;
  }
  return {};
}

std::string check_ways(const json& root, const json& schema, const json& value) {
  for (const char* keyword : {"anyOf", "oneOf"}) {
    if (!schema.contains(keyword)) continue;
    const auto fits =
        std::count_if(schema[keyword].begin(), schema[keyword].end(),
                      [&](const json& way) { return violation(root, way, value).empty(); });
    if (fits == 0 || (fits > 1 && std::string(keyword) == "oneOf"))
      return fmt::format("{} schemas of {} fit {}", fits, keyword, value.dump());
  }
  for (const json& part : schema.value("allOf", json::array()))
    if (auto why = violation(root, part, value); !why.empty()) return why;
  return {};
}

}  // namespace

std::string violation(const json& root, const json& schema, const json& value) {
  if (schema.is_boolean()) return schema.get<bool>() ? "" : "nothing is allowed here";
  if (schema.contains("$ref"))
    return violation(root, root[json::json_pointer(schema["$ref"].get<std::string>().substr(1))],
                     value);
  if (schema.contains("const") && schema["const"] != value) return "not the constant";
  if (schema.contains("enum") &&
      std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end())
    return "not in the enum: " + value.dump();
  if (schema.contains("type")) {
    const json types = schema["type"].is_array() ? schema["type"] : json::array({schema["type"]});
    const bool fits = std::any_of(types.begin(), types.end(), [&](const json& type) {
      return is_type(value, type.get<std::string>());
    });
    if (!fits) return fmt::format("{} is no {}", value.dump(), types.dump());
  }
  std::string why = check_ways(root, schema, value);
  if (why.empty() && value.is_string()) why = check_string(schema, value.get<std::string>());
  if (why.empty() && value.is_number()) why = check_number(schema, value);
  if (why.empty() && value.is_array()) why = check_array(root, schema, value);
  if (why.empty() && value.is_object()) why = check_object(root, schema, value);
  return why;
}

}  // namespace grammar
