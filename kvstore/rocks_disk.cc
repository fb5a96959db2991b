#include "kvstore/rocks_disk.h"

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/experimental.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/table_properties_collectors.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <optional>
#include <system_error>

namespace kvstore {

namespace {

using rocksdb::Slice;

// Keys: "format" → version; 'b' key → record; 'e' key layer → rows. Numbers big endian, so that
// the layers of a block stand together.
constexpr const char* kFormatKey = "format";
constexpr char kBlock = 'b', kEntry = 'e';
constexpr uint64_t kSmall = 4096;  // values below stay in the tree

void append_big(std::string& to, uint64_t value, unsigned bytes) {
  for (unsigned i = bytes; i-- > 0;) to += static_cast<char>(value >> (8 * i));
}

std::string block_name(const Hash128& key) {
  std::string name(1, kBlock);
  append_big(name, key.high, 8);
  append_big(name, key.low, 8);
  return name;
}

std::string entry_name(const Hash128& key, uint32_t layer) {
  std::string name = block_name(key);
  name[0] = kEntry;
  append_big(name, layer, 4);
  return name;
}

std::optional<Hash128> key_of(const Slice& name) {
  if (name.size() != 17) return std::nullopt;
  Hash128 key;
  for (size_t i = 1; i < 9; ++i) key.high = key.high << 8 | static_cast<uint8_t>(name[i]);
  for (size_t i = 9; i < 17; ++i) key.low = key.low << 8 | static_cast<uint8_t>(name[i]);
  return key;
}

base::ByteView view(const Slice& slice) {
  return {reinterpret_cast<const std::byte*>(slice.data()), slice.size()};
}
Slice slice(base::ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

base::Error error_of(const rocksdb::Status& status) {
  base::Code code = base::Code::kIo;
  if (status.IsNotFound()) code = base::Code::kNotFound;
  if (status.IsCorruption()) code = base::Code::kCorrupt;
  if (status.IsNoSpace()) code = base::Code::kExhausted;
  if (status.IsIncomplete() || status.IsBusy()) code = base::Code::kUnavailable;
  std::string what = status.ToString();
  std::ranges::replace(what, '\n', ' ');
  return {code, std::move(what)};
}

rocksdb::Options rocks_options(const RocksOptions& asked) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.compression = rocksdb::kNoCompression;  // rows of floats do not shrink
  options.enable_blob_files = true;
  options.min_blob_size = kSmall;
  options.blob_file_size = asked.blob_file_bytes;
  // A blob file goes when nothing in it is wanted any more. The oldest half of the files is cleaned
  // as soon as half of their bytes are garbage, and tombstones make the tree notice garbage.
  options.enable_blob_garbage_collection = true;
  options.blob_garbage_collection_age_cutoff = 0.5;
  options.blob_garbage_collection_force_threshold = 0.5;
  options.table_properties_collector_factories.push_back(
      rocksdb::NewCompactOnDeletionCollectorFactory(256, 64, 0.25));
  options.write_buffer_size = asked.memtable_bytes;
  options.max_write_buffer_number = 4;
  options.max_background_jobs = 2;
  options.max_total_wal_size = 4 * asked.memtable_bytes;
  options.max_open_files = 512;
  options.keep_log_file_num = 2;
  options.max_log_file_size = 1u << 20;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.avoid_unnecessary_blocking_io = true;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(8u << 20);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

class RocksDisk final : public DiskTier {
 public:
  explicit RocksDisk(RocksOptions options) : options_(std::move(options)) {}
  ~RocksDisk() override { close(); }

  base::Result<Found> open() override;
  base::Status write(const DiskBatch& batch) override;
  std::vector<base::Result<base::Bytes>> read(const std::vector<DiskRead>& reads) override;
  uint64_t physical_bytes() override;
  void reclaim() override;
  base::Duration cost(uint64_t bytes) override { return base::Duration(bytes); }  // 1 GB/s

 private:
  void close();
  rocksdb::Status open_db();
  base::Status put_aside();
  rocksdb::Status meet_format();
  base::Result<Found> scan();

  const RocksOptions options_;
  std::unique_ptr<rocksdb::DB> db_;
  // Writes refused for damage since the folder was made or put aside. Work in the background finds
  // what opening did not look at, and finds it again after each opening.
  std::atomic<uint32_t> refusals_ = 0;
};

constexpr uint32_t kMostRefusals = 2;

// A file is damaged, short or gone.
bool is_damage(const rocksdb::Status& status) {
  return status.IsCorruption() || status.IsPathNotFound() || status.IsNotFound();
}

void RocksDisk::close() {
  if (db_) rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/true);
  db_.reset();
}

rocksdb::Status RocksDisk::open_db() {
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(rocks_options(options_), options_.folder, &db);
  db_.reset(db);
  return status;
}

base::Result<DiskTier::Found> RocksDisk::open() {
  close();
  std::error_code problem;
  std::filesystem::create_directories(options_.folder, problem);
  if (problem) {
    return base::fail(base::Code::kIo, "the disk tier's folder {} cannot be made: {}",
                      options_.folder, problem.message());
  }
  std::string why;
  if (refusals_ >= kMostRefusals) {
    why = "it refused writes for damage after it was opened again";
    TRY(put_aside());
  }
  rocksdb::Status status = open_db();
  if (status.ok()) status = meet_format();
  if (is_damage(status)) {
    why = error_of(status).what;
    TRY(put_aside());
    status = open_db();
    if (status.ok()) status = meet_format();
  }
  if (!status.ok()) return base::fail(error_of(status));
  Found found = TRY(scan());
  found.quarantined = !why.empty();
  found.why = std::move(why);
  return found;
}

// What can tell a person how it happened stays; the rows themselves would only take the disk.
base::Status RocksDisk::put_aside() {
  namespace fs = std::filesystem;
  close();
  refusals_ = 0;
  const std::string aside = options_.folder + ".damaged";
  std::error_code problem;
  fs::remove_all(aside, problem);
  fs::rename(options_.folder, aside, problem);
  if (problem) {
    return base::fail(base::Code::kIo, "the damaged folder {} cannot be put aside: {}",
                      options_.folder, problem.message());
  }
  for (fs::directory_iterator at(aside, problem), end; !problem && at != end;
       at.increment(problem)) {
    const std::string extension = at->path().extension().string();
    std::error_code ignored;
    if (extension == ".blob" || extension == ".log") fs::remove(at->path(), ignored);
  }
  return {};
}

rocksdb::Status RocksDisk::meet_format() {
  std::string format;
  const rocksdb::Status status = db_->Get({}, kFormatKey, &format);
  if (status.ok() && format == options_.format) return status;
  if (!status.ok() && !status.IsNotFound()) return status;
  rocksdb::WriteBatch batch;
  batch.DeleteRange(std::string(1, kBlock), std::string(1, kEntry + 1));
  batch.Put(kFormatKey, options_.format);
  return db_->Write({}, &batch);
}

base::Result<DiskTier::Found> RocksDisk::scan() {
  Found found;
  rocksdb::WriteBatch damaged;
  rocksdb::ReadOptions options;
  options.readahead_size = 2u << 20;
  options.fill_cache = false;
  const std::string end(1, kBlock + 1);
  const Slice upper(end);
  options.iterate_upper_bound = &upper;
  const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(options));
  for (at->Seek(std::string(1, kBlock)); at->Valid(); at->Next()) {
    const std::optional<Hash128> key = key_of(at->key());
    auto meta = key ? decode_meta(*key, view(at->value()))
                    : base::Result<BlockMeta>(base::fail(base::Code::kCorrupt, "no key"));
    if (meta) {
      found.blocks.push_back(std::move(*meta));
    } else {
      ++found.damaged;
      damaged.Delete(at->key());
      if (key) damaged.DeleteRange(entry_name(*key, 0), entry_name(*key, UINT32_MAX));
    }
  }
  if (!at->status().ok()) {  // what was read so far is good; the rest is a miss
    ++found.damaged;
    found.why = error_of(at->status()).what;
  }
  if (found.damaged > 0) db_->Write({}, &damaged).PermitUncheckedError();
  return found;
}

base::Status RocksDisk::write(const DiskBatch& batch) {
  rocksdb::WriteBatch out;
  for (const BlockName& removal : batch.removals) {
    out.Delete(block_name(removal.key));
    for (uint32_t layer = 0; layer < removal.layers; ++layer)
      out.Delete(entry_name(removal.key, layer));
  }
  for (const BlockWrite& write : batch.writes) {
    for (uint32_t layer = 0; layer < write.rows.size(); ++layer)
      out.Put(entry_name(write.meta.key, layer), slice(write.rows[layer].view()));
    out.Put(block_name(write.meta.key), encode(write.meta));
  }
  // The log is written, not synced: it survives the process, and of a crash of the machine the tail
  // may be missing, which is a miss. no_slowdown: rather told to wait than made to.
  rocksdb::WriteOptions options;
  options.no_slowdown = true;
  const rocksdb::Status status = db_->Write(options, &out);
  if (is_damage(status)) ++refusals_;
  if (!status.ok()) return base::fail(error_of(status));
  return {};
}

std::vector<base::Result<base::Bytes>> RocksDisk::read(const std::vector<DiskRead>& reads) {
  std::vector<std::string> names;
  std::vector<Slice> keys;
  for (const DiskRead& read : reads) names.push_back(entry_name(read.key, read.layer));
  keys.assign(names.begin(), names.end());
  std::vector<rocksdb::PinnableSlice> values(reads.size());
  std::vector<rocksdb::Status> statuses(reads.size());
  const rocksdb::ReadOptions options;  // the cache gets where the rows are, not the rows
  db_->MultiGet(options, db_->DefaultColumnFamily(), keys.size(), keys.data(), values.data(),
                statuses.data());
  std::vector<base::Result<base::Bytes>> out;
  for (size_t i = 0; i < reads.size(); ++i) {
    if (statuses[i].ok()) {
      const base::ByteView bytes = view(values[i]);
      out.push_back(checked(reads[i], base::Bytes(bytes.begin(), bytes.end())));
    } else {
      out.push_back(base::fail(error_of(statuses[i])));
    }
    values[i].Reset();
  }
  return out;
}

uint64_t RocksDisk::physical_bytes() {
  uint64_t sum = 0;
  for (const std::string& name :
       {rocksdb::DB::Properties::kTotalBlobFileSize, rocksdb::DB::Properties::kTotalSstFilesSize,
        rocksdb::DB::Properties::kCurSizeAllMemTables}) {
    uint64_t bytes = 0;
    if (db_->GetIntProperty(name, &bytes)) sum += bytes;
  }
  return sum;
}

void RocksDisk::reclaim() {
  rocksdb::FlushOptions flush;
  flush.wait = false;
  flush.allow_write_stall = false;
  db_->Flush(flush).PermitUncheckedError();
  rocksdb::experimental::SuggestCompactRange(db_.get(), nullptr, nullptr).PermitUncheckedError();
}

}  // namespace

std::unique_ptr<DiskTier> make_rocks_disk(RocksOptions options) {
  return std::make_unique<RocksDisk>(std::move(options));
}

}  // namespace kvstore
