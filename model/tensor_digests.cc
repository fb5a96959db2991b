#include "model/tensor_digests.h"

#include <fmt/core.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string_view>

#include "base/hash.h"
#include "model/json.h"
#include "model/tensor_list.h"

namespace model {

using base::Code;
using base::fail;

namespace {

constexpr size_t kDigits = 32;
constexpr uint64_t kLargestFile = 256u << 20;

// The layer of "model.layers.12.self_attn…"; none for other tensors.
std::optional<uint32_t> layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  uint32_t layer = 0;
  const std::string_view digits = name.substr(kPrefix.size());
  std::from_chars(digits.data(), digits.data() + digits.size(), layer);
  return layer;
}

bool is_read_at_once(std::string_view name, const EngineOptions& options) {
  if (name.find(".mlp.experts.") != name.npos) return false;
  if (name.starts_with(kMtpPrefix)) return options.mtp && !name.starts_with(kMtpNgramPrefix);
  if (const auto layer = layer_of(name)) {
    const LayerRange& range = options.layers;
    return range.count() == 0 || (*layer >= range.begin && *layer < range.end);
  }
  if (name.starts_with("lm_head.") || name == "model.norm.weight") return options.head;
  const bool table = name.find("oe_embed_tokens") != name.npos ||
                     name.find("ngram_embeddings.embedders") != name.npos;
  return options.embedding && !table;
}

}  // namespace

base::Result<TensorDigests> TensorDigests::load(const std::string& folder) {
  TensorDigests out;
  const std::string path = folder + "/" + kTensorDigestFile;
  if (!std::filesystem::exists(path)) return out;
  const std::string text = TRY(read_file(path, kLargestFile));
  size_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    ++number;
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const bool good = line.size() > kDigits + 2 && line.substr(kDigits, 2) == "  " &&
                      line.find_first_not_of("0123456789abcdef") >= kDigits;
    if (!good)
      return fail(Code::kCorrupt, "{}:{}: expected a digest of {} digits and a tensor's name", path,
                  number, kDigits);
    out.digests_.emplace(line.substr(kDigits + 2), line.substr(0, kDigits));
  }
  return out;
}

base::Status TensorDigests::write(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> sorted;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    will_read(*tensor);
    sorted[name] = base::hash128(tensor->bytes).hex();
    done_reading(*tensor);
  }
  const std::string path = checkpoint.folder() + "/" + kTensorDigestFile;
  const std::string partial = path + ".partial";
  {
    std::ofstream file(partial, std::ios::trunc);
    for (const auto& [name, digest] : sorted) file << digest << "  " << name << '\n';
    file.close();
    if (!file) return fail(Code::kIo, "cannot write {}", partial);
  }
  std::error_code problem;
  std::filesystem::rename(partial, path, problem);
  if (problem) return fail(Code::kIo, "cannot name {}: {}", path, problem.message());
  return {};
}

base::Status TensorDigests::check(const Checkpoint& checkpoint, const std::string& name) const {
  const auto found = digests_.find(name);
  const Tensor* tensor = checkpoint.find(name);
  if (found == digests_.end() || tensor == nullptr) return {};
  const std::string digest = base::hash128(tensor->bytes).hex();
  if (digest == found->second) return {};
  return fail(
      Code::kCorrupt,
      "{}: tensor {} has the digest {}, but {} says {}: the file is damaged, or the digests "
      "are of other weights",
      tensor->file, name, digest, kTensorDigestFile, found->second);
}

base::Status TensorDigests::check_loaded(const Checkpoint& checkpoint,
                                         const EngineOptions& options) const {
  for (const auto& [name, digest] : digests_) {
    if (is_read_at_once(name, options)) TRY(check(checkpoint, name));
  }
  return {};
}

}  // namespace model
