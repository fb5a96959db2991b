#include "kvstore/disk_tier.h"

#include <bit>
#include <cstring>

namespace kvstore {

static_assert(std::endian::native == std::endian::little, "records are written as they stand");

namespace {

constexpr uint32_t kMagic = 0x4B424B53;  // "SKBK"
constexpr uint32_t kTokensMost = 1u << 16, kLayersMost = 1u << 16;

class Out {
 public:
  template <class T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put(const Hash128& hash) {
    put(hash.low);
    put(hash.high);
  }
  std::string finish() {
    put(base::hash128(text_));
    return std::move(text_);
  }

 private:
  std::string text_;
};

class In {
 public:
  explicit In(base::ByteView bytes) : bytes_(bytes) {}
  template <class T>
  bool get(T& value) {
    if (bytes_.size() < sizeof value) return false;
    std::memcpy(&value, bytes_.data(), sizeof value);
    bytes_ = bytes_.subspan(sizeof value);
    return true;
  }
  bool get(Hash128& hash) { return get(hash.low) && get(hash.high); }
  bool at_end() const { return bytes_.empty(); }

 private:
  base::ByteView bytes_;
};

bool read_fields(In& in, BlockMeta& meta) {
  uint32_t magic = 0, tokens = 0, layers = 0;
  bool good = in.get(magic) && magic == kMagic && in.get(meta.key) && in.get(meta.parent) &&
              in.get(meta.space) && in.get(meta.depth) && in.get(meta.chain) &&
              in.get(meta.generation) && in.get(tokens) && in.get(layers) && tokens > 0 &&
              tokens <= kTokensMost && layers > 0 && layers <= kLayersMost;
  if (!good) return false;
  meta.tokens.resize(tokens);
  for (uint32_t& token : meta.tokens) good = good && in.get(token);
  meta.entries.resize(layers);
  for (EntryMeta& entry : meta.entries)
    good = good && in.get(entry.digest) && in.get(entry.bytes) && entry.bytes > 0;
  return good && in.at_end();
}

}  // namespace

std::string encode(const BlockMeta& meta) {
  Out out;
  out.put(kMagic);
  out.put(meta.key);
  out.put(meta.parent);
  out.put(meta.space);
  out.put(meta.depth);
  out.put(meta.chain);
  out.put(meta.generation);
  out.put(static_cast<uint32_t>(meta.tokens.size()));
  out.put(static_cast<uint32_t>(meta.entries.size()));
  for (const uint32_t token : meta.tokens) out.put(token);
  for (const EntryMeta& entry : meta.entries) {
    out.put(entry.digest);
    out.put(entry.bytes);
  }
  return out.finish();
}

base::Result<BlockMeta> decode_meta(const Hash128& key, base::ByteView record) {
  constexpr size_t kDigest = 16;
  BlockMeta meta;
  Hash128 digest;
  bool good = record.size() > kDigest;
  if (good) {
    const base::ByteView fields = record.first(record.size() - kDigest);
    In tail(record.last(kDigest)), in(fields);
    good = tail.get(digest) && base::hash128(fields) == digest && read_fields(in, meta);
  }
  if (!good || meta.key != key) {
    return base::fail(base::Code::kCorrupt, "the record of block {} is damaged", key.hex());
  }
  return meta;
}

base::Result<base::Bytes> checked(const DiskRead& read, base::Bytes bytes) {
  if (bytes.size() == read.meta.bytes && base::hash128(bytes) == read.meta.digest) return bytes;
  return base::fail(base::Code::kCorrupt, "layer {} of block {} is damaged on disk", read.layer,
                    read.key.hex());
}

}  // namespace kvstore
