// RocksDisk on a real file system: what it holds after a restart, a kill, damaged files, a device
// that refuses.
#include "kvstore/rocks_disk.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/rng.h"
#include "tests/kvstore/blocks.h"

namespace kvstore_test {
namespace {

namespace fs = std::filesystem;
using kvstore::BlockMeta;
using kvstore::DiskBatch;
using kvstore::DiskTier;

base::Bytes rows_of(uint32_t block, uint32_t layer, size_t size) {
  base::Bytes bytes(size);
  base::Rng rng(block * 100 + layer);
  for (size_t i = 0; i < size; i += 8) {
    const uint64_t value = rng.next();
    std::memcpy(bytes.data() + i, &value, std::min<size_t>(8, size - i));
  }
  return bytes;
}

kvstore::BlockWrite write_of(uint32_t block, size_t size) {
  kvstore::BlockWrite write;
  write.meta.key = key_of(block);
  write.meta.parent = key_of(block - 1);
  write.meta.depth = block;
  write.meta.generation = block;
  write.meta.tokens = tokens_of(block);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    base::Bytes rows = rows_of(block, layer, size);
    write.meta.entries.push_back({base::hash128(rows), static_cast<uint32_t>(size)});
    write.rows.emplace_back(std::move(rows));
  }
  return write;
}

DiskBatch batch_of(uint32_t block, size_t size) {
  DiskBatch batch;
  batch.writes.push_back(write_of(block, size));
  return batch;
}

// Waits while the device is busy.
base::Status write_soon(DiskTier& disk, const DiskBatch& batch) {
  for (;;) {
    base::Status status = disk.write(batch);
    if (status || status.error().code != base::Code::kUnavailable) return status;
    std::this_thread::yield();
  }
}

std::vector<kvstore::DiskRead> reads_of(const BlockMeta& meta) {
  std::vector<kvstore::DiskRead> reads;
  for (uint32_t layer = 0; layer < meta.entries.size(); ++layer)
    reads.push_back({meta.key, layer, meta.entries[layer], meta.generation, layer});
  return reads;
}

// Entries of the block that come back; CHECKs that each is what was written.
size_t whole_entries(DiskTier& disk, const BlockMeta& meta) {
  size_t whole = 0;
  const auto got = disk.read(reads_of(meta));
  for (uint32_t layer = 0; layer < got.size(); ++layer) {
    if (!got[layer]) continue;
    const auto block = static_cast<uint32_t>(meta.key.low);
    EXPECT_EQ(*got[layer], rows_of(block, layer, meta.entries[layer].bytes));
    ++whole;
  }
  return whole;
}

class RocksDiskTest : public testing::Test {
 protected:
  RocksDiskTest() {
    std::string name = testing::TempDir() + "rocks-disk-XXXXXX";
    folder = ::mkdtemp(name.data());
  }
  ~RocksDiskTest() override { fs::remove_all(folder); }
  std::unique_ptr<DiskTier> make(const std::string& format = "test 1") {
    kvstore::RocksOptions options;
    options.folder = folder + "/store";
    options.memtable_bytes = 256u << 10;
    options.blob_file_bytes = 512u << 10;
    options.format = format;
    return kvstore::make_rocks_disk(options);
  }
  std::string folder;
};

TEST_F(RocksDiskTest, WhatWasWrittenIsThereAfterAReopen) {
  constexpr size_t kSizes[] = {100, 5000, 200'000};
  {
    auto disk = make();
    auto found = disk->open();
    ASSERT_TRUE(found) << found.error().what;
    EXPECT_TRUE(found->blocks.empty());
    for (uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(write_soon(*disk, batch_of(i + 1, kSizes[i])));
    EXPECT_EQ(whole_entries(*disk, batch_of(3, kSizes[2]).writes[0].meta), kLayers);
  }
  auto disk = make();
  auto found = disk->open();
  ASSERT_TRUE(found) << found.error().what;
  ASSERT_EQ(found->blocks.size(), 3u);
  for (const BlockMeta& meta : found->blocks) {
    const auto block = static_cast<uint32_t>(meta.key.low);
    EXPECT_EQ(meta, write_of(block, kSizes[block - 1]).meta);
    EXPECT_EQ(whole_entries(*disk, meta), kLayers);
  }
  EXPECT_GT(disk->physical_bytes(), 600'000u);
}

TEST_F(RocksDiskTest, WhatWasRemovedIsGoneAndWhatWasNeverThereIsNotFound) {
  auto disk = make();
  ASSERT_TRUE(disk->open());
  ASSERT_TRUE(write_soon(*disk, batch_of(1, 5000)));
  DiskBatch both = batch_of(2, 5000);
  both.removals.push_back({key_of(1), kLayers});
  ASSERT_TRUE(write_soon(*disk, both));
  for (const auto& row : disk->read(reads_of(write_of(1, 5000).meta))) {
    ASSERT_FALSE(row);
    EXPECT_EQ(row.error().code, base::Code::kNotFound);
  }
  EXPECT_EQ(whole_entries(*disk, write_of(2, 5000).meta), kLayers);
  both.removals = {{key_of(2), kLayers}};  // removed and written anew in one batch
  ASSERT_TRUE(write_soon(*disk, both));
  EXPECT_EQ(whole_entries(*disk, write_of(2, 5000).meta), kLayers);
}

TEST_F(RocksDiskTest, AFolderOfAnotherFormatIsEmptied) {
  {
    auto disk = make("test 1");
    ASSERT_TRUE(disk->open());
    ASSERT_TRUE(write_soon(*disk, batch_of(1, 5000)));
  }
  auto disk = make("test 2");
  auto found = disk->open();
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->blocks.empty());
  EXPECT_EQ(whole_entries(*disk, write_of(1, 5000).meta), 0u);
}

TEST_F(RocksDiskTest, AFolderInUseOrThatCannotBeMadeIsAnError) {
  auto first = make(), second = make();
  ASSERT_TRUE(first->open());
  EXPECT_FALSE(second->open());
  EXPECT_EQ(whole_entries(*first, write_of(1, 5000).meta), 0u);  // untouched
  kvstore::RocksOptions options;
  options.folder = "/proc/nothing/here";
  EXPECT_FALSE(kvstore::make_rocks_disk(options)->open());
}

// A file of the folder, drawn.
fs::path draw_file(const std::string& folder, base::Rng& rng) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    const bool matters = name != "LOCK" && !name.starts_with("LOG") && !name.starts_with("OPTIONS");
    if (matters && entry.file_size() > 0) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files[rng.below(files.size())];
}

void damage(const fs::path& file, base::Rng& rng) {
  const uint64_t size = fs::file_size(file), at = rng.below(size);
  switch (rng.below(4)) {
    case 0:
      fs::resize_file(file, at);  // half written
      break;
    case 1:
      fs::remove(file);
      break;
    default: {  // rotten, in one bit or a page
      std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
      for (uint64_t i = at; i < std::min(size, at + (rng.chance(0.5) ? 1 : 4096)); ++i) {
        stream.seekg(static_cast<std::streamoff>(i));
        const int byte = stream.get();
        stream.seekp(static_cast<std::streamoff>(i));
        stream.put(static_cast<char>(byte ^ (1 << rng.below(8))));
      }
    }
  }
}

// Fault row R34. Whatever happened to the files, the store opens or puts them aside, serves nothing
// wrong, and takes new blocks.
TEST_F(RocksDiskTest, DamagedFilesAreNeverServed) {
  constexpr size_t kSize = 8000;
  constexpr uint32_t kBlocks = 40;
  size_t lost = 0, put_aside = 0, kept = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    base::Rng rng(seed);
    fs::remove_all(folder + "/store");
    {
      auto disk = make();
      ASSERT_TRUE(disk->open());
      for (uint32_t block = 1; block <= kBlocks; ++block)
        ASSERT_TRUE(write_soon(*disk, batch_of(block, kSize)));
    }
    for (uint64_t i = 0; i <= rng.below(3); ++i) damage(draw_file(folder + "/store", rng), rng);
    auto disk = make();
    auto found = disk->open();
    ASSERT_TRUE(found) << found.error().what;
    put_aside += found->quarantined ? 1 : 0;
    size_t whole = 0;
    for (const BlockMeta& meta : found->blocks) whole += whole_entries(*disk, meta);
    lost += kBlocks * kLayers - whole;
    kept += whole;
    base::Status status = write_soon(*disk, batch_of(99, kSize));
    for (int i = 0; i < 3 && !status; ++i) {  // an error of the background came to light
      ASSERT_TRUE(disk->open());
      status = write_soon(*disk, batch_of(99, kSize));
    }
    EXPECT_TRUE(status) << status.error().what;
    EXPECT_EQ(whole_entries(*disk, write_of(99, kSize).meta), kLayers);
  }
  EXPECT_GT(lost, 0u);
  EXPECT_GT(put_aside, 0u);
  EXPECT_GT(kept, 0u);
}

constexpr size_t kKilledSize = 30'000;

// Blocks 1, 2, 3 … until killed; each number goes to stdout when its block is written.
[[noreturn]] void write_for_ever(const std::string& store) {
  kvstore::RocksOptions options;
  options.folder = store;
  options.memtable_bytes = 256u << 10;
  options.blob_file_bytes = 512u << 10;
  auto disk = kvstore::make_rocks_disk(options);
  if (!disk->open()) ::_exit(1);
  for (uint32_t block = 1;; ++block) {
    if (!write_soon(*disk, batch_of(block, kKilledSize))) ::_exit(2);
    if (::write(1, &block, sizeof block) < 0) ::_exit(3);
  }
}

TEST_F(RocksDiskTest, AKillInTheMiddleOfWritesLeavesOnlyWholeBlocks) {
  for (uint32_t round = 0; round < 4; ++round) {
    const std::string store = folder + "/store";
    fs::remove_all(store);
    int tell[2];
    ASSERT_EQ(::pipe(tell), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(tell[1], 1);
      ::close(tell[0]);
      ::execl("/proc/self/exe", "test", "--write-for-ever", store.c_str(), nullptr);
      ::_exit(4);
    }
    ::close(tell[1]);
    uint32_t written = 0;
    const uint32_t enough = 20 + 37 * round;
    while (written<enough&& ::read(tell[0], &written, sizeof written)> 0) {
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    while (::read(tell[0], &written, sizeof written) > 0) {
    }
    ::close(tell[0]);
    ASSERT_GE(written, enough);
    auto disk = make("serval kv blocks 1");
    auto found = disk->open();
    ASSERT_TRUE(found) << found.error().what;
    EXPECT_FALSE(found->quarantined) << found->why;
    EXPECT_GE(found->blocks.size(), written);
    for (const BlockMeta& meta : found->blocks) EXPECT_EQ(whole_entries(*disk, meta), kLayers);
  }
}

// The device refuses (here a limit on the size of files): an error, and after it all goes on.
TEST_F(RocksDiskTest, ARefusedWriteIsAnErrorAndLaterWritesWork) {
  ::signal(SIGXFSZ, SIG_IGN);
  auto disk = make();
  ASSERT_TRUE(disk->open());
  for (uint32_t block = 1; block <= 3; ++block)
    ASSERT_TRUE(write_soon(*disk, batch_of(block, 30'000)));
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit tight{64u << 10, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  int refused = 0;
  for (uint32_t block = 10; block < 60; ++block)
    refused += disk->write(batch_of(block, 30'000)) ? 0 : 1;
  EXPECT_GT(refused, 0);
  for (uint32_t block = 1; block <= 3; ++block)
    EXPECT_EQ(whole_entries(*disk, write_of(block, 30'000).meta), kLayers);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  auto found = disk->open();  // begins anew
  ASSERT_TRUE(found) << found.error().what;
  EXPECT_GE(found->blocks.size(), 3u);
  for (const BlockMeta& meta : found->blocks) EXPECT_EQ(whole_entries(*disk, meta), kLayers);
  ASSERT_TRUE(write_soon(*disk, batch_of(100, 30'000)));
  EXPECT_EQ(whole_entries(*disk, write_of(100, 30'000).meta), kLayers);
}

// A cache that is always full writes as much as it removes: the device must get the room back.
TEST_F(RocksDiskTest, RemovedBlocksGiveTheirRoomBack) {
  constexpr size_t kSize = 50'000;
  constexpr uint32_t kLive = 40, kAll = 400;
  auto disk = make();
  ASSERT_TRUE(disk->open());
  const uint64_t live = kLive * kLayers * kSize;
  uint64_t most = 0;
  for (uint32_t block = 1; block <= kAll; ++block) {
    DiskBatch batch = batch_of(block, kSize);
    if (block > kLive) batch.removals.push_back({key_of(block - kLive), kLayers});
    ASSERT_TRUE(write_soon(*disk, batch));
    const uint64_t physical = disk->physical_bytes();
    most = std::max(most, physical);
    if (physical > 2 * live) disk->reclaim();
  }
  EXPECT_LT(most, 5 * live) << "of " << kAll * kLayers * kSize << " written";
}

}  // namespace
}  // namespace kvstore_test

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "--write-for-ever")
    kvstore_test::write_for_ever(argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
