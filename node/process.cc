#include "node/process.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "actor/zmq_host.h"

namespace node {

namespace {

const char* role_name(proto::Role role) {
  switch (role) {
    case proto::Role::kCoordinator:
      return "coordinator";
    case proto::Role::kPrefill:
      return "prefill_node";
    case proto::Role::kDecode:
      return "decode_node";
    case proto::Role::kKvstore:
      return "kvstore";
    case proto::Role::kNone:
      break;
  }
  return "node";
}

uint16_t actor_of(proto::Role role) { return static_cast<uint16_t>(role); }

struct Arguments {
  std::string config = "cluster/local.toml";
  std::string name;
  bool check = false, print = false;
};

// The exit code when the process is to end here.
std::optional<int> parse(int argc, char** argv, proto::Role role, Arguments& arguments) {
  CLI::App app{fmt::format("{}: one process of a Serval cluster. Usually started by `serval up`.",
                           role_name(role))};
  app.set_version_flag("--version", std::string("serval ") + SERVAL_VERSION);
  app.add_option("--config", arguments.config, "the cluster file")->capture_default_str();
  app.add_option("--name", arguments.name, "this node's name in the cluster, such as decode-0");
  app.add_flag("--check-config", arguments.check, "check the cluster file and exit (0 or 3)");
  app.add_flag("--print-config", arguments.print,
               "print the effective configuration with the origin of each value and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  if (arguments.name.empty()) arguments.name = role_name(role);
  return std::nullopt;
}

base::Log make_log(const base::ClusterConfig& config, const std::string& name) {
  const auto format = config.log_format == "json" ? base::LogFormat::kJson : base::LogFormat::kText;
  base::Level level = base::Level::kInfo;
  if (config.log_level == "debug") level = base::Level::kDebug;
  if (config.log_level == "warn") level = base::Level::kWarn;
  if (config.log_level == "error") level = base::Level::kError;
  return base::Log::to_stderr(name, format, level);
}

actor::ZmqOptions transport(const base::ClusterConfig& config, proto::Role role,
                            const std::string& name) {
  actor::ZmqOptions options;
  options.bind = "tcp://" + config.bind + ":*";
  options.actor_id = actor_of(role);
  options.protocol = proto::kProtocolMax;
  options.compute_threads = config.threads;
  options.max_message_bytes = config.max_message_bytes;
  options.heartbeat = std::chrono::milliseconds(config.heartbeat_ms);
  options.log = make_log(config, name);
  if (config.same_host == "ipc") {
    options.ipc_path = fmt::format("/tmp/serval-{}-{}-{}.sock", config.name, name, ::getpid());
  }
  if (role == proto::Role::kCoordinator) {
    options.node = proto::kCoordinatorNode;
    options.bind = "tcp://" + config.coordinator;
  }
  return options;
}

int complain(const base::Error& error, int code) {
  fmt::print(stderr, "serval: {}\n", error.what);
  return code;
}

}  // namespace

std::vector<base::NodeFault> faults_of(const ProcessInfo& info) {
  std::vector<base::NodeFault> own;
  for (const base::NodeFault& fault : info.config.faults) {
    if (fault.node == info.identity.name) own.push_back(fault);
  }
  return own;
}

void quarantine(actor::Context& ctx, const std::string& why) {
  ctx.log(base::Level::kError, "node.quarantined", {{"why", why}});
  ctx.stop(kExitArithmetic);
}

int run_process(int argc, char** argv, proto::Role role, const MakeActor& make,
                const OnTerminate& on_terminate) {
  Arguments arguments;
  if (auto exit = parse(argc, argv, role, arguments)) return *exit;
  if (arguments.print) {
    auto text = base::ClusterConfig::describe(arguments.config);
    if (!text) return complain(text.error(), kExitConfig);
    fmt::print("{}", *text);
    return 0;
  }
  auto config = base::ClusterConfig::load(arguments.config);
  if (!config) return complain(config.error(), kExitConfig);
  if (arguments.check) {
    fmt::print("{}: ok\n", arguments.config);
    return 0;
  }
  auto host = actor::ZmqHost::create(transport(*config, role, arguments.name));
  if (!host) return complain(host.error(), kExitAddress);

  Identity identity;
  identity.role = role;
  identity.name = arguments.name;
  identity.coordinator = "tcp://" + config->coordinator;
  identity.version = SERVAL_VERSION;
  identity.pid = static_cast<uint32_t>(::getpid());
  ProcessInfo info{*config, std::move(identity), (*host)->context()};
  auto actor = make(info);
  if (!actor) {
    const base::Code code = actor.error().code;
    const bool address = code == base::Code::kUnavailable;
    return complain(actor.error(), address ? kExitAddress : kExitModel);
  }
  std::function<void(actor::Context&)> terminate;
  if (on_terminate) {
    terminate = [&](actor::Context& ctx) { on_terminate(ctx, **actor); };
  }
  return (*host)->run(**actor, /*handle_signals=*/true, terminate);
}

}  // namespace node
