#include "model/multiply_float.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

#include "model/multiply_fast.h"

namespace model {
namespace {

// Rows of x that a tile keeps in L2 while panels pass by.
constexpr size_t kRowBytes = 1u << 20;
constexpr uint32_t kRowUnit = 24;  // whole blocks of rows in every kernel
// A task's worth of multiply-adds, in vectors of 16: outweighs its claim by far.
constexpr uint64_t kLeastWork = 20000;
constexpr uint64_t kTasksAThread = 8;

// The first cache: ways of so many bytes, rows from which on they overflow, floats of a line.
constexpr size_t kSetBytes = 4096;
constexpr uint32_t kRowsOfASet = 5;
constexpr size_t kLineFloats = 16;
constexpr uint32_t kWorthCopying = 64;  // outputs

// Weights of a panel cost at least the time of their way from memory.
uint64_t panel_work(const PackedMatrix& w, uint32_t rows) {
  const uint32_t least = w.format() == WeightFormat::kBf16 ? 4 : 8;
  return uint64_t{w.inputs()} * std::max(rows, least);
}

// Can the row's outputs leave the range of f32 although the row and the weights are finite? Then
// infinity is no fault, and no checksum can tell. Also when either is not finite.
bool beyond_range(const PackedMatrix& w, const float* x) {
  for (uint32_t block = 0; block < w.check_blocks(); ++block) {
    const uint32_t panels = std::min(kCheckPanels, w.panels() - block * kCheckPanels);
    const float* bounds = w.bounds(block);
    double magnitude = 0;
    for (uint32_t k = 0; k < w.inputs(); ++k)
      magnitude +=
          std::fabs(double{x[k]}) * bounds[k] / (0x1p-24 * roundings(k, w.inputs(), panels));
    if (!(magnitude < double{FLT_MAX} / 2)) return true;
  }
  return false;
}

// Does the difference of the two sums stay within what rounding can do? Not a number does not.
bool agrees(const RowCheck& check, double sum, double slack) {
  return std::fabs(sum - check.expected) <= check.tolerance * slack;
}

bool row_verifies(const PackedMatrix& w, const float* x, const float* y, double slack) {
  for (uint32_t block = 0; block < w.check_blocks(); ++block) {
    const uint32_t first = block * kCheckPanels * kPanel;
    RowCheck check;
    double sum = 0;
    expect_rows(w.sums(block), w.bounds(block), w.inputs(), x, 0, 1, &check, 0);
    sum_rows(y + first, 0, 1, std::min(kCheckPanels * kPanel, w.outputs() - first), &sum, 0);
    if (!agrees(check, sum, slack)) return false;
  }
  return true;
}

std::vector<float>& up_rows() {
  thread_local std::vector<float> rows;
  return rows;
}

}  // namespace

struct FloatRegion::Tile {
  uint32_t panel, panels, row, rows;
  uint32_t column;  // of the item's tiles
  uint32_t outputs;
};

FloatRegion::Workspace& FloatRegion::own_workspace() {
  thread_local Workspace own;
  return own;
}

void FloatRegion::take_workspace() {
  work_ = &own_workspace();
  if (work_->taken) {
    spare_ = std::make_unique<Workspace>();
    work_ = spare_.get();
  }
  work_->taken = true;
  work_->items.clear();
}

FloatRegion::FloatRegion(const Compute& compute, std::span<const Product> products)
    : compute_(compute) {
  take_workspace();
  for (const Product& p : products)
    if (!is_integer(p.w->format())) add({p.w, nullptr, p.x, p.x_stride, p.rows, p.y, p.y_stride});
  spread_rows();
  plan();
}

FloatRegion::FloatRegion(const Compute& compute, std::span<const GatedProduct> products)
    : compute_(compute) {
  take_workspace();
  for (const GatedProduct& p : products)
    if (!is_integer(p.gate->format()))
      add({p.gate, p.up, p.x, p.gate->inputs(), p.rows, p.y, p.gate->outputs()});
  spread_rows();
  plan();
}

FloatRegion::~FloatRegion() { work_->taken = false; }

void FloatRegion::add(const Item& item) {
  if (item.rows > 0) work_->items.push_back(item);
}

// Rows that stand a multiple of 4 KiB apart share one set of the first cache, which a block of rows
// and its panels overflow: such rows are read from a copy that stands a line more apart.
void FloatRegion::spread_rows() {
  const auto shares_sets = [this](const Item& item) {
    return item.rows >= kRowsOfASet && item.x_stride * sizeof(float) % kSetBytes == 0 &&
           item.w->outputs() >= kWorthCopying && !fast(item);
  };
  const auto stride_of = [](const Item& item) {
    return round_up_panel(item.w->inputs()) + kLineFloats;
  };
  size_t floats = 0;
  for (const Item& item : work_->items)
    if (shares_sets(item)) floats += size_t{item.rows} * stride_of(item);
  if (floats == 0) return;
  if (work_->rows.size() < floats) work_->rows.resize(floats);
  float* to = work_->rows.data();
  const float* former = nullptr;  // of the item before, when it was copied
  const Item* before = nullptr;
  for (Item& item : work_->items) {
    if (!shares_sets(item)) continue;
    const float* const x = item.x;
    const size_t stride = stride_of(item), from_stride = item.x_stride, inputs = item.w->inputs();
    item.x_stride = stride;
    if (former == x && before->rows == item.rows && before->w->inputs() == inputs) {
      item.x = before->x;
      continue;
    }
    const auto copy = [&](uint32_t task) {
      const uint32_t end = std::min(item.rows, (task + 1) * kRowUnit);
      for (uint32_t row = task * kRowUnit; row < end; ++row)
        std::copy_n(x + row * from_stride, inputs, to + row * stride);
    };
    compute_.threads.run((item.rows + kRowUnit - 1) / kRowUnit, copy);
    item.x = to;
    to += item.rows * stride;
    former = x;
    before = &item;
  }
}

// Tiles of at most the panels of one checksum and the rows that L2 holds; with several threads,
// smaller ones until each has some to claim.
void FloatRegion::plan() {
  uint64_t work = 0;
  for (const Item& item : work_->items)
    work += panel_work(*item.w, item.rows) * item.w->panels() * (item.up != nullptr ? 2 : 1);
  const uint64_t threads = compute_.threads.threads();
  const uint64_t goal =
      threads == 1 ? UINT64_MAX : std::max(kLeastWork, work / (threads * kTasksAThread));
  size_t sums = 0, checks = 0;
  for (Item& item : work_->items) {
    const auto held = static_cast<uint32_t>(kRowBytes / (item.w->inputs() * sizeof(float)));
    item.rows_a_task = std::min(item.rows, std::max(1u, held / kRowUnit) * kRowUnit);
    item.panels_a_task = kCheckPanels;
    const uint64_t both = item.up != nullptr ? 2 : 1;
    const auto too_much = [&] {
      return both * panel_work(*item.w, item.rows_a_task) * item.panels_a_task > goal;
    };
    while (item.panels_a_task > 4 && too_much()) item.panels_a_task /= 2;
    while (item.rows_a_task > 2 * kRowUnit && too_much())
      item.rows_a_task = (item.rows_a_task / 2 + kRowUnit - 1) / kRowUnit * kRowUnit;
    item.across = (item.w->panels() + item.panels_a_task - 1) / item.panels_a_task;
    item.first_task = tasks_;
    tasks_ += item.across * ((item.rows + item.rows_a_task - 1) / item.rows_a_task);
    for (size_t which = 0; which < both; ++which) {
      item.sums[which] = sums;
      item.checks[which] = checks;
      sums += size_t{item.rows} * item.across;
      checks += size_t{item.rows} * item.w->check_blocks();
    }
  }
  if (!compute_.integrity.verify()) return;
  work_->sums.resize(std::max(work_->sums.size(), sums));
  work_->checks.resize(std::max(work_->checks.size(), checks));
}

bool FloatRegion::fast(const Item& item) const {
  return compute_.mode == NumericsMode::kFast && item.rows >= kFastRows;
}

// Bounds are of this engine's tree. OpenBLAS may add all products of a row in one chain.
double FloatRegion::rounding_slack(const Item& item) const {
  if (!fast(item)) return 1;
  const uint32_t inputs = item.w->inputs();
  const uint32_t least = roundings(inputs - 1, inputs, 1);  // those of the bound, at least
  return static_cast<double>(least + inputs) / least;
}

void FloatRegion::multiply_tile(const Item& item, const PackedMatrix& w, const Tile& tile, float* y,
                                size_t y_stride) const {
  const Panels panels = w.panel_range(tile.panel, tile.panels);
  const float* x = item.x + tile.row * item.x_stride;
  if (fast(item)) {
    multiply_fast(panels, x, item.x_stride, tile.rows, y, y_stride);
  } else {
    multiply_panels(panels, x, item.x_stride, tile.rows, y, y_stride);
  }
}

// What finish() compares: the sum of the tile's outputs, and, in a checksum's first tile, what the
// sum of all its outputs must be.
void FloatRegion::check_tile(const Item& item, size_t which, const Tile& tile, const float* y,
                             size_t y_stride) const {
  const PackedMatrix& w = which == 0 ? *item.w : *item.up;
  sum_rows(y, y_stride, tile.rows, tile.outputs,
           work_->sums.data() + item.sums[which] + size_t{tile.row} * item.across + tile.column,
           item.across);
  if (tile.panel % kCheckPanels != 0) return;
  const uint32_t block = tile.panel / kCheckPanels, blocks = w.check_blocks();
  expect_rows(w.sums(block), w.bounds(block), w.inputs(), item.x + tile.row * item.x_stride,
              item.x_stride, tile.rows,
              work_->checks.data() + item.checks[which] + size_t{tile.row} * blocks + block,
              blocks);
}

void FloatRegion::run(uint32_t task) const {
  const auto after =
      std::upper_bound(work_->items.begin(), work_->items.end(), task,
                       [](uint32_t wanted, const Item& item) { return wanted < item.first_task; });
  const Item& item = *std::prev(after);
  task -= item.first_task;
  Tile tile{};
  tile.column = task % item.across;
  tile.panel = tile.column * item.panels_a_task;
  tile.panels = std::min(item.panels_a_task, item.w->panels() - tile.panel);
  tile.row = task / item.across * item.rows_a_task;
  tile.rows = std::min(item.rows_a_task, item.rows - tile.row);
  tile.outputs = std::min(item.w->outputs() - tile.panel * kPanel, tile.panels * kPanel);
  const bool check = compute_.integrity.verify() && !compute_.integrity.injecting();
  float* y = item.y + tile.row * item.y_stride + size_t{tile.panel} * kPanel;
  multiply_tile(item, *item.w, tile, y, item.y_stride);
  if (check) check_tile(item, 0, tile, y, item.y_stride);
  if (item.up == nullptr) return;
  std::vector<float>& up = up_rows();
  if (up.size() < size_t{tile.rows} * tile.outputs) up.resize(size_t{tile.rows} * tile.outputs);
  multiply_tile(item, *item.up, tile, up.data(), tile.outputs);
  if (check) check_tile(item, 1, tile, up.data(), tile.outputs);
  for (uint32_t row = 0; row < tile.rows; ++row, y += item.y_stride)
    silu_multiply({y, tile.outputs}, {up.data() + size_t{row} * tile.outputs, tile.outputs}, y);
}

// Computes one row anew, in full. Whether it verifies.
bool FloatRegion::compute_row(const Item& item, uint32_t row) const {
  const float* x = item.x + row * item.x_stride;
  float* y = item.y + row * item.y_stride;
  const auto compute = [&](const PackedMatrix& w, float* to) {
    multiply_panels(w.panel_range(0, w.panels()), x, item.x_stride, 1, to, item.y_stride);
    compute_.integrity.apply_fault(w, row, to);
    return row_verifies(w, x, to, 1);
  };
  bool good = compute(*item.w, y);
  if (item.up == nullptr) return good;
  std::vector<float> up(item.up->outputs());
  good = compute(*item.up, up.data()) && good;
  silu_multiply({y, up.size()}, up, y);
  return good;
}

// The sums that the row's tasks left.
bool FloatRegion::sums_agree(const Item& item, uint32_t row) const {
  const uint32_t blocks = item.w->check_blocks();
  const uint32_t tiles = kCheckPanels / item.panels_a_task;  // of a block
  const double slack = rounding_slack(item);
  for (size_t which = 0; which < (item.up != nullptr ? 2 : 1); ++which) {
    const double* sums = work_->sums.data() + item.sums[which] + size_t{row} * item.across;
    const RowCheck* checks = work_->checks.data() + item.checks[which] + size_t{row} * blocks;
    for (uint32_t block = 0, tile = 0; block < blocks; ++block) {
      double sum = 0;
      for (uint32_t i = 0; i < tiles && tile < item.across; ++i) sum += sums[tile++];
      if (!agrees(checks[block], sum, slack)) return false;
    }
  }
  return true;
}

void FloatRegion::finish() {
  Integrity& integrity = compute_.integrity;
  if (!integrity.verify()) return;
  for (const Item& item : work_->items) {
    integrity.count_rows(item.rows);
    for (uint32_t row = 0; row < item.rows; ++row) {
      bool good = true;
      if (!integrity.injecting()) {
        good = sums_agree(item, row);
      } else if (item.up != nullptr) {
        good = compute_row(item, row);
      } else {
        float* y = item.y + row * item.y_stride;
        integrity.apply_fault(*item.w, row, y);
        good = row_verifies(*item.w, item.x + row * item.x_stride, y, rounding_slack(item));
      }
      if (!good) repair(item, row);
    }
  }
}

void FloatRegion::repair(const Item& item, uint32_t row) {
  Integrity& integrity = compute_.integrity;
  const float* x = item.x + row * item.x_stride;
  const PackedMatrix* both[] = {item.w, item.up};
  for (const PackedMatrix* w : both)
    if (w != nullptr && beyond_range(*w, x)) return integrity.count_unverifiable();
  if (compute_row(item, row)) return integrity.count_transient();
  for (const PackedMatrix* w : both)
    if (w != nullptr && !w->intact())
      return integrity.break_down(fmt::format("the weights of {} changed in memory",
                                              w->name().empty() ? "a matrix" : w->name()));
  integrity.break_down(fmt::format("the arithmetic of this machine does not repeat ({})",
                                   item.w->name().empty() ? "a product" : item.w->name()));
}

}  // namespace model
