#include "model/verify.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>

#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/verify_draft.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using Verdict = VerifyRow::Verdict;

// The references are f32 runs of another implementation, whose own distance from f64 is up to 2e-5
// on logits of size 5 (report.json); two correct f32 engines therefore agree within 5e-5 there.
// Rounding grows with the values, so other tensors are allowed as much relative to their largest
// value. Wrong arithmetic moves logits by more than 1.
constexpr double kTolerance = 5e-5;

// --- reading the references

struct References {
  std::map<std::string, const Tensor*> tensors;  // ordered: the report is in this order

  const Tensor* find(const std::string& name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : it->second;
  }
};

template <class T>
std::vector<T> values_of(const Tensor& tensor, Dtype dtype) {
  if (tensor.dtype != dtype) return {};  // a length that nothing expects: the row fails
  std::vector<T> out(tensor.elements());
  std::memcpy(out.data(), tensor.bytes.data(), out.size() * sizeof(T));
  return out;
}
std::vector<float> floats(const Tensor& tensor) { return values_of<float>(tensor, Dtype::kF32); }
std::vector<int64_t> integers(const Tensor& tensor) {
  if (tensor.dtype == Dtype::kI64) return values_of<int64_t>(tensor, Dtype::kI64);
  const std::vector<int32_t> narrow = values_of<int32_t>(tensor, Dtype::kI32);
  return {narrow.begin(), narrow.end()};
}

// --- comparing

// Only finite reference values are compared; where the reference has none, any value is right.
VerifyRow compare(const std::string& name, const Tensor& reference, std::span<const float> got,
                  double tolerance, bool relative) {
  VerifyRow row;
  row.tensor = name;
  row.tolerance = tolerance;
  const std::vector<float> want = floats(reference);
  if (want.size() != got.size() || want.empty()) {
    row.note = fmt::format("{} values, the reference has {}", got.size(), want.size());
    row.largest_difference = std::numeric_limits<double>::infinity();
    return row;
  }
  double largest_value = 0;
  size_t where = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(want[i])) continue;
    largest_value = std::max(largest_value, std::abs(static_cast<double>(want[i])));
    double difference = std::abs(static_cast<double>(want[i]) - static_cast<double>(got[i]));
    if (std::isnan(difference)) difference = std::numeric_limits<double>::infinity();
    if (difference <= row.largest_difference) continue;
    row.largest_difference = difference;
    where = i;
  }
  if (relative) row.tolerance = tolerance * std::max(1.0, largest_value);
  row.verdict = row.largest_difference <= row.tolerance ? Verdict::kPassed : Verdict::kFailed;
  const size_t width = reference.shape.back();
  row.note = fmt::format("largest at [{}, {}]: {} for {}", where / width, where % width, got[where],
                         want[where]);
  return row;
}

VerifyRow compare_discrete(const std::string& name, const Tensor& reference,
                           const std::vector<int64_t>& got) {
  VerifyRow row;
  row.tensor = name;
  const std::vector<int64_t> want = integers(reference);
  if (want.size() != got.size() || want.empty()) {
    row.note = fmt::format("{} values, the reference has {}", got.size(), want.size());
    return row;
  }
  size_t wrong = 0, first = 0;
  for (size_t i = want.size(); i > 0; --i) {
    if (want[i - 1] == got[i - 1]) continue;
    ++wrong;
    first = i - 1;
  }
  row.largest_difference = static_cast<double>(wrong);
  row.verdict = wrong == 0 ? Verdict::kPassed : Verdict::kFailed;
  if (wrong > 0)
    row.note = fmt::format("{} of {} differ, first [{}]: {} for {}", wrong, want.size(), first,
                           got[first], want[first]);
  return row;
}

VerifyRow row_with(const std::string& name, Verdict verdict, std::string note) {
  VerifyRow row;
  row.tensor = name;
  row.verdict = verdict;
  row.note = std::move(note);
  return row;
}
VerifyRow not_yet(const std::string& name) {
  return row_with(name, Verdict::kNotYetChecked, "no check knows this tensor");
}

// --- running

// Everything that one pass over a prompt shows.
struct Trace final : Probe {
  explicit Trace(size_t prompt) : tokens(prompt) {}
  void ngram_ids(std::span<const uint64_t> ids) override { ngram.assign(ids.begin(), ids.end()); }
  void index_scores(uint32_t layer, uint32_t row, std::span<const float> values) override {
    std::vector<float>& all = scores[layer];
    all.resize(tokens * tokens, -std::numeric_limits<float>::infinity());
    std::copy(values.begin(), values.end(), all.begin() + static_cast<ptrdiff_t>(row * tokens));
  }
  void selected(uint32_t layer, uint32_t row, std::span<const uint32_t> positions) override {
    std::vector<int64_t>& mask = selections[layer];
    mask.resize(tokens * tokens, 0);
    for (uint32_t position : positions) mask[row * tokens + position] = 1;
  }

  size_t tokens;
  std::vector<int64_t> ngram;
  std::map<uint32_t, std::vector<float>> scores;        // [layer] → [tokens, tokens]
  std::map<uint32_t, std::vector<int64_t>> selections;  // [layer] → [tokens, tokens], 0 or 1
  std::vector<float> embedded, logits, final_hidden;
  std::vector<std::vector<float>> hidden;  // [layer] → [tokens, hidden]
  std::vector<std::vector<int64_t>> expert_ids;
  std::vector<std::vector<float>> expert_weights;
};

// The whole prompt in one pass, layer by layer. `rows`: whose logits are wanted.
Trace trace_of(Engine& engine, const std::vector<TokenId>& prompt, std::span<const uint32_t> rows) {
  const Shape& shape = engine.shape();
  Trace trace(prompt.size());
  const auto count = static_cast<uint32_t>(prompt.size());
  KvPool pool(KvPool::blocks_for(count), LayerRange{0, shape.layers}, shape.kv_row_bytes);
  const std::vector<BlockId> blocks = *pool.allocate(pool.total());
  Pass pass;
  pass.tokens = prompt;
  pass.segments.resize(1);
  pass.segments[0].count = count;
  pass.segments[0].kv = KvView{&pool, blocks};

  engine.set_probe(&trace);
  engine.embed(pass);
  trace.embedded = pass.h;
  InlineSite site(engine);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    base::run_inline(forward(engine, LayerRange{layer, layer + 1}, pass, site));
    trace.hidden.push_back(pass.h);
    trace.expert_ids.emplace_back(pass.expert_ids.begin(), pass.expert_ids.end());
    trace.expert_weights.push_back(pass.expert_weights);
  }
  trace.logits.resize(rows.size() * shape.vocab);
  engine.head(pass, rows, trace.logits, &trace.final_hidden);
  engine.set_probe(nullptr);
  return trace;
}

std::vector<uint32_t> up_to(size_t count) {
  std::vector<uint32_t> rows(count);
  for (uint32_t i = 0; i < count; ++i) rows[i] = i;
  return rows;
}

Generated greedy(Engine& engine, const std::vector<TokenId>& prompt, uint32_t tokens) {
  base::Sampling sampling;
  sampling.temperature = 0;
  sampling.max_tokens = tokens;
  sampling.ignore_eos = true;
  sampling.top_logprobs = 2;
  return generate(engine, prompt, sampling);
}

// The prompt of a reference, checked against the model; empty if it is not usable.
std::vector<TokenId> prompt_of(const References& references, const std::string& name,
                               const Shape& shape) {
  const Tensor* tensor = references.find(name);
  if (tensor == nullptr) return {};
  const std::vector<int64_t> ids = integers(*tensor);
  if (ids.size() >= shape.max_context) return {};
  for (int64_t id : ids)
    if (id < 0 || id >= static_cast<int64_t>(shape.vocab)) return {};
  return {ids.begin(), ids.end()};
}

// A check makes the row of the tensor that it is registered for.
using Check = std::function<VerifyRow(const std::string& name, const Tensor& reference)>;
using Checks = std::map<std::string, Check>;

Check close_to(const std::vector<float>& got, bool relative) {
  return [&got, relative](const std::string& name, const Tensor& reference) {
    return compare(name, reference, got, kTolerance, relative);
  };
}
Check equal_to(const std::vector<int64_t>& got) {
  return [&got](const std::string& name, const Tensor& reference) {
    return compare_discrete(name, reference, got);
  };
}
// An input of the run: what was read is what is compared, so only its use can be wrong.
VerifyRow input_row(const std::string& name, const Tensor&) {
  return row_with(name, Verdict::kPassed, "the prompt");
}
Check greedy_check(Engine& engine, const std::vector<TokenId>& prompt) {
  return [&engine, &prompt](const std::string& name, const Tensor& reference) {
    const Generated out = greedy(engine, prompt, static_cast<uint32_t>(reference.elements()));
    return compare_discrete(name, reference, {out.tokens.begin(), out.tokens.end()});
  };
}
// The distance of the best and the second logit at each step, read from their logprobs.
Check gap_check(Engine& engine, const std::vector<TokenId>& prompt) {
  return [&engine, &prompt](const std::string& name, const Tensor& reference) {
    const Generated out = greedy(engine, prompt, static_cast<uint32_t>(reference.elements()));
    std::vector<float> gaps;
    for (const base::TokenLogprobs& step : out.logprobs)
      gaps.push_back(step.top[0].second - step.top[1].second);
    return compare(name, reference, gaps, 2 * kTolerance, false);  // two logits
  };
}

void report(const References& references, const std::string& prefix, const Checks& checks,
            std::vector<VerifyRow>& rows) {
  for (const auto& [name, tensor] : references.tensors) {
    if (!name.starts_with(prefix)) continue;
    const auto check = checks.find(name.substr(prefix.size()));
    rows.push_back(check == checks.end() ? not_yet(name) : check->second(name, *tensor));
  }
}

// golden.safetensors: every value of one pass.
base::Result<VerifyReport> verify_golden(const References& references, Engine& engine) {
  const std::vector<TokenId> prompt = prompt_of(references, "input_ids", engine.shape());
  if (prompt.empty()) return fail(Code::kCorrupt, "golden.safetensors: no usable input_ids");
  Trace trace = trace_of(engine, prompt, up_to(prompt.size()));
  Checks checks;
  checks["input_ids"] = input_row;
  checks["logits"] = close_to(trace.logits, /*relative=*/false);
  checks["embed_out"] = close_to(trace.embedded, true);
  checks["final_hidden"] = close_to(trace.final_hidden, true);
  checks["greedy_8"] = greedy_check(engine, prompt);
  checks["ngram_ids"] = equal_to(trace.ngram);
  for (uint32_t layer = 0; layer < engine.shape().layers; ++layer) {
    const std::string at = fmt::format("layer{}.", layer);
    checks[at + "hidden_out"] = close_to(trace.hidden[layer], true);
    checks[at + "topk_ids_sorted"] = equal_to(trace.expert_ids[layer]);
    checks[at + "topk_weights_sorted"] = close_to(trace.expert_weights[layer], true);
    checks[at + "lsa_selected_mask"] = equal_to(trace.selections[layer]);
    checks[at + "index_scores"] = close_to(trace.scores[layer], true);
  }
  // The drafts start from the reference's own final rows: a chain of steps amplifies the trunk's
  // rounding, which final_hidden is checked for, and the tolerance here is the block's own.
  const Tensor* given = references.find("final_hidden");
  std::vector<float> start = given != nullptr ? floats(*given) : trace.final_hidden;
  if (start.size() != trace.final_hidden.size()) start = trace.final_hidden;
  // How later steps choose positions, in three versions (DraftIndex).
  const std::span<const float> logits(trace.logits);
  const TokenId bonus = best_of(logits.last(engine.shape().vocab));
  const auto drafted = [&](DraftIndex later) {
    return draft_trace(engine, prompt, start, bonus, later);
  };
  const DraftTrace append = drafted(DraftIndex::kReuseAppend);
  const DraftTrace exact = drafted(DraftIndex::kReuseExact);
  const DraftTrace fresh = drafted(DraftIndex::kFresh);
  checks["mtp.step1_logits_all_rows"] = close_to(append.first_logits, false);
  checks["mtp.draft_logits"] = close_to(append.logits, false);
  checks["mtp.bonus_and_draft_tokens"] = equal_to(append.tokens);
  checks["mtp.exact_reuse.draft_logits"] = close_to(exact.logits, false);
  checks["mtp.exact_reuse.tokens"] = equal_to(exact.tokens);
  checks["mtp.no_cli.draft_logits"] = close_to(fresh.logits, false);
  checks["mtp.no_cli.tokens"] = equal_to(fresh.tokens);
  VerifyReport out;
  report(references, "", checks, out.rows);
  return out;
}

// reference.safetensors of the built-in model: the ends of several prompts, and greedy answers.
base::Result<VerifyReport> verify_prompts(const References& references, Engine& engine) {
  VerifyReport out;
  uint32_t known = 0;
  for (;; ++known) {
    const std::string prefix = fmt::format("prompt{}.", known);
    if (references.find(prefix + "input_ids") == nullptr) break;
    const std::vector<TokenId> prompt = prompt_of(references, prefix + "input_ids", engine.shape());
    if (prompt.empty())
      return fail(Code::kCorrupt, "reference.safetensors: {}input_ids is not usable", prefix);
    const size_t hidden = engine.shape().hidden, vocab = engine.shape().vocab;
    const Trace trace = trace_of(engine, prompt, up_to(prompt.size()));
    const std::vector<float> last_logits(trace.logits.end() - vocab, trace.logits.end());
    const std::vector<float> last_hidden(trace.final_hidden.end() - hidden,
                                         trace.final_hidden.end());
    const DraftTrace drafted = draft_trace(engine, prompt, trace.final_hidden, best_of(last_logits),
                                           DraftIndex::kReuseAppend);
    Checks checks;
    checks["input_ids"] = input_row;
    checks["last_logits"] = close_to(last_logits, false);
    checks["final_hidden_last"] = close_to(last_hidden, true);
    checks["mtp_bonus_and_drafts"] = equal_to(drafted.tokens);
    checks["greedy_32"] = greedy_check(engine, prompt);
    checks["greedy_top2_gap"] = gap_check(engine, prompt);
    report(references, prefix, checks, out.rows);
  }
  for (const auto& [name, tensor] : references.tensors) {  // of no prompt that was run
    const auto is = [&name = name](const VerifyRow& row) { return row.tensor == name; };
    if (std::none_of(out.rows.begin(), out.rows.end(), is)) out.rows.push_back(not_yet(name));
  }
  if (known == 0) return fail(Code::kCorrupt, "reference.safetensors: no prompt0.input_ids");
  return out;
}

}  // namespace

bool VerifyReport::passed() const {
  return std::none_of(rows.begin(), rows.end(),
                      [](const VerifyRow& row) { return row.verdict == Verdict::kFailed; });
}

base::Result<VerifyReport> verify(const std::string& folder, EngineKind kind) {
  const Checkpoint checkpoint = TRY(Checkpoint::open(folder));
  const std::string golden = folder + "/golden.safetensors";
  const std::string prompts = folder + "/reference.safetensors";
  const bool is_golden = std::filesystem::exists(golden);
  if (!is_golden && !std::filesystem::exists(prompts))
    return fail(Code::kNotFound, "{}: neither golden.safetensors nor reference.safetensors",
                folder);
  const Safetensors file = TRY(Safetensors::open(is_golden ? golden : prompts));
  References references;
  for (const auto& [name, tensor] : file.tensors()) references.tensors[name] = &tensor;

  EngineOptions options;
  options.kv = KvType::kF32;             // as the references were made,
  options.weights = WeightChoice::kF32;  // of dequantised weights
  options.mtp = true;
  const std::unique_ptr<Engine> engine =
      TRY(kind == EngineKind::kLocal ? make_local_engine(checkpoint, options)
                                     : make_reference_engine(checkpoint, options));
  return is_golden ? verify_golden(references, *engine) : verify_prompts(references, *engine);
}

}  // namespace model
