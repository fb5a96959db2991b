// The products with integer weights of one region (multiply.h): activations quantised once for each
// distinct x, panels dealt over the threads, every row verified. Between construction and finish()
// the caller runs every task once, on any thread.
//
// What is verified is exact (docs/NUMERICS.md, "Integrity"): the sum of all int32 accumulators of a
// row against the codes' product with the weights' checksum, the activations' codes against the
// sums they were quantised with, the scales against their sum, and the row as written against its
// bits as computed. Every single flipped bit in one of them is found.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/kernels_int.h"
#include "model/multiply.h"

namespace model {

class IntRegion {
 public:
  // Takes those of the products that have integer weights.
  IntRegion(const Compute& compute, std::span<const Product> products);
  IntRegion(const Compute& compute, std::span<const GatedProduct> products);
  IntRegion(const IntRegion&) = delete;
  IntRegion& operator=(const IntRegion&) = delete;
  ~IntRegion();

  uint32_t tasks() const { return tasks_; }
  void run(uint32_t task);
  // Verifies the rows; what does not verify is computed again, or the engine breaks down.
  void finish();

 private:
  struct Input {  // rows of x, quantised
    const float* x;
    size_t stride;
    CodeRows rows;
  };
  struct Item {
    const PackedMatrix* w;
    const PackedMatrix* up;  // null: a plain product
    size_t input;            // index into inputs_
    float* y;
    size_t y_stride;
    uint32_t task;        // its first
    size_t checks = 0;    // of its first row in its first task, index into checks_ and bits_
    size_t expected = 0;  // of its first row, index into expected_
    size_t scales = 0;    // of its first task, index into scales_
  };

  void add(const Item& item, const float* x, size_t x_stride, uint32_t rows);
  void quantise();
  void quantise_rows(const Input& input, size_t index, uint32_t begin, uint32_t count);
  // Panels [panel, panel + count) of the item's rows.  y: of the first of these panels
  void multiply(const Item& item, const CodeRows& rows, uint32_t panel, uint32_t count, float* y,
                size_t y_stride, const IntChecks& checks) const;
  uint32_t scale_sum(const Item& item) const;
  bool verified(const Item& item, uint32_t row) const;
  void repair(const Item& item, uint32_t row);

  const Compute& compute_;
  const IntKernels& kernels_;
  std::vector<Input> inputs_;
  std::vector<std::unique_ptr<CodeBuffer>> buffers_;  // of inputs_
  std::vector<Item> items_;
  uint32_t tasks_ = 0;
  // Σ of accumulators and of the bits of y, for each task and row; Σ of accumulators that a row
  // must have; Σ of the scales, for each task.
  std::vector<uint32_t> checks_, bits_, expected_, scales_;
};

}  // namespace model
