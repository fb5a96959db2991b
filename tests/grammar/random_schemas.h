// Random JSON schemas of the keywords that grammar/json_schema.h supports.
#pragma once
#include <nlohmann/json_fwd.hpp>

#include "base/rng.h"

namespace grammar {

nlohmann::ordered_json random_schema(base::Rng& rng);

}  // namespace grammar
