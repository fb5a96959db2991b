// Endpoints: "tcp://10.0.0.1:7001", optionally followed by " ipc:///run/serval/a.sock@HOSTID", the
// second way in for those whose host id is HOSTID.
#pragma once
#include <string>

#include "base/result.h"

namespace actor {

// Names this host, for as long as it runs, among hosts whose file paths are different: hash of
// machine id, boot id and mount namespace (two containers of one host do not share paths).
std::string host_id();

// The one address of an endpoint to connect to from the host of that id.
base::Result<std::string> reachable(const std::string& endpoint, const std::string& own_host_id);

// What to tell others: `advertise`, its port "*" replaced by the bound one; "" is the bound
// endpoint itself.
std::string advertised(const std::string& advertise, const std::string& bound);

bool is_ipv6(const std::string& address);

}  // namespace actor
