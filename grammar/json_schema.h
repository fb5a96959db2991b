// JSON Schema to rules: texts that are JSON and satisfy the schema (perhaps not all of them).
// README.md lists the keywords; one that is not listed is refused by name, never ignored.
#pragma once
#include <string_view>

#include "base/result.h"
#include "grammar/rules.h"

namespace grammar {

// Defines the root rule.
base::Status add_json_schema(Rules& rules, std::string_view schema);

}  // namespace grammar
