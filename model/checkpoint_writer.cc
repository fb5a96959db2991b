#include "model/checkpoint_writer.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/check.h"
#include "model/json.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;

constexpr size_t kBufferBytes = 4 << 20;
constexpr uint64_t kSpareBytes = 64 << 20;  // headers, index, tokenizer; and not the last byte

bool is_there(const std::string& path) {
  struct stat info = {};
  return ::lstat(path.c_str(), &info) == 0;
}

Status write_all(int fd, const std::string& path, base::ByteView bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(Code::kIo, "{}: {}", path, std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status write_file(const std::string& path, std::string_view content) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return fail(Code::kIo, "{}: {}", path, std::strerror(errno));
  const Status written = write_all(fd, path, base::as_bytes(content));
  const bool synced = ::fsync(fd) == 0;
  ::close(fd);
  if (written && !synced) return fail(Code::kIo, "{}: {}", path, std::strerror(errno));
  return written;
}

std::string json_text(std::string_view text) {
  Json json;
  json.kind = Json::Kind::kText;
  json.text = text;
  return dump_python(json);
}

// Length, header and padding to 8 bytes, as the format wants them.
std::string header_of(std::span<const PlannedTensor> tensors) {
  std::string header;
  uint64_t at = 0;
  for (const PlannedTensor& tensor : tensors) {
    std::string extents;
    for (const uint64_t extent : tensor.shape)
      extents += fmt::format("{}{}", extents.empty() ? "" : ",", extent);
    header += fmt::format(R"({}{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                          header.empty() ? "{" : ",", json_text(tensor.name), name_of(tensor.dtype),
                          extents, at, at + tensor.bytes());
    at += tensor.bytes();
  }
  header += header.empty() ? "{}" : "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + header;
}

// Which shard each tensor goes to: the next one when this one is full.
std::vector<uint32_t> deal(const std::vector<PlannedTensor>& plan, uint64_t shard_bytes) {
  std::vector<uint32_t> shard_of(plan.size());
  uint32_t shard = 0;
  uint64_t filled = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    const uint64_t bytes = plan[i].bytes();
    if (filled > 0 && filled + bytes > shard_bytes) {
      ++shard;
      filled = 0;
    }
    filled += bytes;
    shard_of[i] = shard;
  }
  return shard_of;
}

Status check_room(const std::string& folder, uint64_t bytes) {
  struct statvfs info = {};
  if (::statvfs(folder.c_str(), &info) != 0) return {};  // then writing will tell
  const uint64_t room = uint64_t{info.f_bavail} * info.f_frsize;
  if (room >= bytes + kSpareBytes) return {};
  return fail(Code::kInvalidArgument, "{}: needs {} MB, the disk has {} MB free", folder,
              (bytes + kSpareBytes) >> 20, room >> 20);
}

}  // namespace

uint64_t PlannedTensor::bytes() const {
  uint64_t product = bytes_of(dtype);
  for (const uint64_t extent : shape) product *= extent;
  return product;
}

std::string CheckpointWriter::shard_name(uint32_t shard) const {
  if (shards_ == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards_);
}

Result<CheckpointWriter> CheckpointWriter::create(const std::string& folder,
                                                  std::vector<PlannedTensor> plan,
                                                  uint64_t shard_bytes, bool sync) {
  CHECK(!plan.empty(), "a checkpoint without tensors");
  CheckpointWriter writer;
  std::string path = folder;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::string partial = path + ".partial";
  if (is_there(path))
    return fail(Code::kInvalidArgument, "{}: is there already; give a folder that is not", path);
  if (is_there(partial))
    return fail(Code::kInvalidArgument, "{}: is left from another run; remove it first", partial);
  if (::mkdir(partial.c_str(), 0755) != 0)
    return fail(Code::kIo, "{}: {}", partial, std::strerror(errno));
  writer.sync_ = sync;
  writer.folder_ = path;
  writer.partial_ = partial;
  writer.plan_ = std::move(plan);
  writer.shard_of_ = deal(writer.plan_, shard_bytes);
  writer.shards_ = writer.shard_of_.back() + 1;
  for (const PlannedTensor& tensor : writer.plan_) writer.total_bytes_ += tensor.bytes();
  writer.buffer_.reserve(kBufferBytes);
  TRY(check_room(partial, writer.total_bytes_));
  TRY(writer.open_shard());
  return writer;
}

CheckpointWriter::CheckpointWriter(CheckpointWriter&& other) noexcept
    : folder_(std::move(other.folder_)),
      partial_(std::exchange(other.partial_, {})),
      plan_(std::move(other.plan_)),
      shard_of_(std::move(other.shard_of_)),
      shards_(other.shards_),
      total_bytes_(other.total_bytes_),
      written_bytes_(other.written_bytes_),
      next_(other.next_),
      tensor_at_(other.tensor_at_),
      fd_(std::exchange(other.fd_, -1)),
      sync_(other.sync_),
      buffer_(std::move(other.buffer_)) {}

CheckpointWriter::~CheckpointWriter() {
  if (fd_ >= 0) ::close(fd_);
  std::error_code ignored;
  if (!partial_.empty()) std::filesystem::remove_all(partial_, ignored);
}

Status CheckpointWriter::open_shard() {
  const uint32_t shard = shard_of_[next_];
  const auto end = std::upper_bound(shard_of_.begin(), shard_of_.end(), shard);
  const size_t count = static_cast<size_t>(end - shard_of_.begin()) - next_;
  const std::string path = partial_ + "/" + shard_name(shard);
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) return fail(Code::kIo, "{}: {}", path, std::strerror(errno));
  return write_all(fd_, path, base::as_bytes(header_of({plan_.data() + next_, count})));
}

Status CheckpointWriter::flush() {
  const Status written = write_all(fd_, partial_, buffer_);
  buffer_.clear();
  return written;
}

Status CheckpointWriter::close_shard() {
  TRY(flush());
  const bool synced = !sync_ || ::fsync(fd_) == 0;
  const int error = errno;
  // What reached the disk need not push what is in use out of the cache.
  if (sync_) ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
  ::close(std::exchange(fd_, -1));
  if (!synced) return fail(Code::kIo, "{}: {}", partial_, std::strerror(error));
  return {};
}

Status CheckpointWriter::write(std::string_view name, base::ByteView bytes) {
  CHECK(next_ < plan_.size() && plan_[next_].name == name, "{} is not the next tensor", name);
  CHECK(bytes.size() <= plan_[next_].bytes() - tensor_at_, "{} has fewer bytes", name);
  if (fd_ < 0) TRY(open_shard());
  tensor_at_ += bytes.size();
  written_bytes_ += bytes.size();
  if (buffer_.size() + bytes.size() > kBufferBytes) TRY(flush());
  if (bytes.size() >= kBufferBytes) {
    TRY(write_all(fd_, partial_, bytes));
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
  if (tensor_at_ < plan_[next_].bytes()) return {};
  tensor_at_ = 0;
  ++next_;
  if (next_ == plan_.size() || shard_of_[next_] != shard_of_[next_ - 1]) return close_shard();
  return {};
}

Status CheckpointWriter::add_file(const std::string& name, std::string_view content) {
  return write_file(partial_ + "/" + name, content);
}

Status CheckpointWriter::copy_file(const std::string& from, const std::string& name) {
  constexpr uint64_t kMost = uint64_t{1} << 30;
  const std::string content = TRY(read_file(from, kMost));
  return add_file(name, content);
}

Status CheckpointWriter::finish() {
  CHECK(next_ == plan_.size(), "{} of {} tensors were written", next_, plan_.size());
  if (shards_ > 1) {
    std::map<std::string, uint32_t> sorted;
    for (size_t i = 0; i < plan_.size(); ++i) sorted.emplace(plan_[i].name, shard_of_[i]);
    std::string index = fmt::format(
        "{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", total_bytes_);
    const char* comma = "";
    for (const auto& [name, shard] : sorted) {
      index += fmt::format("{}\n    {}: \"{}\"", comma, json_text(name), shard_name(shard));
      comma = ",";
    }
    TRY(add_file("model.safetensors.index.json", index + "\n  }\n}\n"));
  }
  if (::rename(partial_.c_str(), folder_.c_str()) != 0)
    return fail(Code::kIo, "{}: {}", folder_, std::strerror(errno));
  partial_.clear();
  return {};
}

Result<std::string> with_quantization_config(const std::string& config, const std::string& value) {
  const Json root = TRY(parse_json(config, "config.json"));
  if (!root.is(Json::Kind::kMap)) return fail(Code::kCorrupt, "config.json: is no JSON object");
  std::string out;
  const auto add = [&out](const std::string& key, const std::string& text) {
    out += fmt::format("{}\n  {}: {}", out.empty() ? "{" : ",", json_text(key), text);
  };
  for (const auto& [key, member] : root.map)
    if (key != "quantization_config") add(key, dump_python(member));
  if (!value.empty()) add("quantization_config", value);
  return out + (out.empty() ? "{}\n" : "\n}\n");
}

}  // namespace model
