// Whole HTTP answers without a socket: what each simple route says, and response headers as text.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "coordinator/gateway.h"
#include "coordinator/http_routes.h"
#include "coordinator/metrics_text.h"

namespace coordinator {

struct Reply {
  int status = 200;
  std::string body;
  std::string_view type = "application/json";
  std::string allow;         // the Allow header of a 405
  std::string preflight;     // of a 204: the headers the browser asks for
  int retry_after_s = 0;     // 0: no such header
  bool should_retry = true;  // false: tells SDKs that trying again is useless
};

Reply refusal(const ApiError& error);
Reply preflight_reply(std::string_view wanted_headers);
// Routes that need nothing but the model: models, model, version, and the refusal of kNone.
Reply fixed_reply(const Routed& routed, const ApiModel& model, const std::string& version);
// health, live, ready, metrics, cluster. `status` is null when the reactor did not answer in time.
Reply cluster_reply(Route route, const ClusterStatus* status, const HttpMetrics& metrics,
                    const std::string& version);

struct HeaderOptions {
  std::string_view request_id;
  bool keep_alive = true;
  bool http11 = true;
};
// Status line and headers, with the empty line.
std::string header_text(const Reply& reply, const HeaderOptions& options);
// Of a stream of server-sent events: chunked for HTTP/1.1, to the end of the connection before.
std::string stream_header_text(const HeaderOptions& options);

}  // namespace coordinator
