#include "coordinator/http_reply.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "coordinator/api_json.h"

namespace coordinator {

namespace {

std::string_view reason_of(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Payload Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 503:
      return "Service Unavailable";
    default:
      return "Internal Server Error";
  }
}

std::vector<std::string> reasons_not_ready(const ClusterStatus* status) {
  if (!status) return {"the coordinator does not answer"};
  std::vector<std::string> reasons;
  if (status->draining) reasons.emplace_back("draining");
  reasons.insert(reasons.end(), status->missing.begin(), status->missing.end());
  if (reasons.empty() && !status->ready) reasons.emplace_back("not ready");
  return reasons;
}

std::string common_headers(int status, const HeaderOptions& options) {
  return fmt::format(
      "HTTP/{} {} {}\r\nServer: serval\r\nx-request-id: {}\r\n"
      "Access-Control-Allow-Origin: *\r\nConnection: {}\r\n",
      options.http11 ? "1.1" : "1.0", status, reason_of(status), options.request_id,
      options.keep_alive ? "keep-alive" : "close");
}

}  // namespace

Reply refusal(const ApiError& error) {
  Reply reply;
  reply.status = error.status;
  reply.body = error_json(error);
  reply.retry_after_s = error.retry_after_s;
  reply.should_retry = error.status != 500;
  return reply;
}

Reply preflight_reply(std::string_view wanted_headers) {
  const auto fits = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == ',' ||
           c == ' ';
  };
  Reply reply;
  reply.status = 204;
  const bool echo = !wanted_headers.empty() && wanted_headers.size() <= 1024 &&
                    std::all_of(wanted_headers.begin(), wanted_headers.end(), fits);
  reply.preflight = echo ? std::string(wanted_headers) : "Content-Type, Authorization";
  return reply;
}

Reply fixed_reply(const Routed& routed, const ApiModel& model, const std::string& version) {
  Reply reply;
  switch (routed.route) {
    case Route::kModels:
      reply.body = models_json(model);
      return reply;
    case Route::kModel:
      if (routed.argument == model.name) {
        reply.body = model_json(model);
        return reply;
      }
      return refusal(not_found(fmt::format("The model '{}' does not exist", routed.argument),
                               "model_not_found"));
    case Route::kVersion:
      reply.body = version_json(version);
      return reply;
    default:
      reply = refusal(routed.error);
      reply.allow = routed.allow;
      return reply;
  }
}

Reply cluster_reply(Route route, const ClusterStatus* status, const HttpMetrics& metrics,
                    const std::string& version) {
  Reply reply;
  const std::vector<std::string> reasons = reasons_not_ready(status);
  switch (route) {
    case Route::kMetrics:
      reply.body = metrics_text(metrics, status, version);
      reply.type = "text/plain; version=0.0.4; charset=utf-8";
      return reply;
    case Route::kCluster:
      if (!status) return refusal(unavailable("The coordinator does not answer"));
      reply.body = cluster_json(*status);
      return reply;
    case Route::kLive:
      reply.status = status ? 200 : 503;
      reply.body = health_json(status ? "live" : "stuck", {});
      return reply;
    default:
      reply.status = reasons.empty() ? 200 : 503;
      reply.body = health_json(reasons.empty() ? "ready" : "not_ready", reasons);
      reply.retry_after_s = reasons.empty() ? 0 : 1;
      return reply;
  }
}

std::string header_text(const Reply& reply, const HeaderOptions& options) {
  std::string out = common_headers(reply.status, options);
  auto add = std::back_inserter(out);
  if (reply.status != 204) {
    fmt::format_to(add, "Content-Type: {}\r\nContent-Length: {}\r\n", reply.type,
                   reply.body.size());
  } else {
    fmt::format_to(add,
                   "Access-Control-Allow-Methods: GET, HEAD, POST, OPTIONS\r\n"
                   "Access-Control-Allow-Headers: {}\r\nAccess-Control-Max-Age: 86400\r\n",
                   reply.preflight);
  }
  if (!reply.allow.empty()) fmt::format_to(add, "Allow: {}\r\n", reply.allow);
  if (reply.retry_after_s > 0) fmt::format_to(add, "Retry-After: {}\r\n", reply.retry_after_s);
  if (!reply.should_retry) out += "x-should-retry: false\r\n";
  return out + "\r\n";
}

std::string stream_header_text(const HeaderOptions& options) {
  std::string out = common_headers(200, options);
  out +=
      "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
      "X-Accel-Buffering: no\r\n";
  if (options.http11) out += "Transfer-Encoding: chunked\r\n";
  return out + "\r\n";
}

}  // namespace coordinator
