// Fields: one JSON object of a request read field by field, each with its range. The first bad
// value is kept as the error, with its path as `param`; readers after it return nothing, so parsing
// code runs straight through and looks at error() once. A field that is null counts as absent.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "coordinator/api_types.h"

namespace coordinator {

inline constexpr int kMaxJsonDepth = 64;

// A whole body. 400 for what is not JSON, not an object, or nested deeper than kMaxJsonDepth.
Parsed<std::unique_ptr<nlohmann::json>> parse_body(std::string_view body);

struct Range {
  double least, most;
  bool above_least = false;  // least itself is out
};

class Fields {
 public:
  // `object` outlives this; `path` is "" for the body, "tools[2].function" for a part of it.
  // `error` collects; parts of one body share it.
  Fields(const nlohmann::json& object, std::string path, std::optional<ApiError>& error)
      : object_(object), path_(std::move(path)), error_(error) {}

  std::optional<int64_t> integer(const char* name, int64_t least, int64_t most);
  std::optional<double> number(const char* name, Range range);
  std::optional<bool> boolean(const char* name);
  std::optional<std::string> text(const char* name, size_t longest = SIZE_MAX);
  // Any integer of 64 bits, signed or not.
  std::optional<uint64_t> seed(const char* name);
  // Null when absent or null, or when its type is another (which is an error).
  const nlohmann::json* object(const char* name);
  const nlohmann::json* array(const char* name, size_t most);
  const nlohmann::json* any(const char* name) const;  // null when absent or null

  // Keeps the first error.
  void fail(std::string_view name, std::string message, std::string code = "invalid_value");
  std::string path(std::string_view name) const;
  bool failed() const { return error_.has_value(); }

 private:
  const nlohmann::json& object_;
  const std::string path_;
  std::optional<ApiError>& error_;
};

// An integer inside an array or map: a JSON integer, or a real without a fraction, in range.
std::optional<int64_t> as_integer(const nlohmann::json& value, int64_t least, int64_t most);

// The sampling fields that both generation routes share, into request.sampling, text and the flags
// beside them.
void parse_sampling(Fields& fields, const ApiModel& model, GenerationRequest& request);

}  // namespace coordinator
