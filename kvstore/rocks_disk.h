// RocksDisk: the DiskTier of a real process, a RocksDB with large values in blob files (BlobDB).
// RocksDB is known to rocks_disk.cc only.
#pragma once
#include <memory>
#include <string>

#include "kvstore/disk_tier.h"

namespace kvstore {

struct RocksOptions {
  std::string folder;  // made when missing; one process at a time
  uint64_t memtable_bytes = 32u << 20;
  uint64_t blob_file_bytes = 64u << 20;
  // Of the records and keys in it. A folder of another format is emptied: a cache is not converted.
  std::string format = "serval kv blocks 1";
};

// Nothing is touched before open(). What cannot be opened because it is damaged is put aside as
// FOLDER.damaged without its bulk, and an empty store takes its place.
std::unique_ptr<DiskTier> make_rocks_disk(RocksOptions options);

}  // namespace kvstore
