// Integrity: what one engine knows of arithmetic gone wrong (docs/NUMERICS.md, "Integrity"). A row
// of a product that does not verify is computed again: verified now, it was transient, counted and
// gone; else the weights are suspect and the engine is broken: its node gives its work away.
//
// Thread safety: counters and the verdict may be touched from any compute thread.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

namespace model {

class PackedMatrix;

class Integrity {
 public:
  // Verification on or off, for measuring what it costs. Set before the first product.
  explicit Integrity(bool verify = true) : verify_(verify) {}

  bool verify() const { return verify_; }
  uint64_t rows_checked() const { return rows_checked_.load(std::memory_order_relaxed); }
  // Rows that no checksum can judge: the input was not finite, or the outputs leave f32's range.
  uint64_t rows_unverifiable() const { return unverifiable_.load(std::memory_order_relaxed); }
  uint64_t transient_faults() const { return transient_.load(std::memory_order_relaxed); }
  bool broken() const { return broken_.load(std::memory_order_acquire); }
  std::string reason() const;  // why broken, for the log and the coordinator; empty when it is not

  void count_rows(uint64_t rows) { rows_checked_.fetch_add(rows, std::memory_order_relaxed); }
  void count_unverifiable() { unverifiable_.fetch_add(1, std::memory_order_relaxed); }
  void count_transient() { transient_.fetch_add(1, std::memory_order_relaxed); }
  // The first reason stays.
  void break_down(std::string reason);

  // Fault injection for tests: called with the finished product of one row before it is verified
  // (y: [outputs]), so that what comes out wrong can be made wrong. Null in service.
  using Fault = void (*)(void* context, const PackedMatrix& w, uint32_t row, float* y);
  void inject(Fault fault, void* context) { fault_ = fault, fault_context_ = context; }
  bool injecting() const { return fault_ != nullptr; }
  void apply_fault(const PackedMatrix& w, uint32_t row, float* y) const {
    if (fault_ != nullptr) fault_(fault_context_, w, row, y);
  }

 private:
  const bool verify_;
  std::atomic<uint64_t> rows_checked_{0}, unverifiable_{0}, transient_{0};
  std::atomic<bool> broken_{false};
  mutable std::mutex mutex_;
  std::string reason_;
  Fault fault_ = nullptr;
  void* fault_context_ = nullptr;
};

}  // namespace model
