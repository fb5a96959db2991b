#include "coordinator/api_prompt.h"

#include <fmt/core.h>

#include "coordinator/api_chat.h"
#include "coordinator/api_grammar.h"
#include "coordinator/api_json.h"

namespace coordinator {

namespace {

const char* prompt_field(Dialect dialect) {
  return dialect == Dialect::kChat ? "messages" : "prompt";
}

// Clients match this sentence, and both numbers in it, to shorten their conversation.
ApiError too_long(Dialect dialect, const ApiModel& model, uint64_t prompt, uint32_t answer) {
  const char* field = prompt_field(dialect);
  return invalid(
      field,
      fmt::format("This model's maximum context length is {} tokens. However, you requested {} "
                  "tokens ({} in the {}, {} in the completion). Please reduce the length of the "
                  "{} or completion.",
                  model.max_context, prompt + answer, prompt, field, answer, field),
      "context_length_exceeded");
}

// At least one token is generated, so the prompt alone may not fill the context.
std::optional<ApiError> check_context(const GenerationRequest& request, const ApiModel& model,
                                      uint64_t prompt) {
  const uint32_t answer = request.has_max_tokens ? request.sampling.max_tokens : 1;
  if (prompt + answer <= model.max_context) return std::nullopt;
  return too_long(request.dialect, model, prompt, answer);
}

size_t text_bytes(const GenerationRequest& request) {
  size_t bytes = 0;
  for (const model::ChatMessage& message : request.messages) bytes += message.content.size();
  for (const std::string& text : request.texts) bytes = std::max(bytes, text.size());
  return bytes;
}

ApiError from_render(const base::Error& error) {
  ApiError out = from_gateway(error);
  if (out.status == 400) out.param = "messages";
  return out;
}

}  // namespace

Parsed<Prepared> prepare(Dialect dialect, std::string_view body, const ApiModel& model,
                         const model::Tokenizer& tokenizer, const model::ChatFormat& format,
                         GrammarCheck* grammars) {
  auto parsed = dialect == Dialect::kChat ? parse_chat(body, model) : parse_completion(body, model);
  if (!parsed) return tl::unexpected(std::move(parsed.error()));
  Prepared out{std::move(*parsed), {}};
  GenerationRequest& request = out.request;
  if (request.sampling.grammar.kind != base::GrammarKind::kNone) {
    if (!grammars) {
      return tl::unexpected(
          invalid(request.grammar_field, "The name of this field must be written without escapes"));
    }
    if (auto error = grammars->check(request)) return tl::unexpected(std::move(*error));
  }
  // What cannot fit whatever its tokens are is refused before the work of tokenizing it.
  if (auto error = check_context(request, model, text_bytes(request) / model.longest_token)) {
    return tl::unexpected(std::move(*error));
  }
  if (dialect == Dialect::kChat) {
    auto ids = format.render(tokenizer, request.messages, request.tools, request.chat);
    if (!ids) return tl::unexpected(from_render(ids.error()));
    out.prompts.push_back(std::move(*ids));
  } else {
    out.prompts = std::move(request.ids);
    for (const std::string& text : request.texts) out.prompts.push_back(tokenizer.encode(text));
  }
  for (const std::vector<TokenId>& prompt : out.prompts) {
    if (prompt.empty()) {
      return tl::unexpected(invalid(prompt_field(dialect), "The prompt has no tokens"));
    }
    if (auto error = check_context(request, model, prompt.size())) {
      return tl::unexpected(std::move(*error));
    }
  }
  return out;
}

std::string salt_of(const std::string& cache_salt, const std::string& tenant) {
  if (!cache_salt.empty()) return "salt " + cache_salt;
  return tenant.empty() ? std::string() : "key " + tenant;
}

std::vector<Submission> submissions(const Prepared& prepared, uint32_t max_context) {
  const GenerationRequest& request = prepared.request;
  std::vector<Submission> out;
  for (const std::vector<TokenId>& prompt : prepared.prompts) {
    for (uint32_t choice = 0; choice < request.n; ++choice) {
      Submission submission;
      submission.prompt = prompt;
      submission.sampling = request.sampling;
      submission.sampling.choice = choice;
      uint32_t& most = submission.sampling.max_tokens;
      if (!request.has_max_tokens && most > 0) {
        most = std::max(most, request.sampling.min_tokens);
        most = std::min<uint32_t>(most, max_context - static_cast<uint32_t>(prompt.size()));
      }
      submission.has_seed = request.has_seed;
      submission.salt = request.cache_salt;
      submission.tenant = request.tenant;
      submission.priority = request.priority;
      out.push_back(std::move(submission));
    }
  }
  return out;
}

Parsed<std::string> tokenize(std::string_view body, const ApiModel& model,
                             const model::Tokenizer& tokenizer, const model::ChatFormat& format) {
  auto request = parse_tokenize(body, model);
  if (!request) return tl::unexpected(std::move(request.error()));
  std::vector<TokenId> ids;
  if (request->form == TokenizeRequest::Form::kMessages) {
    auto rendered = format.render(tokenizer, request->messages, request->tools, request->chat);
    if (!rendered) return tl::unexpected(from_render(rendered.error()));
    ids = std::move(*rendered);
  } else {
    ids = tokenizer.encode(request->text);
  }
  std::vector<std::string> pieces;
  if (request->strings) {
    for (const TokenId id : ids) pieces.emplace_back(tokenizer.bytes(id, /*specials=*/true));
  }
  return tokens_json(request->form, request->strings, ids, pieces, model.max_context);
}

Parsed<std::string> detokenize(std::string_view body, const ApiModel& model,
                               const model::Tokenizer& tokenizer) {
  auto ids = parse_detokenize(body, model);
  if (!ids) return tl::unexpected(std::move(ids.error()));
  return detokenized_json(tokenizer.decode(*ids, /*specials=*/true));
}

}  // namespace coordinator
