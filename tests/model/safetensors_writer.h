// Writes safetensors files and checkpoint folders for tests: whole ones, and ones with a fault.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "model/checkpoint.h"

namespace model::test {

struct Entry {
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  std::string bytes;
};
using Entries = std::map<std::string, Entry>;

// A folder that is removed with its content when the test ends.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = ::testing::TempDir() + "serval_XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  ASSERT_TRUE(out.good()) << path;
}

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline std::string entry_json(const std::string& name, const char* dtype,
                              const std::vector<uint64_t>& shape, uint64_t begin, uint64_t end) {
  std::string extents;
  for (const uint64_t extent : shape)
    extents += fmt::format("{}{}", extents.empty() ? "" : ",", extent);
  return fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name, dtype,
                     extents, begin, end);
}

// Eight bytes of length, the header as it is given, the data.
inline void write_raw(const std::string& path, const std::string& header, const std::string& data) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  write_text(path, length + header + data);
}

inline void write_safetensors(const std::string& path, const Entries& entries) {
  std::string header, data;
  for (const auto& [name, entry] : entries) {
    header += header.empty() ? "{" : ",";
    header += entry_json(name, name_of(entry.dtype), entry.shape, data.size(),
                         data.size() + entry.bytes.size());
    data += entry.bytes;
  }
  write_raw(path, header + "}", data);
}

inline std::string golden(const std::string& name) {
  return SERVAL_SOURCE_DIR "/tests/golden/" + name;
}

// All tensors of a checkpoint folder's shards.
inline Entries load_entries(const std::string& folder) {
  Entries entries;
  for (const auto& item : std::filesystem::directory_iterator(folder)) {
    if (!item.path().filename().string().starts_with("model")) continue;
    if (item.path().extension() != ".safetensors") continue;
    auto file = Safetensors::open(item.path());
    EXPECT_TRUE(file) << (file ? "" : file.error().what);
    if (!file) continue;
    for (const auto& [name, tensor] : file->tensors())
      entries[name] = {
          tensor.dtype, tensor.shape,
          std::string(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size())};
  }
  return entries;
}

// A checkpoint of one file.
inline void write_checkpoint(const std::string& folder, const std::string& config,
                             const Entries& entries) {
  write_text(folder + "/config.json", config);
  write_safetensors(folder + "/model.safetensors", entries);
}

}  // namespace model::test
