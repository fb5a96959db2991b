// From a body to token ids: parse, render the chat format, tokenize, check the context. Pure and
// slow for long prompts, so it may run on any thread.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api_types.h"
#include "coordinator/gateway.h"
#include "model/chat.h"
#include "model/tokenizer.h"

namespace coordinator {

class GrammarCheck;  // api_grammar.h

struct Prepared {
  GenerationRequest request;
  std::vector<std::vector<TokenId>> prompts;  // one per request.prompts(), none empty
};

// `grammars` null: on a thread where nothing may be compiled; a body that may_name_grammar() is not
// prepared there.
Parsed<Prepared> prepare(Dialect dialect, std::string_view body, const ApiModel& model,
                         const model::Tokenizer& tokenizer, const model::ChatFormat& format,
                         GrammarCheck* grammars);
// Choice i is answered by submission i: all n of the first prompt, then of the second. A default
// maximum of tokens gives way to min_tokens and to what the context leaves.
// What keeps tenants' cached prefixes apart: the request's own salt if it has one, else the API
// key.
std::string salt_of(const std::string& cache_salt, const std::string& tenant);

std::vector<Submission> submissions(const Prepared& prepared, uint32_t max_context);

// The response bodies of the two small routes.
Parsed<std::string> tokenize(std::string_view body, const ApiModel& model,
                             const model::Tokenizer& tokenizer, const model::ChatFormat& format);
Parsed<std::string> detokenize(std::string_view body, const ApiModel& model,
                               const model::Tokenizer& tokenizer);

}  // namespace coordinator
