#include "coordinator/api_fields.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

namespace coordinator {

using nlohmann::json;

namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxStops = 16, kMaxStopBytes = 256, kMaxBiases = 1024, kMaxStopTokens = 256;

struct TooDeep {};

}  // namespace

Parsed<std::unique_ptr<json>> parse_body(std::string_view body) {
  std::string last_key;  // of the body's own fields: where a syntax error most likely is
  auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxJsonDepth) throw TooDeep{};
    if (event == json::parse_event_t::key && depth == 1) last_key = value.get<std::string>();
    return true;
  };
  try {
    auto parsed = std::make_unique<json>(json::parse(body.begin(), body.end(), watch));
    if (!parsed->is_object()) {
      return tl::unexpected(invalid("", "The body must be a JSON object", "invalid_json"));
    }
    return parsed;
  } catch (const TooDeep&) {
    return tl::unexpected(
        invalid(last_key, fmt::format("The body is nested deeper than {} levels", kMaxJsonDepth)));
  } catch (const json::out_of_range&) {
    return tl::unexpected(
        invalid(last_key, fmt::format("'{}' holds a number that is too large", last_key)));
  } catch (const json::parse_error& error) {
    return tl::unexpected(
        invalid(last_key, fmt::format("The body is not valid JSON (at byte {})", error.byte),
                "invalid_json"));
  }
}

std::string Fields::path(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

void Fields::fail(std::string_view name, std::string message, std::string code) {
  if (!error_) error_ = invalid(path(name), std::move(message), std::move(code));
}

const json* Fields::any(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> as_integer(const json& value, int64_t least, int64_t most) {
  int64_t result = 0;
  if (value.is_number_unsigned()) {
    const auto wide = value.get<uint64_t>();
    if (wide > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    result = static_cast<int64_t>(wide);
  } else if (value.is_number_integer()) {
    result = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const auto real = value.get<double>();
    if (std::abs(real) > 9007199254740992.0 || real != std::floor(real)) return std::nullopt;
    result = static_cast<int64_t>(real);
  } else {
    return std::nullopt;
  }
  if (result < least || result > most) return std::nullopt;
  return result;
}

std::optional<int64_t> Fields::integer(const char* name, int64_t least, int64_t most) {
  const json* value = any(name);
  if (!value || error_) return std::nullopt;
  auto result = as_integer(*value, least, most);
  if (!result) {
    fail(name, fmt::format("'{}' must be an integer from {} to {}", path(name), least, most));
  }
  return result;
}

std::optional<double> Fields::number(const char* name, Range range) {
  const json* value = any(name);
  if (!value || error_) return std::nullopt;
  const double real = value->is_number() ? value->get<double>() : std::nan("");
  if (!(real >= range.least && real <= range.most) || (range.above_least && real == range.least)) {
    fail(name, fmt::format("'{}' must be a number {} {} and at most {}", path(name),
                           range.above_least ? "above" : "from", range.least, range.most));
    return std::nullopt;
  }
  return real;
}

std::optional<bool> Fields::boolean(const char* name) {
  const json* value = any(name);
  if (!value || error_) return std::nullopt;
  if (!value->is_boolean()) {
    fail(name, fmt::format("'{}' must be true or false", path(name)));
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::string> Fields::text(const char* name, size_t longest) {
  const json* value = any(name);
  if (!value || error_) return std::nullopt;
  if (!value->is_string()) {
    fail(name, fmt::format("'{}' must be a string", path(name)));
    return std::nullopt;
  }
  const auto& string = value->get_ref<const std::string&>();
  if (string.size() > longest) {
    fail(name, fmt::format("'{}' must have at most {} bytes", path(name), longest));
    return std::nullopt;
  }
  return string;
}

std::optional<uint64_t> Fields::seed(const char* name) {
  const json* value = any(name);
  if (!value || error_) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  const auto whole =
      as_integer(*value, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  if (whole) return static_cast<uint64_t>(*whole);
  fail(name, fmt::format("'{}' must be an integer of 64 bits", path(name)));
  return std::nullopt;
}

const json* Fields::object(const char* name) {
  const json* value = any(name);
  if (!value || error_) return nullptr;
  if (value->is_object()) return value;
  fail(name, fmt::format("'{}' must be an object", path(name)));
  return nullptr;
}

const json* Fields::array(const char* name, size_t most) {
  const json* value = any(name);
  if (!value || error_) return nullptr;
  if (value->is_array() && value->size() <= most) return value;
  fail(name, fmt::format("'{}' must be an array of at most {} entries", path(name), most));
  return nullptr;
}

namespace {

void parse_stop(Fields& fields, GenerationRequest& request) {
  const json* stop = fields.any("stop");
  if (!stop || fields.failed()) return;
  const json list = stop->is_array() ? *stop : json::array({*stop});
  if (list.size() > kMaxStops) {
    return fields.fail("stop", fmt::format("'stop' may have at most {} strings", kMaxStops));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_string() || list[i].get_ref<const std::string&>().empty() ||
        list[i].get_ref<const std::string&>().size() > kMaxStopBytes) {
      return fields.fail(stop->is_array() ? fmt::format("stop[{}]", i) : "stop",
                         fmt::format("'stop' must be a string of 1 to {} bytes, or up to {} such",
                                     kMaxStopBytes, kMaxStops));
    }
    request.text.stop.push_back(list[i].get<std::string>());
  }
}

void parse_stop_tokens(Fields& fields, const ApiModel& model, GenerationRequest& request) {
  const json* list = fields.array("stop_token_ids", kMaxStopTokens);
  if (!list) return;
  for (size_t i = 0; i < list->size(); ++i) {
    const auto id = as_integer((*list)[i], 0, int64_t{model.vocab} - 1);
    if (!id) {
      return fields.fail(fmt::format("stop_token_ids[{}]", i),
                         fmt::format("A stop token id must be from 0 to {}", model.vocab - 1));
    }
    request.sampling.stop_tokens.push_back(static_cast<TokenId>(*id));
  }
}

void parse_logit_bias(Fields& fields, const ApiModel& model, GenerationRequest& request) {
  const json* map = fields.object("logit_bias");
  if (!map) return;
  if (map->size() > kMaxBiases) {
    return fields.fail("logit_bias",
                       fmt::format("'logit_bias' may have at most {} entries", kMaxBiases));
  }
  for (const auto& [key, value] : map->items()) {
    uint32_t id = 0;
    const char* end = key.data() + key.size();
    const auto [stopped, problem] = std::from_chars(key.data(), end, id);
    const bool number = value.is_number() && std::abs(value.get<double>()) <= 100.0;
    if (problem != std::errc{} || stopped != end || id >= model.vocab || !number) {
      return fields.fail("logit_bias",
                         fmt::format("'logit_bias' maps token ids below {} to numbers from -100 "
                                     "to 100",
                                     model.vocab));
    }
    request.sampling.logit_bias.emplace_back(id, value.get<float>());
  }
}

void parse_stream(Fields& fields, GenerationRequest& request) {
  request.stream = fields.boolean("stream").value_or(false);
  const json* options = fields.object("stream_options");
  if (!options) return;
  if (!request.stream) {
    return fields.fail("stream_options", "'stream_options' is only allowed with \"stream\": true");
  }
  std::optional<ApiError> error;
  Fields inner(*options, "stream_options", error);
  request.include_usage = inner.boolean("include_usage").value_or(false);
  request.continuous_usage =
      inner.boolean("continuous_usage_stats").value_or(false) && request.include_usage;
  if (error) fields.fail(error->param, error->message, error->code);
}

// The values as float keep to the ranges that base::Sampling states.
float below_one(double value) {
  return std::min(static_cast<float>(value), std::nextafter(1.0f, 0.0f));
}

void parse_distribution(Fields& fields, const ApiModel& model, base::Sampling& sampling) {
  sampling.temperature =
      static_cast<float>(fields.number("temperature", {0, 2}).value_or(model.temperature));
  sampling.top_p = static_cast<float>(fields.number("top_p", {0, 1, true}).value_or(model.top_p));
  if (sampling.top_p <= 0.0f) sampling.top_p = std::numeric_limits<float>::min();
  const auto top_k = fields.integer("top_k", -1, kMaxInt32);  // -1 is vLLM's "all"
  sampling.top_k = top_k ? static_cast<uint32_t>(std::max<int64_t>(*top_k, 0)) : model.top_k;
  sampling.min_p = below_one(fields.number("min_p", {0, 1}).value_or(0));
  sampling.frequency_penalty =
      static_cast<float>(fields.number("frequency_penalty", {-2, 2}).value_or(0));
  sampling.presence_penalty =
      static_cast<float>(fields.number("presence_penalty", {-2, 2}).value_or(0));
  sampling.repetition_penalty = std::max(
      static_cast<float>(
          fields.number("repetition_penalty", {0, 100, true}).value_or(model.repetition_penalty)),
      1e-6f);
}

}  // namespace

void parse_sampling(Fields& fields, const ApiModel& model, GenerationRequest& request) {
  base::Sampling& sampling = request.sampling;
  parse_distribution(fields, model, sampling);
  if (const auto seed = fields.seed("seed")) {
    sampling.seed = *seed;
    request.has_seed = true;
  }
  request.n = static_cast<uint32_t>(fields.integer("n", 1, 16).value_or(1));
  const bool chat = request.dialect == Dialect::kChat;
  auto most = fields.integer("max_tokens", 1, kMaxInt32);
  if (chat) {
    if (const auto newer = fields.integer("max_completion_tokens", 1, kMaxInt32)) most = newer;
  }
  request.has_max_tokens = most.has_value();
  sampling.max_tokens =
      most ? static_cast<uint32_t>(*most) : (chat ? model.max_new_tokens : uint32_t{16});
  sampling.min_tokens =
      static_cast<uint32_t>(fields.integer("min_tokens", 0, kMaxInt32).value_or(0));
  if (most && sampling.min_tokens > sampling.max_tokens) {
    fields.fail("min_tokens", "'min_tokens' must not exceed the maximum of tokens");
  }
  sampling.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  parse_stop(fields, request);
  parse_stop_tokens(fields, model, request);
  parse_logit_bias(fields, model, request);
  parse_stream(fields, request);
  request.text.include_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  request.text.skip_special = fields.boolean("skip_special_tokens").value_or(true);
  request.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  request.cache_salt = fields.text("cache_salt", 256).value_or("");
  request.priority =
      static_cast<int32_t>(fields.integer("priority", -kMaxInt32, kMaxInt32).value_or(0));
}

base::Status load_generation_defaults(const std::string& folder, ApiModel& model) {
  std::ifstream file(folder + "/generation_config.json");
  if (!file) return {};
  const json config = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return base::fail(base::Code::kCorrupt, "{}/generation_config.json is not a JSON object",
                      folder);
  }
  std::optional<ApiError> error;
  Fields fields(config, "", error);
  const auto narrow = [](std::optional<double> value, float otherwise) {
    return value ? static_cast<float>(*value) : otherwise;
  };
  model.temperature = narrow(fields.number("temperature", {0, 2}), model.temperature);
  model.top_p = narrow(fields.number("top_p", {0, 1, true}), model.top_p);
  model.repetition_penalty =
      narrow(fields.number("repetition_penalty", {0, 100, true}), model.repetition_penalty);
  model.top_k = static_cast<uint32_t>(fields.integer("top_k", 0, kMaxInt32).value_or(model.top_k));
  model.max_new_tokens = static_cast<uint32_t>(
      fields.integer("max_new_tokens", 1, kMaxInt32).value_or(model.max_new_tokens));
  if (error) {
    return base::fail(base::Code::kCorrupt, "{}/generation_config.json: {}", folder,
                      error->message);
  }
  return {};
}

}  // namespace coordinator
