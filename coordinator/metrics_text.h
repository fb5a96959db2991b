// /metrics in Prometheus text format: what the front end counted and what the cluster reported.
// Names are serval_…, in base units; labels come from fixed sets, never from clients.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "coordinator/gateway.h"

namespace coordinator {

// Kept by the front end's thread.
struct HttpMetrics {
  std::map<std::pair<std::string_view, int>, uint64_t> requests;  // by route and status
  // Of generations that were admitted, by how they ended: stop, length, abort (client gone or too
  // slow), error.
  std::map<std::string_view, uint64_t> finished;
  uint64_t disconnects = 0;   // clients that left before their answer was complete
  uint64_t slow_readers = 0;  // connections closed because the client did not read
  uint64_t timeouts = 0;      // requests that did not arrive in time
  uint64_t refused_connections = 0;
  uint32_t connections = 0, generations = 0;  // now
};

std::string metrics_text(const HttpMetrics& http, const ClusterStatus* cluster,
                         const std::string& version);

}  // namespace coordinator
