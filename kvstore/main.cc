#include "kvstore/kvstore_actor.h"
#include "node/process.h"

namespace {

base::Result<std::unique_ptr<actor::Actor>> make(node::ProcessInfo& info) {
  kvstore::IndexLimits limits;
  limits.bytes = info.config.kvstore_ram_bytes;
  return std::make_unique<kvstore::KvstoreActor>(std::move(info.identity), limits);
}

}  // namespace

int main(int argc, char** argv) {
  return node::run_process(argc, argv, proto::Role::kKvstore, make);
}
