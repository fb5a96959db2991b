#include "model/checkpoint.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <unordered_set>

#include "model/json.h"
#include "model/tensor_list.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;
using TensorMap = std::unordered_map<std::string, const Tensor*>;

constexpr uint64_t kIndexBytesMost = 256 << 20;
constexpr size_t kSampleBytes = 4096;

bool is_there(const std::string& path) {
  struct stat info = {};
  return ::stat(path.c_str(), &info) == 0;
}

std::string text_of(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    out += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  return out + "]";
}

// A shard is named by its plain file name in the checkpoint's own folder.
bool is_shard_name(std::string_view name) {
  constexpr std::string_view kEnd = ".safetensors";
  return name.size() > kEnd.size() && name.size() <= 255 &&
         name.substr(name.size() - kEnd.size()) == kEnd && name[0] != '.' &&
         name.find('/') == name.npos && name.find('\\') == name.npos &&
         name.find("..") == name.npos && name.find('\0') == name.npos;
}

// Tensor name to shard file name, of model.safetensors.index.json.
Result<std::map<std::string, std::string>> read_index(const std::string& path) {
  const std::string text = TRY(read_file(path, kIndexBytesMost));
  const Json root = TRY(parse_json(text, path));
  const Json* weights = root.find("weight_map");
  if (!weights || !weights->is(Json::Kind::kMap))
    return fail(Code::kCorrupt, "{}: field \"weight_map\" is missing", path);
  std::map<std::string, std::string> index;
  for (const auto& [tensor, shard] : weights->map) {
    if (!shard.is(Json::Kind::kText) || !is_shard_name(shard.text))
      return fail(Code::kCorrupt, "{}: tensor {} is said to be in \"{}\", which is no shard name",
                  path, tensor, shard.text);
    index.emplace(tensor, shard.text);
  }
  return index;
}

// The tensors of a checkpoint against its config: presence, dtype, shape, scales.
class Verifier {
 public:
  Verifier(const std::string& folder, const ModelConfig& config, const TensorMap& tensors)
      : folder_(folder), config_(config), tensors_(tensors) {}

  // The first failure stays; used tensors, scales included, are counted once each.
  void check(const TensorSpec& spec) {
    if (status_) status_ = check_one(spec);
  }
  Status status() const { return status_; }
  const std::unordered_set<std::string>& used() const { return used_; }

 private:
  Status check_one(const TensorSpec& spec) {
    const auto found = tensors_.find(spec.name);
    if (found == tensors_.end())
      return fail(Code::kCorrupt, "{}: tensor {} is missing", folder_, spec.name);
    const Tensor& tensor = *found->second;
    used_.insert(spec.name);
    TRY(check_shape(spec, tensor));
    switch (tensor.dtype) {
      case Dtype::kF32:
      case Dtype::kBf16:
      case Dtype::kF16:
        return {};
      case Dtype::kF8E4M3:
        if (!spec.may_quantise) break;
        if (!config_.fp8_blocks)
          return fail(Code::kCorrupt,
                      "{}: tensor {} is F8_E4M3, but {}/config.json has no fp8 "
                      "quantization_config",
                      tensor.file, spec.name, folder_);
        return check_scale(spec.name + "_scale_inv",
                           {{blocks(tensor.shape[0]), blocks(tensor.shape[1])}});
      case Dtype::kI8:
        if (!spec.may_quantise) break;
        TRY(check_offsets(spec.name + "_offset"));
        return check_scale(spec.name + "_scale", {{tensor.shape[0]}, {tensor.shape[0], 1}});
      case Dtype::kU8:
        if (!spec.may_quantise) break;
        return check_int4(spec, tensor);
      default:
        break;
    }
    return fail(Code::kCorrupt, "{}: tensor {} may not be {}", tensor.file, spec.name,
                name_of(tensor.dtype));
  }
  Status check_shape(const TensorSpec& spec, const Tensor& tensor) const {
    std::vector<uint64_t> wanted = spec.shape;
    if (tensor.dtype == Dtype::kU8 && spec.may_quantise) {  // two codes a byte
      if (wanted[1] % 2 != 0)
        return fail(Code::kCorrupt, "{}: tensor {} has {} inputs, an odd number, and is int4",
                    tensor.file, spec.name, wanted[1]);
      wanted[1] /= 2;
    }
    const bool rows_fit = spec.may_pad && tensor.shape.size() == 2 &&
                          tensor.shape[0] >= wanted[0] && tensor.shape[1] == wanted[1];
    if (tensor.shape == wanted || rows_fit) return {};
    return fail(Code::kCorrupt, "{}: tensor {} has shape {}, the config asks for {}{}", tensor.file,
                spec.name, text_of(tensor.shape), text_of(wanted),
                spec.may_pad ? " or more rows" : "");
  }
  uint64_t blocks(uint64_t extent) const {
    return (extent + config_.fp8_block - 1) / config_.fp8_block;
  }
  Status check_int4(const TensorSpec& spec, const Tensor& tensor) {
    const uint32_t group = config_.int4_group;
    if (group == 0)
      return fail(Code::kCorrupt,
                  "{}: tensor {} is U8, but {}/config.json has no int4 quantization_config",
                  tensor.file, spec.name, folder_);
    if (spec.shape[1] % group != 0)
      return fail(Code::kCorrupt, "{}: tensor {} has {} inputs, no multiple of the group of {}",
                  tensor.file, spec.name, spec.shape[1], group);
    return check_scale(spec.name + "_scale", {{tensor.shape[0], spec.shape[1] / group}});
  }
  // Zero points that some quantisers write beside symmetric codes: all zero, or not for us.
  Status check_offsets(const std::string& name) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return {};
    used_.insert(name);
    for (const std::byte byte : found->second->bytes)
      if (byte != std::byte{0})
        return fail(Code::kUnsupported,
                    "{}: tensor {} is not zero: asymmetric codes are not offered",
                    found->second->file, name);
    return {};
  }
  Status check_scale(const std::string& name, std::vector<std::vector<uint64_t>> shapes) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
      return fail(Code::kCorrupt, "{}: tensor {} is missing", folder_, name);
    const Tensor& tensor = *found->second;
    used_.insert(name);
    if (tensor.dtype != Dtype::kF32 && tensor.dtype != Dtype::kBf16 && tensor.dtype != Dtype::kF16)
      return fail(Code::kCorrupt, "{}: tensor {} may not be {}", tensor.file, name,
                  name_of(tensor.dtype));
    if (std::find(shapes.begin(), shapes.end(), tensor.shape) == shapes.end())
      return fail(Code::kCorrupt, "{}: tensor {} has shape {}, must be {}", tensor.file, name,
                  text_of(tensor.shape), text_of(shapes[0]));
    return {};
  }

  const std::string& folder_;
  const ModelConfig& config_;
  const TensorMap& tensors_;
  std::unordered_set<std::string> used_;
  Status status_;
};

bool is_live_mtp(const std::string& name) {
  return name.starts_with(kMtpPrefix) && !name.starts_with(kMtpNgramPrefix);
}

base::Hash128 sample(const base::Hash128& before, const std::string& name, const Tensor& tensor) {
  const std::string head =
      name + '\0' + name_of(tensor.dtype) + '\0' + text_of(tensor.shape) + '\0';
  base::Hash128 hash = base::hash_chain(before, base::as_bytes(head));
  const size_t size = tensor.bytes.size();
  hash = base::hash_chain(hash, tensor.bytes.first(std::min(size, kSampleBytes)));
  return base::hash_chain(hash, tensor.bytes.last(std::min(size, kSampleBytes)));
}

// Tells the kernel how a run of mapped bytes will be read. Only whole pages inside take part.
void advise(base::ByteView bytes, int advice) {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(bytes.data()) + bytes.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

// Weights are streamed (read ahead), embedding tables are read a row here and there (do not).
void advise_all(const std::vector<Safetensors>& files, const TensorMap& tensors,
                const ModelConfig& config) {
  for (const Safetensors& file : files) {
    const std::byte *begin = nullptr, *end = nullptr;
    for (const auto& [name, tensor] : file.tensors()) {  // order does not matter for min and max
      if (!begin || tensor.bytes.data() < begin) begin = tensor.bytes.data();
      end = std::max(end, tensor.bytes.data() + tensor.bytes.size());
    }
    if (begin) advise({begin, end}, MADV_NORMAL);
  }
  advise(tensors.at(kWordTable)->bytes, MADV_RANDOM);
  if (!config.ngram) return;
  for (uint32_t i = 0; i < config.ngram->tables(); ++i)
    advise(tensors.at(ngram_table_name(config.ngram->oe_names, i))->bytes, MADV_RANDOM);
}

}  // namespace

void will_read(const Tensor& tensor) {
  advise(tensor.bytes, MADV_SEQUENTIAL);
  advise(tensor.bytes, MADV_WILLNEED);
}

void done_reading(const Tensor& tensor) { advise(tensor.bytes, MADV_DONTNEED); }

const Tensor* Checkpoint::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

base::Status Checkpoint::map_files() {
  const std::string single = folder_ + "/model.safetensors";
  const std::string index_path = folder_ + "/model.safetensors.index.json";
  if (is_there(single)) {
    files_.push_back(TRY(Safetensors::open(single)));
    for (const auto& [name, tensor] : files_[0].tensors()) tensors_.emplace(name, &tensor);
    return {};
  }
  if (!is_there(index_path))
    return fail(Code::kNotFound, "{}: has neither model.safetensors nor {}", folder_,
                "model.safetensors.index.json");
  const std::map<std::string, std::string> index = TRY(read_index(index_path));
  std::map<std::string, size_t> opened;
  for (const auto& [name, shard] : index) {
    const auto [place, fresh] = opened.try_emplace(shard, files_.size());
    if (fresh) files_.push_back(TRY(Safetensors::open(folder_ + "/" + shard)));
    const auto& tensors = files_[place->second].tensors();
    const auto found = tensors.find(name);
    if (found == tensors.end())
      return fail(Code::kCorrupt, "{}/{}: tensor {} is missing, the index says it is there",
                  folder_, shard, name);
    tensors_.emplace(name, &found->second);
  }
  return {};
}

base::Status Checkpoint::verify() {
  // Hugging Face may save the word table of an n-gram model under the name of its wrapper.
  if (const Tensor* alias = find(kWordTableAlias); alias && !find(kWordTable)) {
    tensors_.erase(kWordTableAlias);
    tensors_.emplace(kWordTable, alias);
  }
  // Which of the two naming schemes the n-gram tables use shows in the files.
  if (config_.ngram && !find(ngram_table_name(config_.ngram->oe_names, 0)) &&
      find(ngram_table_name(!config_.ngram->oe_names, 0)))
    config_.ngram->oe_names = !config_.ngram->oe_names;

  const bool mtp = std::any_of(tensors_.begin(), tensors_.end(),
                               [](const auto& item) { return is_live_mtp(item.first); });
  // Older configs do not mention the one MTP block of their checkpoint.
  config_.mtp_layers = mtp ? std::max(config_.mtp_layers, 1u) : 0;

  Verifier verifier(folder_, config_, tensors_);
  const SpecVisitor check = [&verifier](const TensorSpec& spec) { verifier.check(spec); };
  each_trunk_tensor(config_, check);
  if (mtp) each_mtp_tensor(config_, check);
  TRY(verifier.status());
  // Ignoring these would change what the weights mean.
  for (const auto& [name, tensor] : tensors_)
    if (name.ends_with("smooth_scale"))
      return fail(Code::kUnsupported, "{}: tensor {}: smoothed inputs are not offered",
                  tensor->file, name);
  ignored_tensors_ = tensors_.size() - verifier.used().size();
  return {};
}

void Checkpoint::take_digest(std::string_view config_text) {
  digest_ = base::hash128(config_text);
  const std::map<std::string, const Tensor*> sorted(tensors_.begin(), tensors_.end());
  for (const auto& [name, tensor] : sorted) {
    digest_ = sample(digest_, name, *tensor);
    total_bytes_ += tensor->bytes.size();
  }
}

base::Result<Checkpoint> Checkpoint::open(const std::string& folder) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  if (!is_there(folder)) return fail(Code::kNotFound, "{}: no such folder", folder);
  const std::string config_path = folder + "/config.json";
  const std::string config_text = TRY(read_file(config_path, /*limit=*/16 << 20));
  checkpoint.config_ = TRY(ModelConfig::parse(config_text, config_path));
  TRY(checkpoint.map_files());
  TRY(checkpoint.verify());
  checkpoint.take_digest(config_text);
  advise_all(checkpoint.files_, checkpoint.tensors_, checkpoint.config_);
  return checkpoint;
}

}  // namespace model
