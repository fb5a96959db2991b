// Where a cluster of this checkout keeps its things:  <root>/.serval/<cluster
// name>/{launcher.pid,nodes,scale,log/<node>.log}
#pragma once
#include <sys/types.h>

#include <map>
#include <optional>
#include <string>

#include "base/cluster_config.h"
#include "base/result.h"

namespace cluster {

// The checkout this binary was built in (build/bin/serval → two levels up), or the working
// directory.
std::string root_folder();
// The folder of the role executables: beside this one.
std::string bin_folder();
// The cluster file to use when none is named.
std::string default_config();

// A cluster file as this command uses it: paths made absolute, and the folder that the nodes run
// in.
struct LocalCluster {
  base::ClusterConfig config;
  std::string config_path;   // absolute
  std::string run_folder;    // working directory of the nodes: relative model paths hold from here
  std::string state_folder;  // absolute, made on demand

  static base::Result<LocalCluster> open(const std::string& config_path);
  base::Status check_model() const;  // kNotFound when the folder holds none
  std::string url() const { return "http://" + config.http; }
  std::string log_of(const std::string& node) const {
    return state_folder + "/log/" + node + ".log";
  }

  // The launcher's process id, 0 when none runs.
  pid_t launcher() const;
  base::Status write_launcher(pid_t pid) const;
  // node → pid, as last written by the launcher. For cleaning up after a launcher that was killed.
  std::map<std::string, pid_t> nodes() const;
  void write_nodes(const std::map<std::string, pid_t>& nodes) const;
  // Decode ranks that `serval scale` wants; taken once by the launcher.
  base::Status write_scale(uint32_t ranks) const;
  std::optional<uint32_t> take_scale() const;
  void forget() const;  // removes all of them
};

// True when the process exists and is not a zombie.
bool alive(pid_t pid);

}  // namespace cluster
