// A client of raw sockets: sends bytes as given, reads an HTTP answer without knowing better.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace coordinator {

struct RawReply {
  int status = 0;                              // 0: the connection ended before a status line
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // of a chunked answer: the chunks joined
  bool complete = false;                       // ended as its headers announced
};

class RawClient {
 public:
  explicit RawClient(uint16_t port, int receive_buffer = 0);
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;

  bool send(std::string_view bytes);  // false: the server has closed
  void close();
  void reset();  // closes with RST
  RawReply read(bool head = false);
  // Reads until `text` has come; what came so far. Empty headers first.
  std::string read_until(std::string_view text);
  bool closed();  // waits for the server to close

 private:
  bool fill();
  int fd_ = -1;
  std::string in_;
};

std::string get(std::string_view path);
std::string post(std::string_view path, std::string_view body);

}  // namespace coordinator
