#include "actor/endpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <charconv>

#include "base/hash.h"

namespace actor {
namespace {

constexpr std::string_view kTcp = "tcp://";
constexpr std::string_view kIpc = "ipc://";

// The first bytes of a small file; "" when it is not there (some containers have no machine id).
std::string head_of(const char* path) {
  std::array<char, 128> buffer{};
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  const ssize_t got = ::read(fd, buffer.data(), buffer.size());
  ::close(fd);
  return got > 0 ? std::string(buffer.data(), static_cast<size_t>(got)) : std::string{};
}

std::string target_of_link(const char* path) {
  std::array<char, 128> buffer{};
  const ssize_t got = ::readlink(path, buffer.data(), buffer.size());
  return got > 0 ? std::string(buffer.data(), static_cast<size_t>(got)) : std::string{};
}

// "tcp://HOST:PORT" with a host and a port from 1 to 65535. The library finds the rest out too late
// to tell, in its own thread.
bool is_tcp_address(std::string_view address) {
  if (!address.starts_with(kTcp)) return false;
  const size_t colon = address.rfind(':');
  const std::string_view port = address.substr(colon + 1);
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  return colon > kTcp.size() && error == std::errc{} && end == port.data() + port.size() &&
         number >= 1 && number <= 65535;
}

}  // namespace

std::string host_id() {
  const std::string facts = head_of("/etc/machine-id") + "\n" +
                            head_of("/proc/sys/kernel/random/boot_id") + "\n" +
                            target_of_link("/proc/self/ns/mnt");
  return base::hash128(facts).hex();
}

base::Result<std::string> reachable(const std::string& endpoint, const std::string& own_host_id) {
  const size_t space = endpoint.find(' ');
  const std::string tcp = endpoint.substr(0, space);
  if (!is_tcp_address(tcp)) {
    return base::fail(base::Code::kInvalidArgument, "endpoint '{}' does not begin with {}HOST:PORT",
                      endpoint, kTcp);
  }
  if (space == std::string::npos) return tcp;
  const std::string second = endpoint.substr(space + 1);
  const size_t at = second.rfind('@');
  if (!second.starts_with(kIpc) || at == std::string::npos || at == kIpc.size()) {
    return base::fail(base::Code::kInvalidArgument, "'{}' in an endpoint is not {}PATH@HOSTID",
                      second, kIpc);
  }
  return second.substr(at + 1) == own_host_id ? second.substr(0, at) : tcp;
}

std::string advertised(const std::string& advertise, const std::string& bound) {
  if (advertise.empty()) return bound;
  if (!advertise.ends_with(":*")) return advertise;
  return advertise.substr(0, advertise.size() - 1) + bound.substr(bound.rfind(':') + 1);
}

bool is_ipv6(const std::string& address) { return address.find('[') != std::string::npos; }

}  // namespace actor
