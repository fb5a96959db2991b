// bench_kvstore: what the store adds to the machine and to RocksDB. Each line is one way to move
// the same entries: rate, and time of one entry (of one batch for the disk) in the middle and at
// the 99th percentile. Everything on one thread, reads from the page cache.
#include <fmt/core.h>
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/rng.h"
#include "kvstore/block_index.h"
#include "kvstore/rocks_disk.h"

namespace {

using std::chrono::steady_clock;

struct Setup {
  size_t rows = 64 * 2304;  // bytes of an entry: 64 tokens, two latent rows of 576 bf16 each
  uint32_t layers = 8, blocks = 200;
  uint32_t batch = 16;  // entries of a read, as a prefill stage asks
  std::string folder = "/tmp";
};

double thread_us() {
  timespec t;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

// Runs `step` for each index and prints its line; `bytes`: of one step.
template <class Step>
void measure(const char* name, size_t steps, size_t bytes, Step step) {
  std::vector<double> took(steps), cpu(steps);
  const auto begun = steady_clock::now();
  for (size_t i = 0; i < steps; ++i) {
    const auto from = steady_clock::now();
    const double cpu_from = thread_us();
    step(i);
    cpu[i] = thread_us() - cpu_from;
    took[i] = std::chrono::duration<double, std::micro>(steady_clock::now() - from).count();
  }
  const double all = std::chrono::duration<double>(steady_clock::now() - begun).count();
  std::ranges::sort(took);
  std::ranges::sort(cpu);
  fmt::print("{:<32} {:>7.2f} {:>10.1f} {:>10.1f} {:>10.1f}\n", name,
             static_cast<double>(bytes * steps) / all / 1e9, took[steps / 2],
             took[steps * 99 / 100], cpu[steps / 2]);
}

class Bench {
 public:
  explicit Bench(Setup setup) : s_(std::move(setup)), entries_(s_.blocks * s_.layers) {
    base::Rng rng(1);
    for (uint32_t i = 0; i < 64; ++i) {
      base::Bytes bytes(s_.rows);
      for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
        const uint64_t value = rng.next();
        std::memcpy(bytes.data() + at, &value, 8);
      }
      rows_.emplace_back(std::move(bytes));
      digests_.push_back(base::hash128(rows_.back().view()));
    }
  }

  void memory() {
    base::Bytes to(entries_ * s_.rows);
    const auto copy = [&](size_t i) {
      std::memcpy(to.data() + i * s_.rows, rows(i).view().data(), s_.rows);
    };
    measure("memcpy, memory touched first", entries_, s_.rows, copy);
    measure("memcpy", entries_, s_.rows, copy);
    base::Hash128 sum;
    measure("hash128", entries_, s_.rows,
            [&](size_t i) { sum.low ^= base::hash128(rows(i).view()).low; });
    measure("hash128 of cold memory", entries_, s_.rows, [&](size_t i) {
      sum.low ^= base::hash128({to.data() + i * s_.rows, s_.rows}).low;
    });
    if (sum.low == 1) fmt::print("\n");
  }

  void ram() {
    kvstore::IndexLimits limits;
    limits.bytes = entries_ * (s_.rows + 1024) + (1u << 20);
    kvstore::BlockIndex index{limits};
    const auto store = [&](size_t i) { index.put(put(i), rows(i)); };
    measure("RAM put, memory touched first", entries_, s_.rows, store);
    kvstore::IndexLimits small = limits;
    small.bytes /= 4;
    kvstore::BlockIndex full{small};
    for (size_t i = 0; i < entries_; ++i) full.put(put(i), rows(i));
    measure("RAM put, evicting", entries_, s_.rows, [&](size_t i) {
      proto::PutKv message = put(i);
      message.key.high = 2;
      full.put(message, rows(i));
    });
    measure("RAM fetch", entries_, s_.rows, [&](size_t i) {
      proto::FetchKv asked;
      asked.keys = {put(i).key};
      asked.layer = put(i).layer;
      index.fetch(asked);
    });
    measure("RAM look-up of 100 blocks", 1000, 0, [&](size_t i) {
      proto::LookupPrefix asked;
      asked.request = {i + 1};
      for (uint32_t block = 0; block < 100; ++block) {
        asked.keys.push_back({block, 1});
        asked.tokens.insert(asked.tokens.end(), 64, block);
      }
      index.lookup(asked, {});
      index.release(asked.request, 0);
    });
  }

  void disk() {
    kvstore::RocksOptions options;
    options.folder = s_.folder + "/store";
    std::filesystem::remove_all(options.folder);
    auto tier = kvstore::make_rocks_disk(options);
    auto opened = tier->open();
    if (!opened) return fmt::print("no disk: {}\n", opened.error().what);
    uint64_t busy = 0;
    measure("disk write of a block", s_.blocks, s_.layers * s_.rows, [&](size_t block) {
      const kvstore::DiskBatch batch = batch_of(block);
      while (!tier->write(batch)) {
        ++busy;
        ::usleep(1000);
      }
    });
    measure("disk read of a batch, verified", reads(), s_.batch * s_.rows, [&](size_t i) {
      std::vector<kvstore::DiskRead> asked;
      for (size_t k = 0; k < s_.batch; ++k) {
        const proto::PutKv message = put((i * s_.batch + k) * 7 % entries_);
        asked.push_back({message.key, message.layer, {message.digest, meta_bytes()}, 1, k});
      }
      for (const auto& got : tier->read(asked)) {
        if (!got) fmt::print("lost: {}\n", got.error().what);
      }
    });
    fmt::print(
        "({} times told to wait, {:.2f} x the bytes on the device)\n", busy,
        static_cast<double>(tier->physical_bytes()) / static_cast<double>(entries_ * s_.rows));
  }

  void raw_rocksdb() {
    rocksdb::Options options;
    options.create_if_missing = true;
    options.compression = rocksdb::kNoCompression;
    options.enable_blob_files = true;
    options.write_buffer_size = 32u << 20;
    std::filesystem::remove_all(s_.folder + "/raw");
    rocksdb::DB* opened = nullptr;
    if (!rocksdb::DB::Open(options, s_.folder + "/raw", &opened).ok()) return;
    const std::unique_ptr<rocksdb::DB> db(opened);
    measure("raw RocksDB write of a block", s_.blocks, s_.layers * s_.rows, [&](size_t block) {
      rocksdb::WriteBatch batch;
      for (uint32_t layer = 0; layer < s_.layers; ++layer)
        batch.Put(name(block * s_.layers + layer), text(block * s_.layers + layer));
      db->Write({}, &batch).PermitUncheckedError();
    });
    measure("raw RocksDB MultiGet of a batch", reads(), s_.batch * s_.rows, [&](size_t i) {
      std::vector<std::string> names;
      for (size_t k = 0; k < s_.batch; ++k)
        names.push_back(name((i * s_.batch + k) * 7 % entries_));
      const std::vector<rocksdb::Slice> keys(names.begin(), names.end());
      std::vector<rocksdb::PinnableSlice> values(keys.size());
      std::vector<rocksdb::Status> statuses(keys.size());
      db->MultiGet({}, db->DefaultColumnFamily(), keys.size(), keys.data(), values.data(),
                   statuses.data());
    });
  }

  void plain_file() {
    const std::string path = s_.folder + "/plain";
    std::ofstream file(path, std::ios::binary);
    measure("plain file write of a block", s_.blocks, s_.layers * s_.rows, [&](size_t block) {
      for (uint32_t layer = 0; layer < s_.layers; ++layer) {
        const rocksdb::Slice value = text(block * s_.layers + layer);
        file.write(value.data(), static_cast<std::streamsize>(value.size()));
      }
    });
  }

 private:
  const base::Blob& rows(size_t i) const { return rows_[i % rows_.size()]; }
  size_t reads() const { return entries_ / s_.batch; }
  uint32_t meta_bytes() const { return static_cast<uint32_t>(s_.rows); }
  rocksdb::Slice text(size_t i) const {
    return {reinterpret_cast<const char*>(rows(i).view().data()), s_.rows};
  }
  static std::string name(size_t i) { return fmt::format("{:020}", i * 0x9E3779B97F4A7C15u); }
  proto::PutKv put(size_t i) const {
    proto::PutKv message;
    message.key = {i / s_.layers, 1};
    message.layer = static_cast<uint32_t>(i % s_.layers);
    message.layers = s_.layers;
    message.tokens.assign(64, static_cast<uint32_t>(i / s_.layers));
    message.digest = digests_[i % digests_.size()];
    return message;
  }
  kvstore::DiskBatch batch_of(size_t block) const {
    kvstore::BlockWrite write;
    write.meta.key = {block, 1};
    write.meta.generation = 1;
    write.meta.tokens.assign(64, 1);
    for (uint32_t layer = 0; layer < s_.layers; ++layer) {
      const size_t i = block * s_.layers + layer;
      write.meta.entries.push_back({digests_[i % digests_.size()], meta_bytes()});
      write.rows.push_back(rows(i));
    }
    kvstore::DiskBatch batch;
    batch.writes.push_back(std::move(write));
    return batch;
  }

  const Setup s_;
  const size_t entries_;
  base::Blobs rows_;
  std::vector<base::Hash128> digests_;
};

}  // namespace

int main(int argc, char** argv) {
  Setup setup;
  CLI::App app{"Throughput and latency of the kvstore against memcpy and raw RocksDB."};
  app.add_option("--rows", setup.rows, "bytes of an entry")->capture_default_str();
  app.add_option("--layers", setup.layers, "entries of a block")->capture_default_str();
  app.add_option("--blocks", setup.blocks, "how many")->capture_default_str();
  app.add_option("--folder", setup.folder, "where the disk is measured")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  setup.folder += fmt::format("/bench-kvstore-{}", ::getpid());
  std::filesystem::create_directories(setup.folder);
  fmt::print("{} blocks of {} entries of {} bytes\n", setup.blocks, setup.layers, setup.rows);
  fmt::print("{:<32} {:>7} {:>10} {:>10} {:>10}\n", "", "GB/s", "us median", "us p99", "us of CPU");
  Bench bench(setup);
  bench.memory();
  bench.ram();
  bench.plain_file();
  // One after the other by turns: what the device still has to write of one slows the next.
  for (int turn = 0; turn < 2; ++turn) {
    ::sync();
    bench.disk();
    ::sync();
    bench.raw_rocksdb();
  }
  std::error_code ignored;
  std::filesystem::remove_all(setup.folder, ignored);
  return 0;
}
