#include <algorithm>
#include <csignal>

#include "kvstore/kvstore_actor.h"
#include "kvstore/rocks_disk.h"
#include "node/process.h"

namespace {

base::Result<std::unique_ptr<actor::Actor>> make(node::ProcessInfo& info) {
  kvstore::IndexLimits limits;
  limits.bytes = info.config.kvstore_ram_bytes;
  limits.disk_bytes = info.config.kvstore_disk_bytes;
  limits.policy = kvstore::find_policy(info.config.kvstore_policy);
  CHECK(limits.policy != nullptr, "no policy {}", info.config.kvstore_policy);
  TRY(kvstore::Arena::try_reserve(limits.bytes));
  std::unique_ptr<kvstore::DiskTier> disk;
  if (!info.config.kvstore_disk.empty()) {
    kvstore::RocksOptions options;
    options.folder = info.config.kvstore_disk + "/" + info.identity.name;
    // The log takes up to four times this beside the blocks.
    options.memtable_bytes =
        std::clamp<uint64_t>(limits.disk_bytes / 64, 1u << 20, options.memtable_bytes);
    disk = kvstore::make_rocks_disk(std::move(options));
  }
  return std::make_unique<kvstore::KvstoreActor>(std::move(info.identity), limits, std::move(disk));
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file at its limit is an error of that write, not our end
  return node::run_process(argc, argv, proto::Role::kKvstore, make);
}
