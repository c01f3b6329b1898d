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

// A file in memory, read only, for as long as anybody holds it. Throws std::runtime_error naming the system's reason.
class Mapping {
 public:
  explicit Mapping(const char* path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

struct Packed {
  Matrix matrix{};
  Memory codes, scales, offsets;           // empty where `file` holds them
  std::shared_ptr<const Mapping> file;
  size_t code_bytes() const;
  size_t scale_bytes() const;              // of scales; the same again for offsets, if there are any
  size_t bytes() const { return code_bytes() + scale_bytes() * (matrix.offsets ? 2 : 1); }
};

// What a matrix in a packed file is: its numbers, and where codes, scales and offsets begin (offsets_at < 0: symmetric).
struct Place {
  Format format;
  int rows, columns, group;
  bool narrow_scales;
  int64_t codes_at, scales_at, offsets_at;
};

// A matrix that lies in a file. Throws std::invalid_argument when it would not fit there.
std::shared_ptr<Packed> packed_in(std::shared_ptr<const Mapping> file, const Place& place);

// codes uint8 [rows, columns] below 2^bits; scales, offsets float32 [rows, ceil(columns/group)], offsets null if symmetric.
// Scales are kept as bfloat16 where that loses nothing. Throws std::invalid_argument.
std::shared_ptr<Packed> pack_quantized(const uint8_t* codes, const float* scales, const float* offsets, int rows, int columns,
                                       int bits, int group);
std::shared_ptr<Packed> pack_float(const float* data, int rows, int columns);
std::shared_ptr<Packed> pack_bf16(const uint16_t* data, int rows, int columns);

// One row as float32 [columns].
void unpack_row(const Matrix& matrix, int row, float* out);

}  // namespace freehold
