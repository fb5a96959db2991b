// The products with float weights of one region (multiply.h): cut into tiles of panels and rows
// that fit the caches and keep the threads busy, every row verified against the weights' checksums
// (kernels_check.h). Between construction and finish() the caller runs every task once, on any
// thread.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/kernels_check.h"
#include "model/multiply.h"

namespace model {

class FloatRegion {
 public:
  // Takes those of the products that have float weights.
  FloatRegion(const Compute& compute, std::span<const Product> products);
  FloatRegion(const Compute& compute, std::span<const GatedProduct> products);
  FloatRegion(const FloatRegion&) = delete;
  FloatRegion& operator=(const FloatRegion&) = delete;
  ~FloatRegion();

  uint32_t tasks() const { return tasks_; }
  void run(uint32_t task) const;
  // Verifies the rows; what does not verify is computed again, or the engine breaks down.
  void finish();

 private:
  struct Item {
    const PackedMatrix* w;
    const PackedMatrix* up;  // null: a plain product
    const float* x;
    size_t x_stride;
    uint32_t rows;
    float* y;
    size_t y_stride;
    // tiles, column by column in a band of rows
    uint32_t first_task = 0, across = 0, panels_a_task = 0, rows_a_task = 0;
    // of the first row of w and of up: `across` sums and check_blocks() checks a row
    size_t sums[2] = {}, checks[2] = {};
  };
  struct Workspace {
    bool taken = false;
    std::vector<Item> items;
    std::vector<double> sums;
    std::vector<RowCheck> checks;
    std::vector<float> rows;  // copies of spread_rows()
  };
  struct Tile;

  static Workspace& own_workspace();
  void take_workspace();
  void add(const Item& item);
  void spread_rows();
  void plan();
  bool fast(const Item& item) const;
  void multiply_tile(const Item& item, const PackedMatrix& w, const Tile& tile, float* y,
                     size_t y_stride) const;
  void check_tile(const Item& item, size_t which, const Tile& tile, const float* y,
                  size_t y_stride) const;
  double rounding_slack(const Item& item) const;
  bool sums_agree(const Item& item, uint32_t row) const;
  bool compute_row(const Item& item, uint32_t row) const;
  void repair(const Item& item, uint32_t row);

  const Compute& compute_;
  Workspace* work_ = nullptr;
  std::unique_ptr<Workspace> spare_;  // when the thread's own is taken
  uint32_t tasks_ = 0;
};

}  // namespace model
