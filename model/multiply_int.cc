#include "model/multiply_int.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace model {
namespace {

// Panels that a thread claims at a time: enough work to outweigh the claim, few enough to share a
// narrow matrix.
constexpr uint32_t kPanelsATask = 6;  // whole blocks of every instruction set
uint32_t tasks_of(const PackedMatrix& w) { return (w.panels() + kPanelsATask - 1) / kPanelsATask; }

// Rows that are quantised at a time, and values from which on several threads do it.
constexpr uint32_t kRowsATask = 16;
constexpr size_t kWorthSharing = 1u << 16;

// Buffers of this thread that no region uses: their memory stays.
std::vector<std::unique_ptr<CodeBuffer>>& spare_buffers() {
  thread_local std::vector<std::unique_ptr<CodeBuffer>> spare;
  return spare;
}
std::unique_ptr<CodeBuffer> take_buffer() {
  auto& spare = spare_buffers();
  if (spare.empty()) return std::make_unique<CodeBuffer>();
  auto buffer = std::move(spare.back());
  spare.pop_back();
  return buffer;
}

// Two scratch areas of this thread, [2, n].
float* scratch_of(size_t n) {
  thread_local std::vector<float> scratch;
  if (scratch.size() < 2 * n) scratch.resize(2 * n);
  return scratch.data();
}

std::string describe(const PackedMatrix& w) {
  return fmt::format("{} weights [{}, {}]", name_of(w.format()), w.outputs(), w.inputs());
}

}  // namespace

IntRegion::IntRegion(const Compute& compute, std::span<const Product> products)
    : compute_(compute), kernels_(int_kernels()) {
  for (const Product& p : products)
    if (is_integer(p.w->format()))
      add({p.w, nullptr, 0, p.y, p.y_stride, 0}, p.x, p.x_stride, p.rows);
  quantise();
}

IntRegion::IntRegion(const Compute& compute, std::span<const GatedProduct> products)
    : compute_(compute), kernels_(int_kernels()) {
  for (const GatedProduct& p : products)
    if (is_integer(p.gate->format()))
      add({p.gate, p.up, 0, p.y, p.gate->outputs(), 0}, p.x, p.gate->inputs(), p.rows);
  quantise();
}

IntRegion::~IntRegion() {
  for (auto& buffer : buffers_) spare_buffers().push_back(std::move(buffer));
}

void IntRegion::add(const Item& item, const float* x, size_t x_stride, uint32_t rows) {
  if (rows == 0) return;
  const PackedMatrix& w = *item.w;
  CHECK(
      item.up == nullptr || (item.up->outputs() == w.outputs() && item.up->inputs() == w.inputs() &&
                             item.up->format() == w.format() && item.up->group() == w.group()),
      "gate and up of different shape or format");
  CHECK(w.code_sums().size() == w.inputs(), "{} without checksums", describe(w));
  const auto same = [&](const Input& input) {
    return input.x == x && input.stride == x_stride && input.rows.rows == rows &&
           input.rows.inputs == w.inputs();
  };
  auto found = std::find_if(inputs_.begin(), inputs_.end(), same);
  if (found == inputs_.end()) {
    buffers_.push_back(take_buffer());
    inputs_.push_back({x, x_stride, buffers_.back()->resize(rows, w.inputs())});
    found = inputs_.end() - 1;
  }
  Item& added = items_.emplace_back(item);
  added.input = static_cast<size_t>(found - inputs_.begin());
  added.task = tasks_;
  added.checks = checks_.size();
  added.expected = expected_.size();
  tasks_ += tasks_of(w);
  if (!compute_.integrity.verify()) return;
  checks_.resize(checks_.size() + size_t{tasks_of(w)} * rows);
  bits_.resize(checks_.size());
  added.scales = scales_.size();
  scales_.resize(scales_.size() + tasks_of(w));
  expected_.resize(expected_.size() + rows);
}

void IntRegion::quantise_rows(const Input& input, size_t index, uint32_t begin, uint32_t count) {
  CodeRows rows = input.rows.from(begin);
  rows.rows = count;
  kernels_.quantise(input.x + begin * input.stride, input.stride, rows);
  if (!compute_.integrity.verify()) return;
  std::vector<uint32_t> up(count);
  for (const Item& item : items_) {
    if (item.input != index) continue;
    uint32_t* expected = expected_.data() + item.expected + begin;
    kernels_.expect(rows, *item.w, expected);
    if (item.up == nullptr) continue;
    kernels_.expect(rows, *item.up, up.data());
    for (uint32_t r = 0; r < count; ++r) expected[r] += up[r];
  }
}

void IntRegion::quantise() {
  size_t values = 0;
  uint32_t tasks = 0;
  const auto tasks_for = [](const Input& input) {
    return (input.rows.rows + kRowsATask - 1) / kRowsATask;
  };
  for (const Input& input : inputs_) {
    values += size_t{input.rows.rows} * input.rows.inputs;
    tasks += tasks_for(input);
  }
  const auto run = [&](uint32_t task) {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const uint32_t own = tasks_for(inputs_[i]);
      if (task >= own) {
        task -= own;
        continue;
      }
      const uint32_t begin = task * kRowsATask;
      quantise_rows(inputs_[i], i, begin, std::min(kRowsATask, inputs_[i].rows.rows - begin));
      return;
    }
  };
  if (values >= kWorthSharing) {
    compute_.threads.run(tasks, run);
  } else {
    for (uint32_t task = 0; task < tasks; ++task) run(task);
  }
}

void IntRegion::multiply(const Item& item, const CodeRows& rows, uint32_t panel, uint32_t count,
                         float* y, size_t y_stride, const IntChecks& checks) const {
  const CodePanels w = panels_of_codes(*item.w, panel, count);
  if (item.up == nullptr) {
    kernels_.multiply(w, rows, y, y_stride, checks);
    return;
  }
  const size_t width = size_t{count} * kPanel;
  float* const gate = scratch_of(rows.rows * width);
  float* const up = gate + rows.rows * width;
  const IntChecks halves{checks.rows, checks.scales, nullptr};
  kernels_.multiply(w, rows, gate, width, halves);
  kernels_.multiply(panels_of_codes(*item.up, panel, count), rows, up, width, halves);
  for (size_t r = 0; r < rows.rows; ++r) {
    float* const to = y + r * y_stride;
    silu_multiply({gate + r * width, w.outputs}, {up + r * width, w.outputs}, to);
    if (checks) checks.bits[r] += kernels_.bits({to, w.outputs});
  }
}

void IntRegion::run(uint32_t task) {
  const auto after = std::upper_bound(items_.begin(), items_.end(), task,
                                      [](uint32_t t, const Item& item) { return t < item.task; });
  const Item& item = *(after - 1);
  const CodeRows& rows = inputs_[item.input].rows;
  const uint32_t panel = (task - item.task) * kPanelsATask;
  const uint32_t count = std::min(kPanelsATask, item.w->panels() - panel);
  const bool verify = compute_.integrity.verify();
  const size_t slot = item.checks + size_t{task - item.task} * rows.rows;
  float* const y = item.y + size_t{panel} * kPanel;
  IntChecks checks;
  if (verify)
    checks = {checks_.data() + slot, scales_.data() + item.scales + task - item.task,
              bits_.data() + slot};
  multiply(item, rows, panel, count, y, item.y_stride, checks);
}

uint32_t IntRegion::scale_sum(const Item& item) const {
  return item.w->scale_sum() + (item.up == nullptr ? 0 : item.up->scale_sum());
}

bool IntRegion::verified(const Item& item, uint32_t row) const {
  const uint32_t rows = inputs_[item.input].rows.rows;
  uint32_t sum = 0, bits = 0;
  for (uint32_t task = 0; task < tasks_of(*item.w); ++task) {
    sum += checks_[item.checks + size_t{task} * rows + row];
    bits += bits_[item.checks + size_t{task} * rows + row];
  }
  return sum == expected_[item.expected + row] &&
         bits == kernels_.bits({item.y + row * item.y_stride, item.w->outputs()});
}

// From the row's values anew.
void IntRegion::repair(const Item& item, uint32_t row) {
  const Input& input = inputs_[item.input];
  CodeBuffer buffer;
  const CodeRows& again = buffer.resize(1, input.rows.inputs);
  kernels_.quantise(input.x + row * input.stride, input.stride, again);
  uint32_t expected = 0, up = 0, sum = 0, scales = 0, bits = 0;
  kernels_.expect(again, *item.w, &expected);
  if (item.up != nullptr) kernels_.expect(again, *item.up, &up);
  float* const y = item.y + row * item.y_stride;
  multiply(item, again, 0, item.w->panels(), y, item.y_stride, {&sum, &scales, &bits});
  compute_.integrity.apply_fault(*item.w, row, y);
  if (sum == expected + up && scales == scale_sum(item) &&
      bits == kernels_.bits({y, item.w->outputs()})) {
    compute_.integrity.count_transient();
    return;
  }
  for (const PackedMatrix* w : {item.w, item.up})
    if (w != nullptr && !w->codes_intact())
      return compute_.integrity.break_down(describe(*w) + " have changed in memory");
  compute_.integrity.break_down("a product with " + describe(*item.w) + " came out wrong twice");
}

void IntRegion::finish() {
  if (!compute_.integrity.verify()) return;
  std::vector<bool> intact;
  for (const Input& input : inputs_) intact.push_back(kernels_.intact(input.rows));
  for (const Item& item : items_) {
    const uint32_t rows = inputs_[item.input].rows.rows;
    const auto first = scales_.begin() + static_cast<ptrdiff_t>(item.scales);
    const uint32_t scales = std::accumulate(first, first + tasks_of(*item.w), uint32_t{0});
    const bool sound = intact[item.input] && scales == scale_sum(item);
    for (uint32_t row = 0; row < rows; ++row) {
      compute_.integrity.apply_fault(*item.w, row, item.y + row * item.y_stride);
      if (!sound || !verified(item, row)) repair(item, row);
    }
    compute_.integrity.count_rows(rows);
  }
}

}  // namespace model
