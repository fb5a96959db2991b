#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "model/checkpoint.h"
#include "model/json.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;

constexpr uint64_t kHeaderMost = 100'000'000;
constexpr size_t kDimensionsMost = 8;

struct DtypeName {
  const char* name;  // in the header
  Dtype dtype;
  size_t bytes;
};
constexpr DtypeName kDtypes[] = {{"F32", Dtype::kF32, 4}, {"BF16", Dtype::kBf16, 2},
                                 {"F16", Dtype::kF16, 2}, {"F8_E4M3", Dtype::kF8E4M3, 1},
                                 {"I8", Dtype::kI8, 1},   {"I32", Dtype::kI32, 4},
                                 {"I64", Dtype::kI64, 8}, {"U8", Dtype::kU8, 1}};

const DtypeName& entry(Dtype dtype) {
  for (const DtypeName& known : kDtypes)
    if (known.dtype == dtype) return known;
  CHECK(false, "dtype {}", static_cast<int>(dtype));
  return kDtypes[0];
}

// A tensor as the header states it; offsets count from the end of the header.
struct Stated {
  std::string_view name;
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  uint64_t begin = 0, end = 0;
};

std::optional<uint64_t> natural(const Json& value) {
  if (!value.is(Json::Kind::kInteger) || value.integer < 0) return std::nullopt;
  return static_cast<uint64_t>(value.integer);
}

Result<Stated> read_entry(const std::string& path, std::string_view name, const Json& entry) {
  Stated stated;
  stated.name = name;
  const Json* dtype = entry.find("dtype");
  const Json* shape = entry.find("shape");
  const Json* offsets = entry.find("data_offsets");
  if (!dtype || !shape || !offsets || !shape->is(Json::Kind::kList) || offsets->list.size() != 2)
    return fail(Code::kCorrupt, "{}: tensor {} lacks dtype, shape or data_offsets", path, name);
  const auto known = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                  [&](const DtypeName& d) { return dtype->text == d.name; });
  if (known == std::end(kDtypes))
    return fail(Code::kUnsupported, "{}: tensor {} has the unknown dtype \"{}\"", path, name,
                dtype->text);
  stated.dtype = known->dtype;
  if (shape->list.size() > kDimensionsMost)
    return fail(Code::kCorrupt, "{}: tensor {} has {} dimensions", path, name, shape->list.size());
  uint64_t bytes = known->bytes;
  for (const Json& item : shape->list) {
    const auto extent = natural(item);
    if (!extent || __builtin_mul_overflow(bytes, *extent, &bytes))
      return fail(Code::kCorrupt, "{}: tensor {} has no possible shape", path, name);
    stated.shape.push_back(*extent);
  }
  const auto begin = natural(offsets->list[0]);
  const auto end = natural(offsets->list[1]);
  if (!begin || !end || *begin > *end || *end - *begin != bytes)
    return fail(Code::kCorrupt, "{}: tensor {}: data_offsets do not span the {} bytes of its shape",
                path, name, bytes);
  stated.begin = *begin;
  stated.end = *end;
  return stated;
}

// The tensors must follow each other without overlap or hole and fill the file.
Status check_layout(const std::string& path, std::vector<Stated>* stated, uint64_t data_bytes) {
  std::sort(stated->begin(), stated->end(), [](const Stated& a, const Stated& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  for (const Stated& tensor : *stated) {
    if (tensor.end > data_bytes)
      return fail(Code::kCorrupt, "{}: tensor {} ends at byte {} of {} (is the file cut off?)",
                  path, tensor.name, tensor.end, data_bytes);
    if (tensor.begin != at)
      return fail(Code::kCorrupt,
                  "{}: tensor {} begins at byte {}, the tensor before it ends at {}", path,
                  tensor.name, tensor.begin, at);
    at = tensor.end;
  }
  if (at != data_bytes)
    return fail(Code::kCorrupt, "{}: {} bytes after the last tensor", path, data_bytes - at);
  return {};
}

}  // namespace

size_t bytes_of(Dtype dtype) { return entry(dtype).bytes; }
const char* name_of(Dtype dtype) { return entry(dtype).name; }

uint64_t Tensor::elements() const {
  uint64_t product = 1;
  for (const uint64_t extent : shape) product *= extent;
  return product;
}

// The whole file, mapped read-only until destroyed.
struct Safetensors::Mapping {
  base::ByteView bytes;
  uint64_t header_bytes = 0;

  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (!bytes.empty()) ::munmap(const_cast<std::byte*>(bytes.data()), bytes.size());
  }
  Status map(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      return fail(errno == ENOENT ? Code::kNotFound : Code::kIo, "{}: {}", path,
                  std::strerror(errno));
    struct stat info = {};
    void* at = MAP_FAILED;
    const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size >= 8;
    if (regular)
      at = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
    const int error = errno;
    ::close(fd);
    if (!regular) return fail(Code::kCorrupt, "{}: is no safetensors file (no header)", path);
    if (at == MAP_FAILED) return fail(Code::kIo, "{}: {}", path, std::strerror(error));
    bytes = {static_cast<const std::byte*>(at), static_cast<size_t>(info.st_size)};
    // Headers and samples are read here and there; who streams weights says so later.
    ::madvise(at, bytes.size(), MADV_RANDOM);
    return {};
  }
};

Safetensors::Safetensors(Safetensors&&) noexcept = default;
Safetensors& Safetensors::operator=(Safetensors&&) noexcept = default;
Safetensors::~Safetensors() = default;

base::ByteView Safetensors::header() const {
  return mapping_->bytes.subspan(8, mapping_->header_bytes);
}

Result<Safetensors> Safetensors::open(const std::string& path) {
  Safetensors file;
  file.mapping_ = std::make_unique<Mapping>();
  Mapping& mapping = *file.mapping_;
  TRY(mapping.map(path));
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < 8; ++i)
    header_bytes |= std::to_integer<uint64_t>(mapping.bytes[i]) << (8 * i);
  if (header_bytes > kHeaderMost)
    return fail(Code::kCorrupt, "{}: header of {} bytes is over the limit of {}", path,
                header_bytes, kHeaderMost);
  if (header_bytes > mapping.bytes.size() - 8)
    return fail(Code::kCorrupt, "{}: header of {} bytes does not fit the file of {}", path,
                header_bytes, mapping.bytes.size());
  mapping.header_bytes = header_bytes;
  const base::ByteView header = file.header();
  const Json root =
      TRY(parse_json({reinterpret_cast<const char*>(header.data()), header.size()}, path));
  if (!root.is(Json::Kind::kMap)) return fail(Code::kCorrupt, "{}: header is no object", path);

  std::vector<Stated> stated;
  stated.reserve(root.map.size());
  for (const auto& [name, entry] : root.map) {
    if (name == "__metadata__") continue;
    stated.push_back(TRY(read_entry(path, name, entry)));
  }
  const base::ByteView data = mapping.bytes.subspan(8 + header_bytes);
  TRY(check_layout(path, &stated, data.size()));
  file.tensors_.reserve(stated.size());
  for (Stated& item : stated) {
    Tensor tensor;
    tensor.dtype = item.dtype;
    tensor.shape = std::move(item.shape);
    tensor.bytes = data.subspan(item.begin, item.end - item.begin);
    tensor.file = path;
    file.tensors_.emplace(std::string(item.name), std::move(tensor));
  }
  return file;
}

}  // namespace model
