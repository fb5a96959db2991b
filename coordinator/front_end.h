// FrontEnd: the HTTP API of the cluster on a thread of its own. It talks to the Gateway through the
// Injector alone.
//
// Bounds and what happens at them: header 16 KiB (431), body max_body_bytes (413), connections
// max_connections (503), bytes of bodies in memory (503), unsent bytes of a stream (the request is
// cancelled, the connection closed), time to send a request (408), time to take an answer (closed).
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "actor/context.h"
#include "base/log.h"
#include "coordinator/api_types.h"
#include "coordinator/gateway.h"
#include "model/chat.h"
#include "model/tokenizer.h"

namespace coordinator {

struct FrontEndOptions {
  std::string listen = "127.0.0.1:8000";  // port 0: the system chooses
  ApiModel model;
  std::string version;
  uint64_t seed = 1;  // of response ids
  uint64_t max_body_bytes = 32u << 20;
  uint32_t max_header_bytes = 16u << 10;
  uint32_t max_connections = 4096;
  uint64_t max_body_bytes_held = 256u << 20;  // of all connections together
  size_t most_pending = 512u << 10;           // bytes of a stream that wait to be written
  size_t inline_bytes = 64u << 10;    // longer bodies are parsed and tokenized on the worker thread
  int send_buffer_bytes = 256 << 10;  // of the kernel, per connection
  base::Duration header_timeout = std::chrono::seconds(10);
  base::Duration body_timeout = std::chrono::seconds(30);  // and 4 s per MiB announced
  base::Duration idle_timeout = std::chrono::seconds(75);
  base::Duration write_timeout = std::chrono::seconds(60);
  base::Duration ping_interval = std::chrono::seconds(15);
  base::Duration status_timeout = std::chrono::seconds(2);
};

class FrontEnd {
 public:
  // Listens and starts the thread; kUnavailable when the address is taken. Everything passed by
  // reference outlives stop().
  static base::Result<std::unique_ptr<FrontEnd>> start(FrontEndOptions options,
                                                       const model::Tokenizer& tokenizer,
                                                       const model::ChatFormat& format,
                                                       Gateway& gateway, actor::Injector& injector,
                                                       base::Log log);
  ~FrontEnd();  // stops

  uint16_t port() const;
  // Answers in progress go on; idle connections are closed and others after their answer.
  void drain();
  uint32_t answering() const;  // requests being answered now
  // Closes every connection and ends the thread; the injector is not used afterwards. TokenSinks
  // still held by the Gateway stay usable until the FrontEnd is destroyed.
  void stop();

  struct Impl;  // http_connection.h

 private:
  explicit FrontEnd(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace coordinator
