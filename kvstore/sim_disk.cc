#include "kvstore/sim_disk.h"

#include <fmt/core.h>

namespace kvstore {

namespace {

std::string record_name(const Hash128& key) { return "b" + key.hex(); }
std::string rows_name(const Hash128& key, uint32_t layer) {
  return fmt::format("e{}{:08x}", key.hex(), layer);
}

std::string text_of(base::ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class SimDisk final : public DiskTier {
 public:
  explicit SimDisk(SimMedium& medium) : medium_(medium) {}

  base::Result<Found> open() override {
    if (medium_.faults.will_not_open) return base::fail(base::Code::kIo, "the disk is gone");
    Found found;
    std::vector<std::string> damaged;
    for (auto at = medium_.values.lower_bound("b");
         at != medium_.values.end() && at->first[0] == 'b'; ++at) {
      const auto key = key_of(at->first);
      auto meta = decode_meta(key, base::as_bytes(at->second));
      if (meta) {
        found.blocks.push_back(std::move(*meta));
      } else {
        ++found.damaged;
        damaged.push_back(at->first);
      }
    }
    for (const std::string& name : damaged) erase(name);
    return found;
  }

  base::Status write(const DiskBatch& batch) override {
    ++medium_.writes;
    if (hit(medium_.faults.write_error)) return base::fail(base::Code::kIo, "simulated EIO");
    if (medium_.bytes + batch.bytes > medium_.faults.capacity) {
      ++medium_.injected;
      return base::fail(base::Code::kExhausted, "simulated ENOSPC");
    }
    for (const BlockName& removal : batch.removals) {
      erase(record_name(removal.key));
      for (uint32_t layer = 0; layer < removal.layers; ++layer)
        erase(rows_name(removal.key, layer));
    }
    for (const BlockWrite& write : batch.writes) {
      for (uint32_t layer = 0; layer < write.rows.size(); ++layer)
        put(rows_name(write.meta.key, layer), text_of(write.rows[layer].view()));
      put(record_name(write.meta.key), encode(write.meta));
    }
    return {};
  }

  std::vector<base::Result<base::Bytes>> read(const std::vector<DiskRead>& reads) override {
    std::vector<base::Result<base::Bytes>> out;
    for (const DiskRead& read : reads) {
      ++medium_.reads;
      const auto at = medium_.values.find(rows_name(read.key, read.layer));
      if (hit(medium_.faults.read_error)) {
        out.push_back(base::fail(base::Code::kIo, "simulated EIO"));
      } else if (at == medium_.values.end()) {
        out.push_back(base::fail(base::Code::kNotFound, "no rows of this name"));
      } else {
        const base::ByteView bytes = base::as_bytes(at->second);
        out.push_back(checked(read, base::Bytes(bytes.begin(), bytes.end())));
      }
    }
    return out;
  }

  uint64_t physical_bytes() override { return medium_.bytes + medium_.garbage; }
  void reclaim() override {
    if (!medium_.faults.hoards) medium_.garbage = 0;
  }
  base::Duration cost(uint64_t bytes) override {
    base::Duration took = std::chrono::microseconds(100) + base::Duration(bytes);  // 1 GB/s
    if (hit(medium_.faults.slow)) {
      const auto most = static_cast<uint64_t>(medium_.faults.slow_most.count());
      took += base::Duration(static_cast<int64_t>(medium_.rng.below(most + 1)));
    }
    return took;
  }

 private:
  static Hash128 key_of(const std::string& name) {
    return {std::stoull(name.substr(17), nullptr, 16),
            std::stoull(name.substr(1, 16), nullptr, 16)};
  }
  bool hit(double chance) {
    const bool hit = chance > 0 && medium_.rng.chance(chance);
    medium_.injected += hit ? 1 : 0;
    return hit;
  }
  void erase(const std::string& name) {
    const auto at = medium_.values.find(name);
    if (at == medium_.values.end()) return;
    medium_.bytes -= at->second.size();
    medium_.garbage += at->second.size();
    medium_.values.erase(at);
  }
  void put(const std::string& name, std::string value) {
    erase(name);
    if (hit(medium_.faults.lost)) return;
    if (hit(medium_.faults.torn)) value.resize(medium_.rng.below(value.size()));
    if (!value.empty() && hit(medium_.faults.rot))
      value[medium_.rng.below(value.size())] ^= static_cast<char>(1u << medium_.rng.below(8));
    medium_.bytes += value.size();
    medium_.values[name] = std::move(value);
  }

  SimMedium& medium_;
};

}  // namespace

std::unique_ptr<DiskTier> make_sim_disk(SimMedium& medium) {
  return std::make_unique<SimDisk>(medium);
}

}  // namespace kvstore
