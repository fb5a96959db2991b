#include "raw_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace coordinator {

RawClient::RawClient(uint16_t port, int receive_buffer) {
  fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
  const timeval limit{20, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (receive_buffer > 0) {
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  }
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) close();
}

bool RawClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

void RawClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void RawClient::reset() {
  const linger now{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close();
}

bool RawClient::fill() {
  char bytes[16384];
  const ssize_t got = ::recv(fd_, bytes, sizeof bytes, 0);
  if (got <= 0) return false;
  in_.append(bytes, static_cast<size_t>(got));
  return true;
}

std::string RawClient::read_until(std::string_view text) {
  while (in_.find(text) == std::string::npos) {
    if (!fill()) break;
  }
  return in_;
}

bool RawClient::closed() {
  while (fill()) {
  }
  return true;
}

RawReply RawClient::read(bool head) {
  RawReply reply;
  size_t end;
  while ((end = in_.find("\r\n\r\n")) == std::string::npos) {
    if (!fill()) return reply;
  }
  reply.status = std::atoi(in_.c_str() + 9);
  size_t at = in_.find("\r\n") + 2;
  while (at < end) {
    const size_t line_end = in_.find("\r\n", at);
    std::string name = in_.substr(at, in_.find(':', at) - at);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const size_t value = at + name.size() + 2;
    reply.headers[name] = in_.substr(value, line_end - value);
    at = line_end + 2;
  }
  in_.erase(0, end + 4);
  if (head || reply.status == 204) {
    reply.complete = true;
  } else if (reply.headers.contains("transfer-encoding")) {
    for (;;) {
      size_t line;
      while ((line = in_.find("\r\n")) == std::string::npos) {
        if (!fill()) return reply;
      }
      const size_t size = std::strtoul(in_.c_str(), nullptr, 16);
      while (in_.size() < line + 2 + size + 2) {
        if (!fill()) return reply;
      }
      reply.body += in_.substr(line + 2, size);
      in_.erase(0, line + 2 + size + 2);
      if (size == 0) break;
    }
    reply.complete = true;
  } else if (reply.headers.contains("content-length")) {
    const size_t size = std::strtoul(reply.headers["content-length"].c_str(), nullptr, 10);
    while (in_.size() < size) {
      if (!fill()) return reply;
    }
    reply.body = in_.substr(0, size);
    in_.erase(0, size);
    reply.complete = true;
  } else {
    closed();
    reply.body = std::move(in_);
    in_.clear();
    reply.complete = true;
  }
  return reply;
}

std::string get(std::string_view path) {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: x\r\n\r\n";
}

std::string post(std::string_view path, std::string_view body) {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         std::string(body);
}

}  // namespace coordinator
