// A small JSON Schema validator, independent of the room under test: it walks a parsed value.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace grammar {

// Empty when the value satisfies the schema; else why not.
std::string violation(const nlohmann::json& root, const nlohmann::json& schema,
                      const nlohmann::json& value);

}  // namespace grammar
