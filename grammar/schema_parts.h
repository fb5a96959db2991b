// Pure helpers of json_schema.cc: what schemas say, before anything is made of it.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/json.h"

namespace grammar {

using model::Json;

// The types a schema allows: "type", or what its keywords speak of, or all.
base::Result<std::vector<std::string>> types_of(const Json& schema, const std::string& at);
// Some keyword of the schema limits values of the type.
bool speaks_of(const Json& schema, std::string_view type);
bool has_type(const Json& value, std::string_view type);
// Equal as JSON values; numbers by value.
bool same_value(const Json& a, const Json& b);

// No value satisfies two of the schemas, for a reason that can be seen: their types, constants, or
// a required property with different constants.
bool exclusive(const Json& root, const std::vector<Json>& schemas);
// All of the schemas and `own` as one, where that is a matter of putting their keywords together.
base::Result<Json> merged(const Json& root, const Json& own, const std::vector<Json>& schemas,
                          const std::string& at);
// The schema that "#/…" points to; null if there is none.
const Json* resolve(const Json& root, std::string_view reference);

// The regular expression of a string format; empty: unknown.
std::string_view format_pattern(std::string_view format);

// Keywords that only describe.
bool is_annotation(std::string_view keyword);

}  // namespace grammar
