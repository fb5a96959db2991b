#include "model/matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "model/thread_pool.h"

namespace model {
namespace {

// Words of rows to words of a panel: out[k · 16 + i] = rows[i][k] for `count` ≤ 16 rows. A word is
// one f32 weight or two of bf16. Square blocks, so that a line of a row is read once.
void transpose_words(const std::byte* rows, size_t row_bytes, uint32_t count, size_t words,
                     uint32_t* out) {
  constexpr size_t kBlock = 16;
  size_t begin = 0;
  for (; begin + kBlock <= words; begin += kBlock) {
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t block[kBlock];
      std::memcpy(block, rows + i * row_bytes + begin * sizeof(uint32_t), sizeof block);
      uint32_t* to = out + begin * kPanel + i;
      for (size_t k = 0; k < kBlock; ++k) to[k * kPanel] = block[k];
    }
  }
  for (; begin < words; ++begin)
    for (uint32_t i = 0; i < count; ++i)
      std::memcpy(out + begin * kPanel + i, rows + i * row_bytes + begin * sizeof(uint32_t),
                  sizeof(uint32_t));
}

}  // namespace

const char* name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
  }
  return "?";
}

PackedMatrix::PackedMatrix(uint32_t outputs, uint32_t inputs, WeightFormat format, uint32_t group)
    : format_(format), outputs_(outputs), inputs_(inputs), group_(group) {
  if (is_integer(format)) {
    reserve_codes();
    return;
  }
  const size_t bytes = weight_bytes();
  buffer_ = AlignedBuffer(panels() * panel_elements(inputs, bytes) * bytes);
}

void PackedMatrix::set_stored_rows(uint32_t output, uint32_t count, const std::byte* w) {
  CHECK(!is_integer(format_), "{} weights are no floats", name_of(format_));
  CHECK(output + count <= outputs_, "row {} of {}", output + count - 1, outputs_);
  const size_t bytes = weight_bytes(), row_bytes = inputs_ * bytes;
  const size_t words = row_bytes / sizeof(uint32_t);
  for (const uint32_t end = output + count; output < end;) {
    const uint32_t rows = std::min(kPanel - output % kPanel, end - output);
    uint32_t* to = buffer_.as<uint32_t>() +
                   output / kPanel * (panel_elements(inputs_, bytes) * bytes / sizeof(uint32_t)) +
                   output % kPanel;
    transpose_words(w, row_bytes, rows, words, to);
    if (row_bytes % sizeof(uint32_t) != 0) {  // the last bf16 weight of an odd row, then zero
      for (uint32_t i = 0; i < rows; ++i) {
        uint16_t last;
        std::memcpy(&last, w + (i + 1) * row_bytes - sizeof last, sizeof last);
        to[words * kPanel + i] = last;
      }
    }
    output += rows;
    w += rows * row_bytes;
  }
}

void PackedMatrix::set_rows(uint32_t output, uint32_t count, const float* w) {
  if (format_ != WeightFormat::kBf16) {
    set_stored_rows(output, count, reinterpret_cast<const std::byte*>(w));
    return;
  }
  std::vector<uint16_t> rows(static_cast<size_t>(std::min(count, kPanel)) * inputs_);
  for (uint32_t done = 0; done < count;) {
    const uint32_t some = std::min(kPanel, count - done);
    for (size_t i = 0; i < static_cast<size_t>(some) * inputs_; ++i)
      rows[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(w[i]) >> 16);
    set_stored_rows(output + done, some, reinterpret_cast<const std::byte*>(rows.data()));
    done += some;
    w += static_cast<size_t>(some) * inputs_;
  }
}

Panels PackedMatrix::panel_range(uint32_t begin, uint32_t count) const {
  const size_t bytes = weight_bytes();
  const uint32_t end = std::min(begin + count, panels());
  return {.data = data() + begin * panel_elements(inputs_, bytes) * bytes,
          .outputs = std::min(outputs_, end * kPanel) - begin * kPanel,
          .inputs = inputs_,
          .bf16 = format_ == WeightFormat::kBf16,
          .following = panels() - end};
}

void PackedMatrix::seal(ThreadPool* threads) {
  if (is_integer(format_)) return seal_codes();
  const size_t stride = check_stride(inputs_);
  checks_ = AlignedBuffer(size_t{check_blocks()} * 2 * stride * sizeof(float));
  const auto sum = [&](uint32_t block) {
    float* sums = checks_.as<float>() + 2 * block * stride;
    sum_weights(panel_range(block * kCheckPanels, kCheckPanels), sums, sums + stride);
  };
  if (threads != nullptr) {
    threads->run(check_blocks(), sum);
  } else {
    for (uint32_t block = 0; block < check_blocks(); ++block) sum(block);
  }
  digest_ = float_digest();
}

uint64_t PackedMatrix::float_digest() const {
  return base::hash64({data(), bytes()}, base::hash64({checks_.as<std::byte>(), checks_.bytes()}));
}

bool PackedMatrix::intact() const {
  return is_integer(format_) ? codes_intact() : float_digest() == digest_;
}

}  // namespace model
