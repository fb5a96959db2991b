#include "zmq_fixture.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/rng.h"

namespace zmq_test {

size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

uint16_t port_of(const std::string& endpoint) {
  return static_cast<uint16_t>(std::stoul(endpoint.substr(endpoint.rfind(':') + 1)));
}

int connect_raw(uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0, "connect");
  return fd;
}

std::string dead_endpoint() { return EchoNode().endpoint; }

base::Blob pattern(size_t bytes, uint64_t seed) {
  base::Rng rng(seed);
  base::Bytes out(bytes);
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    const uint64_t draw = rng.next();
    std::memcpy(out.data() + i, &draw, std::min(sizeof draw, bytes - i));
  }
  return base::Blob(std::move(out));
}

bool same(const base::Blob& a, const base::Blob& b) {
  return std::ranges::equal(a.view(), b.view());
}

}  // namespace zmq_test
