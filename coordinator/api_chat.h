// JSON bodies of the API's POST routes to checked requests. Every value of a client is checked here
// and nowhere else; a bad one is an ApiError that names it. Unknown fields are ignored, as other
// servers do; what is known and not offered is refused in clear words.
#pragma once
#include <string_view>

#include "coordinator/api_types.h"

namespace coordinator {

Parsed<GenerationRequest> parse_chat(std::string_view body, const ApiModel& model);
Parsed<GenerationRequest> parse_completion(std::string_view body, const ApiModel& model);
Parsed<TokenizeRequest> parse_tokenize(std::string_view body, const ApiModel& model);
// POST /detokenize: {"tokens": […]}.
Parsed<std::vector<TokenId>> parse_detokenize(std::string_view body, const ApiModel& model);

}  // namespace coordinator
