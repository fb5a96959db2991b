#include "cluster/paths.h"

#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace cluster {

namespace fs = std::filesystem;

namespace {

std::string self() {
  std::error_code failed;
  const fs::path path = fs::read_symlink("/proc/self/exe", failed);
  return failed ? std::string() : path.string();
}

// What /proc/PID/stat says after the process's name, which may hold anything; empty: no such
// process.
std::string stat_after_name(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(in, line);
  const size_t end = line.rfind(')');
  return end != std::string::npos && line.size() > end + 2 ? line.substr(end + 2) : "";
}

// When the process began, in clock ticks since boot. With the id it names a process for good: ids
// are used again, after a reboot quickly.
uint64_t begun_at(pid_t pid) {
  std::istringstream fields(stat_after_name(pid));
  std::string skipped;
  for (int i = 3; i < 22; ++i) fields >> skipped;  // proc(5): starttime is the 22nd field
  uint64_t ticks = 0;
  fields >> ticks;
  return ticks;
}

}  // namespace

std::string bin_folder() { return fs::path(self()).parent_path().string(); }

std::string root_folder() {
  const fs::path root = fs::path(self()).parent_path().parent_path().parent_path();
  std::error_code failed;
  if (fs::exists(root / "cluster" / "local.toml", failed)) return root.string();
  return fs::current_path().string();
}

std::string default_config() { return root_folder() + "/cluster/local.toml"; }

base::Result<LocalCluster> LocalCluster::open(const std::string& config_path) {
  LocalCluster cluster;
  cluster.config = TRY(base::ClusterConfig::load(config_path));
  cluster.config_path = fs::absolute(config_path).string();
  const fs::path model = cluster.config.model;
  const std::string here = fs::current_path().string(), root = root_folder();
  const bool in_root = !fs::exists(here / model) && fs::exists(root / model);
  cluster.run_folder = in_root ? root : here;
  cluster.state_folder = root + "/.serval/" + cluster.config.name;
  std::error_code failed;
  fs::create_directories(cluster.state_folder + "/log", failed);
  if (failed) {
    return base::fail(base::Code::kIo, "cannot make {}: {}", cluster.state_folder,
                      failed.message());
  }
  return cluster;
}

base::Status LocalCluster::check_model() const {
  const fs::path model = fs::path(run_folder) / config.model;
  if (fs::exists(model / "config.json")) return {};
  return base::fail(base::Code::kNotFound,
                    "no model in {}: it should be a Hugging Face style folder with config.json "
                    "([cluster] model in {})",
                    model.string(), config_path);
}

pid_t LocalCluster::launcher() const {
  std::ifstream in(state_folder + "/launcher.pid");
  pid_t pid = 0;
  uint64_t begun = 0;
  in >> pid >> begun;
  return in && alive(pid) && begun_at(pid) == begun ? pid : 0;
}

base::Status LocalCluster::write_launcher(pid_t pid) const {
  std::ofstream out(state_folder + "/launcher.pid");
  out << pid << ' ' << begun_at(pid) << '\n';
  out.flush();
  if (!out)
    return base::fail(base::Code::kIo, "cannot write {}/launcher.pid: is the disk full?",
                      state_folder);
  return {};
}

std::map<std::string, pid_t> LocalCluster::nodes() const {
  std::map<std::string, pid_t> nodes;
  std::ifstream in(state_folder + "/nodes");
  std::string name;
  pid_t pid = 0;
  while (in >> name >> pid) nodes[name] = pid;
  return nodes;
}

void LocalCluster::write_nodes(const std::map<std::string, pid_t>& nodes) const {
  const std::string path = state_folder + "/nodes", fresh = path + ".new";
  {
    std::ofstream out(fresh);
    for (const auto& [name, pid] : nodes) out << name << ' ' << pid << '\n';
  }
  std::error_code ignored;
  fs::rename(fresh, path, ignored);
}

base::Status LocalCluster::write_scale(uint32_t ranks) const {
  const std::string path = state_folder + "/scale", fresh = path + ".new";
  std::ofstream out(fresh);
  out << ranks << '\n';
  out.close();
  std::error_code failed;
  if (out) fs::rename(fresh, path, failed);
  if (!out || failed)
    return base::fail(base::Code::kIo, "cannot write {}: is the disk full?", path);
  return {};
}

std::optional<uint32_t> LocalCluster::take_scale() const {
  const std::string path = state_folder + "/scale";
  std::ifstream in(path);
  uint32_t ranks = 0;
  if (!(in >> ranks)) return std::nullopt;
  std::error_code ignored;
  fs::remove(path, ignored);
  return ranks;
}

void LocalCluster::forget() const {
  std::error_code ignored;
  fs::remove(state_folder + "/scale", ignored);
  fs::remove(state_folder + "/nodes", ignored);
  fs::remove(state_folder + "/launcher.pid", ignored);
}

bool alive(pid_t pid) {
  if (pid <= 0 || ::kill(pid, 0) != 0) return false;
  const std::string stat = stat_after_name(pid);
  return !stat.empty() && stat.front() != 'Z';
}

}  // namespace cluster
