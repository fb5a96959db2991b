#include "model/convert.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/checkpoint_writer.h"
#include "model/json.h"
#include "model/tensor_list.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;

constexpr uint64_t kPieceValues = 1 << 20;  // of one tensor in memory at once, or one row

// One tensor of the source and what becomes of it.
struct Item {
  std::string name;
  const Tensor* tensor = nullptr;
  MatrixFormat format;  // integer: quantise to it
  bool as_is = false;   // byte for byte
};

// Stored as values that can go along as they are.
bool is_plain(const Tensor& tensor) {
  return tensor.dtype == Dtype::kF32 || tensor.dtype == Dtype::kBf16 || tensor.dtype == Dtype::kF16;
}

class Converter {
 public:
  Converter(const Checkpoint& source, const ConvertOptions& options)
      : source_(source), options_(options) {
    const SpecVisitor add = [this](const TensorSpec& spec) { add_tensor(spec); };
    each_trunk_tensor(source.config(), add);
    if (source.config().mtp_layers > 0) each_mtp_tensor(source.config(), add);
  }

  Status check() const {
    uint64_t changed = 0;
    for (const Item& item : items_) {
      if (item.as_is || !is_integer(item.format.format)) continue;
      if (item.tensor->dtype == Dtype::kU8)
        return fail(Code::kInvalidArgument,
                    "{}: is int4 already; convert the checkpoint that it was made from",
                    source_.folder());
      changed += item.tensor->dtype != Dtype::kI8 || item.format.format != WeightFormat::kInt8;
    }
    if (changed == 0)
      return fail(Code::kInvalidArgument, "{}: is {} already, nothing would change",
                  source_.folder(), name_of(WeightFormat::kInt8));
    return {};
  }

  std::vector<PlannedTensor> plan() const {
    std::vector<PlannedTensor> out;
    for (const Item& item : items_) {
      const std::vector<uint64_t>& shape = item.tensor->shape;
      if (item.as_is) {
        out.push_back({item.name, item.tensor->dtype, shape});
        continue;
      }
      const uint64_t columns = columns_of(*item.tensor);
      switch (item.format.format) {
        case WeightFormat::kInt8:
          out.push_back({item.name, Dtype::kI8, shape});
          out.push_back({item.name + "_scale", Dtype::kF32, {shape[0]}});
          break;
        case WeightFormat::kInt4:
          out.push_back({item.name, Dtype::kU8, {shape[0], columns / 2}});
          out.push_back(
              {item.name + "_scale", Dtype::kF32, {shape[0], columns / item.format.group}});
          break;
        default: {
          std::vector<uint64_t> widened = shape;
          widened.back() = columns;
          out.push_back({item.name, Dtype::kF32, widened});
        }
      }
    }
    return out;
  }

  Result<Converted> run(CheckpointWriter* writer) {
    Converted done;
    uint64_t all = 0, read = 0;
    for (const Item& item : items_) all += item.tensor->bytes.size();
    for (const Item& item : items_) {
      will_read(*item.tensor);
      if (item.as_is) {
        TRY(copy(item, writer));
      } else if (is_integer(item.format.format)) {
        TRY(quantise(item, writer));
      } else {
        TRY(widen(item, writer));
      }
      done_reading(*item.tensor);
      read += item.tensor->bytes.size();
      done.tensors += 1;
      done.int8 += !item.as_is && item.format.format == WeightFormat::kInt8;
      done.int4 += !item.as_is && item.format.format == WeightFormat::kInt4;
      if (options_.progress) options_.progress(read, all);
    }
    done.bytes_before = source_.total_bytes();
    done.bytes_after = writer->written_bytes();
    return done;
  }

  // Whether any tensor became int4: then config.json says so.
  bool any_int4() const {
    return std::any_of(items_.begin(), items_.end(), [](const Item& item) {
      return !item.as_is && item.format.format == WeightFormat::kInt4;
    });
  }

 private:
  void add_tensor(const TensorSpec& spec) {
    Item item{spec.name, source_.find(spec.name), {}, false};
    CHECK(item.tensor != nullptr, "{} was promised by Checkpoint::open", spec.name);
    const auto columns = static_cast<uint32_t>(columns_of(*item.tensor));
    const auto wanted = quantised_format(spec.name, columns, options_.weights, options_.group);
    if (wanted) {
      item.format = *wanted;
    } else {
      item.as_is = is_plain(*item.tensor);
    }
    items_.push_back(std::move(item));
  }

  Status copy(const Item& item, CheckpointWriter* writer) const {
    base::ByteView rest = item.tensor->bytes;
    while (!rest.empty()) {
      const base::ByteView piece = rest.first(std::min<size_t>(rest.size(), 4 * kPieceValues));
      TRY(writer->write(item.name, piece));
      rest = rest.subspan(piece.size());
    }
    return {};
  }

  // Calls part(first row, rows) over the whole matrix in pieces.
  template <class Part>
  Status each_piece(const Item& item, Part part) const {
    const auto& shape = item.tensor->shape;
    const uint64_t rows = shape.size() == 2 ? shape[0] : 1;
    const uint64_t most = std::max<uint64_t>(1, kPieceValues / columns_of(*item.tensor));
    for (uint64_t at = 0; at < rows; at += most) TRY(part(at, std::min(most, rows - at)));
    return {};
  }

  Status widen(const Item& item, CheckpointWriter* writer) const {
    std::vector<float> values;
    return each_piece(item, [&](uint64_t at, uint64_t rows) -> Status {
      values.resize(rows * columns_of(*item.tensor));
      TRY(read_rows(source_, item.name, at, rows, values.data()));
      return writer->write(item.name, std::as_bytes(std::span<const float>(values)));
    });
  }

  // Codes go out as they are made; the scales of the whole tensor follow.
  Status quantise(const Item& item, CheckpointWriter* writer) const {
    const auto columns = static_cast<uint32_t>(columns_of(*item.tensor));
    const uint64_t in_row = scales_in_row(item.format, columns);
    std::vector<float> scales(item.tensor->shape[0] * in_row);
    std::vector<int8_t> codes;
    TRY(each_piece(item, [&](uint64_t at, uint64_t rows) -> Status {
      codes.resize(rows * columns);
      float* to = scales.data() + at * in_row;
      TRY(load_codes(source_, item.name, item.format, at, rows, codes.data(), to));
      for (uint64_t i = 0; i < rows * in_row; ++i)
        if (!std::isfinite(to[i]))
          return fail(Code::kCorrupt, "{}: tensor {} has values that are not finite, near row {}",
                      item.tensor->file, item.name, at + i / in_row);
      if (item.format.format == WeightFormat::kInt4) pack(&codes);
      return writer->write(item.name, std::as_bytes(std::span<const int8_t>(codes)));
    }));
    return writer->write(item.name + "_scale", std::as_bytes(std::span<const float>(scales)));
  }

  // Two codes a byte, in place: the even input in the low nibble, plus 8.
  static void pack(std::vector<int8_t>* codes) {
    for (size_t i = 0; i < codes->size(); i += 2) {
      const int pair = ((*codes)[i] + 8) | (((*codes)[i + 1] + 8) << 4);
      (*codes)[i / 2] = static_cast<int8_t>(pair);
    }
    codes->resize(codes->size() / 2);
  }

  const Checkpoint& source_;
  const ConvertOptions& options_;
  std::vector<Item> items_;
};

// What stands beside the weights and is the same for the converted model. Reference outputs are
// not: they are those of the source.
constexpr const char* kCompanions[] = {"generation_config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "tokenizer.model",
                                       "vocab.json",
                                       "merges.txt",
                                       "added_tokens.json",
                                       "special_tokens_map.json",
                                       "chat_template.jinja",
                                       "LICENSE",
                                       "LICENSE.txt",
                                       "LICENSE-PYTHON.txt"};

Status check_options(const std::string& source, const std::string& out,
                     const ConvertOptions& options) {
  if (options.weights != WeightChoice::kInt8 && options.weights != WeightChoice::kInt4)
    return fail(Code::kInvalidArgument, "weights must become int8 or int4");
  if (options.weights == WeightChoice::kInt4 && !is_int4_group(options.group))
    return fail(Code::kInvalidArgument, "a group of {} inputs is not offered: 32, 64 or 128",
                options.group);
  if (source == out) return fail(Code::kInvalidArgument, "{}: would replace itself", source);
  return {};
}

}  // namespace

Result<Converted> convert(const std::string& source, const std::string& out,
                          const ConvertOptions& options) {
  TRY(check_options(source, out, options));
  const Checkpoint checkpoint = TRY(Checkpoint::open(source));
  Converter converter(checkpoint, options);
  TRY(converter.check());
  const std::string config = TRY(read_file(source + "/config.json", /*limit=*/16 << 20));
  const std::string method =
      converter.any_int4()
          ? fmt::format(R"({{"quant_method": "int4", "group_size": {}, "symmetric": true}})",
                        options.group)
          : R"({"quant_method": "int8", "weight_scale": "channel"})";
  const std::string new_config = TRY(with_quantization_config(config, method));

  CheckpointWriter writer =
      TRY(CheckpointWriter::create(out, converter.plan(), options.shard_bytes));
  TRY(writer.add_file("config.json", new_config));
  for (const char* name : kCompanions) {
    const std::string from = source + "/" + name;
    struct stat info = {};
    if (::stat(from.c_str(), &info) == 0) TRY(writer.copy_file(from, name));
  }
  const Converted done = TRY(converter.run(&writer));
  TRY(writer.finish());
  return done;
}

}  // namespace model
