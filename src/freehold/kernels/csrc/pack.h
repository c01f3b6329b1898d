// Packed weights and the memory they live in.
#pragma once
#include <memory>
#include "freehold.h"

namespace freehold {

// Zeroed memory from the system, taken only as it is touched: by 2 MiB pages where `huge` and large enough (weights, read
// whole), else by small ones (a KV cache, filled here and there). Throws std::bad_alloc.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes, bool huge = true);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* base_ = nullptr;
  size_t mapped_ = 0;
  char* data_ = nullptr;
  size_t size_ = 0;
};

struct Packed {
  Matrix matrix{};
  Memory codes, scales, offsets;
  size_t bytes() const { return codes.size() + scales.size() + offsets.size(); }
};

// codes uint8 [rows, columns] below 2^bits; scales, offsets float32 [rows, ceil(columns/group)], offsets null if symmetric.
// Scales are kept as bfloat16 where that loses nothing. Throws std::invalid_argument.
std::shared_ptr<Packed> pack_quantized(const uint8_t* codes, const float* scales, const float* offsets, int rows, int columns,
                                       int bits, int group);
std::shared_ptr<Packed> pack_float(const float* data, int rows, int columns);
std::shared_ptr<Packed> pack_bf16(const uint16_t* data, int rows, int columns);

// One row as float32 [columns].
void unpack_row(const Matrix& matrix, int row, float* out);

}  // namespace freehold
