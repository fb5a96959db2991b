#include "model/quality.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "model/forward.h"
#include "model/json.h"
#include "model/tokenizer.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;

constexpr uint64_t kLogitBytesMost = uint64_t{1} << 30;
constexpr uint64_t kTextBytesMost = 64 << 20;
constexpr uint32_t kChunk = 64;  // rows of a pass, so that logits of one pass stay small

// Logits of one sequence's positions, appended to `out`.
void run_window(Engine& engine, std::span<const TokenId> tokens, std::vector<float>* out) {
  const Shape& shape = engine.shape();
  KvPool pool(KvPool::blocks_for(static_cast<uint32_t>(tokens.size())),
              LayerRange{0, shape.kv_layers()}, shape.kv_row_bytes);
  const std::vector<BlockId> blocks = *pool.allocate(pool.total());
  Pass pass;
  for (uint32_t done = 0; done < tokens.size(); done += kChunk) {
    const uint32_t count = std::min(kChunk, static_cast<uint32_t>(tokens.size()) - done);
    const uint32_t back = std::min(done, shape.ngram_context);
    Segment segment;
    segment.count = count;
    segment.position = done;
    segment.kv = KvView{&pool, blocks};
    segment.context = tokens.subspan(done - back, back);
    const auto chunk = tokens.subspan(done, count);
    pass.tokens.assign(chunk.begin(), chunk.end());
    pass.segments.assign(1, segment);
    InlineSite site(engine);
    const bool ok = base::run_inline(forward(engine, LayerRange{0, shape.layers}, pass, site));
    CHECK(ok, "a pass in one process cannot be given up");
    std::vector<uint32_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0u);
    const size_t at = out->size();
    out->resize(at + size_t{count} * shape.vocab);
    engine.head(pass, rows, std::span(*out).subspan(at));
  }
}

// log Σ e^logit, in f64.
double log_total(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(logit - most);
  return most + std::log(total);
}

double divergence(std::span<const float> p, std::span<const float> q) {
  const double p_total = log_total(p), q_total = log_total(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_total;
    kl += std::exp(log_p) * (log_p - (q[i] - q_total));
  }
  return std::max(kl, 0.0);  // rounding can leave it just below
}

size_t top(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Result<std::vector<TokenId>> golden_tokens(const std::string& folder) {
  const std::string path = folder + "/golden.safetensors";
  auto file = Safetensors::open(path);
  if (!file)
    return fail(
        Code::kNotFound,
        "{}: has no samples.txt with a tokenizer.json and no golden.safetensors: give a text",
        folder);
  const auto found = file->tensors().find("input_ids");
  if (found == file->tensors().end() || found->second.dtype != Dtype::kI64)
    return fail(Code::kCorrupt, "{}: has no input_ids", path);
  std::vector<int64_t> ids(found->second.elements());
  std::memcpy(ids.data(), found->second.bytes.data(), ids.size() * sizeof(int64_t));
  std::vector<TokenId> tokens;
  for (const int64_t id : ids) tokens.push_back(static_cast<TokenId>(id));
  return tokens;
}

}  // namespace

Result<std::vector<TokenId>> quality_tokens(const Checkpoint& checkpoint,
                                            const std::vector<std::string>& files) {
  const std::string& folder = checkpoint.folder();
  std::vector<std::string> paths = files;
  if (files.empty() && read_file(folder + "/samples.txt", kTextBytesMost))
    paths.push_back(folder + "/samples.txt");
  std::vector<TokenId> tokens;
  if (auto tokenizer = Tokenizer::load(folder); tokenizer && !paths.empty()) {
    for (const std::string& path : paths) {
      const std::string text = TRY(read_file(path, kTextBytesMost));
      const std::vector<TokenId> more = tokenizer->encode(text);
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
  } else if (!files.empty()) {
    return fail(Code::kNotFound, "{}: a text needs the tokenizer: {}", folder,
                tokenizer.error().what);
  } else {
    tokens = TRY(golden_tokens(folder));
  }
  if (tokens.size() < 2) return fail(Code::kInvalidArgument, "{}: the text is too short", folder);
  for (const TokenId token : tokens)
    if (token >= checkpoint.config().vocab)
      return fail(Code::kCorrupt, "{}: token {} of the text is not in the vocabulary", folder,
                  token);
  return tokens;
}

Result<TextLogits> text_logits(const Checkpoint& checkpoint, WeightChoice weights,
                               std::span<const TokenId> tokens, const QualityOptions& options) {
  EngineOptions engine_options;
  engine_options.weights = weights;
  engine_options.threads = options.threads;
  engine_options.kv = options.kv;
  const auto engine = TRY(make_local_engine(checkpoint, engine_options));
  TextLogits out;
  out.vocab = engine->shape().vocab;
  out.window = std::min(options.window, engine->shape().max_context);
  const uint64_t affordable = kLogitBytesMost / sizeof(float) / out.vocab;
  const auto positions =
      static_cast<size_t>(std::min<uint64_t>({affordable, options.positions, tokens.size()}));
  out.values.reserve(positions * out.vocab);
  for (size_t at = 0; at < positions; at += out.window)
    run_window(*engine, tokens.subspan(at, std::min<size_t>(out.window, positions - at)),
               &out.values);
  if (!all_finite(out.values))
    return fail(Code::kCorrupt, "{}: gives logits that are not finite", checkpoint.folder());
  return out;
}

QualityReport compare_quality(const TextLogits& source, const TextLogits& converted,
                              std::span<const TokenId> tokens) {
  CHECK(source.values.size() == converted.values.size() && source.vocab == converted.vocab &&
            source.window == converted.window && source.positions() > 0,
        "logits of {} and of {} positions", source.positions(), converted.positions());
  QualityReport report;
  report.positions = source.positions();
  std::vector<double> kls;
  uint32_t agreed = 0, targets = 0;
  for (uint32_t i = 0; i < report.positions; ++i) {
    const size_t at = size_t{i} * source.vocab;
    const auto p = std::span(source.values).subspan(at, source.vocab);
    const auto q = std::span(converted.values).subspan(at, source.vocab);
    kls.push_back(divergence(p, q));
    agreed += top(p) == top(q);
    if ((i + 1) % source.window == 0 || i + 1 == report.positions) continue;
    report.source_loss += log_total(p) - p[tokens[i + 1]];
    report.converted_loss += log_total(q) - q[tokens[i + 1]];
    ++targets;
  }
  const double n = report.positions;
  report.mean_kl = std::accumulate(kls.begin(), kls.end(), 0.0) / n;
  std::sort(kls.begin(), kls.end());
  report.largest_kl = kls.back();
  report.p99_kl = kls[(kls.size() - 1) * 99 / 100];
  report.top1_agreement = agreed / n;
  if (targets > 0) {
    report.source_loss /= targets;
    report.converted_loss /= targets;
  }
  return report;
}

}  // namespace model
