#include "cluster/model_commands.h"

#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>

#include "model/convert.h"
#include "model/kv_layout.h"
#include "model/make_checkpoint.h"
#include "model/quality.h"
#include "model/tensor_digests.h"
#include "node/process.h"

namespace cluster {
namespace {

int complain(const base::Error& error) {
  fmt::print(stderr, "serval: {}\n", error.what);
  switch (error.code) {
    case base::Code::kNotFound:
    case base::Code::kCorrupt:
      return node::kExitModel;
    case base::Code::kInvalidArgument:
    case base::Code::kUnsupported:
      return node::kExitUsage;
    default:
      return node::kExitInternal;
  }
}

double seconds_since(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}
double megabytes(uint64_t bytes) { return static_cast<double>(bytes) / 1e6; }

// One line on stderr: on a terminal it moves, in a log there is one every ten seconds.
class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)) {}
  void operator()(uint64_t done, uint64_t all) {
    const double now = seconds_since(begun_);
    if (done < all && now < next_) return;
    next_ = now + (terminal_ ? 0.2 : 10);
    const double share = all > 0 ? 100.0 * static_cast<double>(done) / static_cast<double>(all) : 0;
    fmt::print(stderr, "{}serval: {} {:.0f} %, {:.0f} MB/s{}", terminal_ ? "\r" : "", what_, share,
               megabytes(done) / std::max(now, 1e-3), terminal_ && done < all ? "  " : "\n");
    std::fflush(stderr);
  }
  double seconds() const { return seconds_since(begun_); }

 private:
  const std::string what_;
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  double next_ = 1;
};

void print_head(const model::TextLogits& before, const char* source) {
  fmt::print("\nQuality over {} positions in windows of {} tokens, against {}\n",
             before.positions(), before.window, source);
  fmt::print("{:<34}{:>10}{:>10}{:>10}{:>12}{:>10}{:>10}\n", "", "mean KL", "p99 KL", "max KL",
             "same top 1", "loss src", "loss");
}

void print_quality(const char* what, const model::QualityReport& report) {
  fmt::print("{:<34}{:>10.5f}{:>10.5f}{:>10.5f}{:>10.2f} %{:>10.4f}{:>10.4f}\n", what,
             report.mean_kl, report.p99_kl, report.largest_kl, 100 * report.top1_agreement,
             report.source_loss, report.converted_loss);
}

// The converted model as it is served, and with its weights widened: what the weights alone cost.
base::Status print_report(const ConvertCommand& command) {
  const model::Checkpoint source = TRY(model::Checkpoint::open(command.source));
  const model::Checkpoint converted = TRY(model::Checkpoint::open(command.out));
  const std::vector<base::TokenId> tokens = TRY(model::quality_tokens(source, command.texts));
  model::QualityOptions options;
  options.positions = command.positions;
  const model::TextLogits before =
      TRY(model::text_logits(source, model::WeightChoice::kAsStored, tokens, options));
  print_head(before, "the source");
  const struct {
    model::WeightChoice weights;
    std::string name;
  } runs[] = {{model::WeightChoice::kF32, command.weights + " weights, f32 activations"},
              {model::WeightChoice::kAsStored, command.weights + " as served"}};
  for (const auto& run : runs) {
    const model::TextLogits after =
        TRY(model::text_logits(converted, run.weights, tokens, options));
    print_quality(run.name.c_str(), model::compare_quality(before, after, tokens));
  }
  return {};
}

base::Status print_kv_report(const QualityCommand& command) {
  const model::Checkpoint checkpoint = TRY(model::Checkpoint::open(command.folder));
  const std::vector<base::TokenId> tokens = TRY(model::quality_tokens(checkpoint, command.texts));
  model::QualityOptions options;
  options.positions = command.positions;
  options.window = command.window;
  options.kv = model::KvType::kF32;
  const auto choice = model::WeightChoice::kAsStored;
  const model::TextLogits exact = TRY(model::text_logits(checkpoint, choice, tokens, options));
  print_head(exact, "KV in f32");
  for (const model::KvType kv : {model::KvType::kBf16, model::KvType::kInt8}) {
    options.kv = kv;
    const model::TextLogits rounded = TRY(model::text_logits(checkpoint, choice, tokens, options));
    const model::KvLayout layout(checkpoint.config(), kv);
    const std::string what =
        fmt::format("{} KV, {} B a token and layer", model::name_of(kv), layout.row_bytes());
    print_quality(what.c_str(), model::compare_quality(exact, rounded, tokens));
  }
  return {};
}

}  // namespace

int quality(const QualityCommand& command) {
  const base::Status printed = print_kv_report(command);
  return printed ? 0 : complain(printed.error());
}

int convert(const ConvertCommand& command) {
  model::ConvertOptions options;
  options.weights =
      command.weights == "int4" ? model::WeightChoice::kInt4 : model::WeightChoice::kInt8;
  options.group = command.group;
  Progress progress("converting");
  options.progress = [&progress](uint64_t done, uint64_t all) { progress(done, all); };
  const auto done = model::convert(command.source, command.out, options);
  if (!done) return complain(done.error());
  fmt::print(
      "{}: {} tensors, {} of them int8 and {} int4; {:.1f} MB became {:.1f} MB in {:.1f} s\n",
      command.out, done->tensors, done->int8, done->int4, megabytes(done->bytes_before),
      megabytes(done->bytes_after), progress.seconds());
  if (!command.report) return 0;
  if (const base::Status reported = print_report(command); !reported)
    return complain(reported.error());
  return 0;
}

int make_checkpoint(const MakeCheckpointCommand& command) {
  model::MakeOptions options;
  options.seed = command.seed;
  options.dtype = command.dtype == "f32" ? model::Dtype::kF32 : model::Dtype::kBf16;
  Progress progress("writing");
  options.progress = [&progress](uint64_t done, uint64_t all) { progress(done, all); };
  const auto size = model::make_checkpoint(command.config, command.out, options);
  if (!size) return complain(size.error());
  const auto config = model::ModelConfig::load(command.out);
  if (!config) return complain(config.error());
  fmt::print("{}: {} tensors, {} elements, {} active a token, in {:.1f} s\n", command.out,
             size->tensors, size->elements, model::active_elements(*config), progress.seconds());
  return 0;
}

int write_digests(const std::string& folder) {
  const auto checkpoint = model::Checkpoint::open(folder);
  if (!checkpoint) return complain(checkpoint.error());
  const base::Status written = model::TensorDigests::write(*checkpoint);
  if (!written) return complain(written.error());
  fmt::print("{}/{}: {} tensors\n", folder, model::kTensorDigestFile, checkpoint->tensors().size());
  return 0;
}

}  // namespace cluster
