// The HTTP client of the serval command, on libcurl: one request, or a stream of server-sent
// events.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace cluster {

struct HttpAnswer {
  long status = 0;
  std::string body;
};
// kUnavailable when nobody answers.
base::Result<HttpAnswer> http_get(const std::string& url, long timeout_ms = 2000);
// Posts JSON; each `data:` payload of the answer goes to on_event as it arrives (return false to
// stop). An answer that is no event stream is returned whole.
base::Result<HttpAnswer> http_stream(const std::string& url, const std::string& json,
                                     const std::function<bool(std::string_view)>& on_event);

// Cuts a byte stream into the payloads of its `data:` lines.
class EventParser {
 public:
  template <class F>
  void push(std::string_view bytes, F on_payload) {
    for (char c : bytes) {
      if (c != '\n') {
        if (c != '\r') line_.push_back(c);
        continue;
      }
      if (line_.starts_with("data:")) {
        std::string_view payload = std::string_view(line_).substr(5);
        if (payload.starts_with(' ')) payload.remove_prefix(1);
        on_payload(payload);
      }
      line_.clear();
    }
  }

 private:
  std::string line_;
};

}  // namespace cluster
