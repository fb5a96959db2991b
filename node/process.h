// The main() of every role: command line, cluster file, log, transport, then one actor until told
// to stop. Exit codes: 0 stopped in order, 2 usage, 3 configuration or refused by the coordinator,
// 4 address taken, 5 model cannot be loaded, 6 the arithmetic of
// this process cannot be trusted (a new one loads the weights afresh), 70 internal.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "base/cluster_config.h"
#include "base/result.h"
#include "node/membership_client.h"

namespace node {

inline constexpr int kExitUsage = 2, kExitConfig = 3, kExitAddress = 4, kExitModel = 5,
                     kExitArithmetic = 6, kExitInternal = 70;

// The arithmetic of this process cannot be trusted: says why in the log and ends the process, whose
// work then moves as after a crash. A new process loads the weights afresh.
void quarantine(actor::Context& ctx, const std::string& why);

struct ProcessInfo {
  const base::ClusterConfig& config;
  Identity
      identity;  // role, name, coordinator, version and pid are set; digests are the role's to fill
  actor::Context& context;  // of the host: its injector, endpoint and log
};
// What the cluster file tells this node to get wrong, for tests.
std::vector<base::NodeFault> faults_of(const ProcessInfo& info);

using MakeActor = std::function<base::Result<std::unique_ptr<actor::Actor>>(ProcessInfo&)>;
// Called on SIGTERM or SIGINT; default: stop with code 0. A second signal always stops.
using OnTerminate = std::function<void(actor::Context&, actor::Actor&)>;

// argv: --config FILE --name NAME [--check-config] [--print-config] [--version] [--help].
int run_process(int argc, char** argv, proto::Role role, const MakeActor& make,
                const OnTerminate& on_terminate = {});

}  // namespace node
