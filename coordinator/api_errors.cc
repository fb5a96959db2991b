#include "coordinator/api_types.h"

namespace coordinator {

ApiError invalid(std::string param, std::string message, std::string code) {
  ApiError error;
  error.code = std::move(code);
  error.param = std::move(param);
  error.message = std::move(message);
  return error;
}

ApiError not_found(std::string message, std::string code) {
  ApiError error;
  error.status = 404;
  error.type = "not_found_error";
  error.code = std::move(code);
  error.message = std::move(message);
  return error;
}

ApiError unavailable(std::string message) {
  ApiError error;
  error.status = 503;
  error.type = "unavailable_error";
  error.code = "overloaded";
  error.message = std::move(message);
  error.retry_after_s = 1;
  return error;
}

ApiError from_gateway(const base::Error& error) {
  using base::Code;
  ApiError out;
  out.message = error.what;
  out.code = std::string(base::name(error.code));
  switch (error.code) {
    case Code::kExhausted:
      out.status = 429;
      out.type = "rate_limit_error";
      out.code = "rate_limit_exceeded";
      out.retry_after_s = 1;
      return out;
    case Code::kUnavailable:
    case Code::kPeerGone:
    case Code::kCancelled:
      return unavailable(error.what);
    case Code::kContextLength:
      out.code = "context_length_exceeded";
      out.param = "messages";
      return out;
    case Code::kInvalidArgument:
    case Code::kUnsupported:
    case Code::kTooLarge:
      return out;
    case Code::kDeadline:
      out.status = 408;
      return out;
    case Code::kNotFound:
      return not_found(error.what, out.code);
    default:
      out.status = 500;
      out.type = "server_error";
      return out;
  }
}

}  // namespace coordinator
