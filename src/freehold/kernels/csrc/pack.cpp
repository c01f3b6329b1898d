#include "pack.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace freehold {

namespace {

constexpr size_t kHuge = 2u << 20;

float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

bool fits_bf16(const float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    if (bits & 0xffff) return false;
  }
  return true;
}

// [rows, groups] -> per panel and group 16 values.
Memory pack_scales(const float* values, int rows, int groups, int panels, bool narrow) {
  Memory memory(static_cast<size_t>(panels) * groups * kPanel * (narrow ? 2 : 4));
  for (int n = 0; n < rows; ++n)
    for (int g = 0; g < groups; ++g) {
      const size_t at = (static_cast<size_t>(n / kPanel) * groups + g) * kPanel + n % kPanel;
      const float value = values[static_cast<size_t>(n) * groups + g];
      if (narrow) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        reinterpret_cast<uint16_t*>(memory.data())[at] = static_cast<uint16_t>(bits >> 16);
      } else {
        reinterpret_cast<float*>(memory.data())[at] = value;
      }
    }
  return memory;
}

template <class T>
std::shared_ptr<Packed> pack_plain(const T* data, int rows, int columns, Format format) {
  auto packed = std::make_shared<Packed>();
  Matrix& m = packed->matrix;
  m.format = format;
  m.rows = rows;
  m.columns = m.padded = columns;
  m.panels = (rows + kPanel - 1) / kPanel;
  packed->codes = Memory(static_cast<size_t>(m.panels) * columns * kPanel * sizeof(T));
  T* out = reinterpret_cast<T*>(packed->codes.data());
  for (int n = 0; n < rows; ++n)
    for (int k = 0; k < columns; ++k)
      out[(static_cast<size_t>(n / kPanel) * columns + k) * kPanel + n % kPanel] = data[static_cast<size_t>(n) * columns + k];
  m.codes = out;
  return packed;
}

float scale_at(const Matrix& m, const void* scales, size_t at) {
  return m.narrow_scales ? from_bf16(static_cast<const uint16_t*>(scales)[at]) : static_cast<const float*>(scales)[at];
}

int code_at(const Matrix& m, int row, int column) {
  const auto* codes = static_cast<const uint8_t*>(m.codes);
  const size_t panel = row / kPanel, lane = row % kPanel;
  if (m.format == Format::int8) return codes[panel * m.padded * kPanel + column / 4 * 64 + lane * 4 + column % 4];
  const uint8_t pair = codes[panel * m.padded * kPanel / 2 + column / 8 * 64 + lane * 4 + column % 4];
  return column % 8 < 4 ? pair & 0x0f : pair >> 4;
}

}  // namespace

Memory::Memory(size_t bytes, bool huge) : size_(bytes) {
  if (bytes == 0) return;
  mapped_ = (bytes + kHuge - 1) / kHuge * kHuge + kHuge;  // room to begin at a huge page
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) {
    base_ = nullptr;
    throw std::bad_alloc();
  }
  const auto address = reinterpret_cast<uintptr_t>(base_);
  data_ = reinterpret_cast<char*>(bytes < kHuge ? address : (address + kHuge - 1) / kHuge * kHuge);
#if defined(MADV_HUGEPAGE)
  if (huge && bytes >= kHuge) madvise(data_, mapped_ - (data_ - static_cast<char*>(base_)), MADV_HUGEPAGE);  // costs only TLB misses if refused
#endif
}
Memory::~Memory() {
  if (base_) munmap(base_, mapped_);
}
Memory::Memory(Memory&& other) noexcept { *this = std::move(other); }
Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::shared_ptr<Packed> pack_quantized(const uint8_t* codes, const float* scales, const float* offsets, int rows, int columns,
                                       int bits, int group) {
  if (bits != 4 && bits != 8) throw std::invalid_argument("bits must be 4 or 8, got " + std::to_string(bits));
  const bool grouped = group == 32 || group == 64 || group == 128;
  if (!grouped && group != columns)
    throw std::invalid_argument("group must be 32, 64, 128 or the whole row, got " + std::to_string(group));
  auto packed = std::make_shared<Packed>();
  Matrix& m = packed->matrix;
  m.format = bits == 4 ? Format::int4 : Format::int8;
  m.rows = rows;
  m.columns = columns;
  m.panels = (rows + kPanel - 1) / kPanel;
  m.unit = grouped ? group : 64;
  m.padded = (columns + m.unit - 1) / m.unit * m.unit;
  m.units_per_group = grouped ? 1 : m.padded / m.unit;
  m.groups = grouped ? m.padded / m.unit : 1;
  m.zero = offsets ? 0 : 1 << (bits - 1);
  const size_t count = static_cast<size_t>(rows) * m.groups;
  m.narrow_scales = fits_bf16(scales, count) && (!offsets || fits_bf16(offsets, count));
  packed->scales = pack_scales(scales, rows, m.groups, m.panels, m.narrow_scales);
  if (offsets) packed->offsets = pack_scales(offsets, rows, m.groups, m.panels, m.narrow_scales);
  packed->codes = Memory(static_cast<size_t>(m.panels) * m.padded * kPanel * bits / 8);
  auto* out = reinterpret_cast<uint8_t*>(packed->codes.data());
  for (int n = 0; n < rows; ++n) {
    const uint8_t* row = codes + static_cast<size_t>(n) * columns;
    uint8_t* panel = out + static_cast<size_t>(n / kPanel) * m.padded * kPanel * bits / 8;
    const int lane = n % kPanel * 4;
    for (int k = 0; k < columns; ++k) {
      if (row[k] >> bits) throw std::invalid_argument("code " + std::to_string(row[k]) + " does not fit its bits");
      if (bits == 8)
        panel[k / 4 * 64 + lane + k % 4] = row[k];
      else
        panel[k / 8 * 64 + lane + k % 4] |= static_cast<uint8_t>(k % 8 < 4 ? row[k] : row[k] << 4);
    }
  }
  m.codes = packed->codes.data();
  m.scales = packed->scales.data();
  m.offsets = packed->offsets.data();
  return packed;
}

std::shared_ptr<Packed> pack_float(const float* data, int rows, int columns) {
  return pack_plain(data, rows, columns, Format::f32);
}

std::shared_ptr<Packed> pack_bf16(const uint16_t* data, int rows, int columns) {
  return pack_plain(data, rows, columns, Format::bf16);
}

void unpack_row(const Matrix& m, int row, float* out) {
  if (m.format == Format::f32 || m.format == Format::bf16) {
    const size_t base = static_cast<size_t>(row / kPanel) * m.columns * kPanel + row % kPanel;
    for (int k = 0; k < m.columns; ++k) {
      const size_t at = base + static_cast<size_t>(k) * kPanel;
      out[k] = m.format == Format::f32 ? static_cast<const float*>(m.codes)[at] : from_bf16(static_cast<const uint16_t*>(m.codes)[at]);
    }
    return;
  }
  for (int k = 0; k < m.columns; ++k) {
    const size_t at = (static_cast<size_t>(row / kPanel) * m.groups + k / m.unit / m.units_per_group) * kPanel + row % kPanel;
    const float code = static_cast<float>(code_at(m, row, k) - m.zero), scale = scale_at(m, m.scales, at);
    out[k] = m.offsets ? code * scale + scale_at(m, m.offsets, at) : code * scale;
  }
}

uint16_t half_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (magnitude < 0x38800000) {                                              // subnormal: units of 2^-24
    float absolute;
    std::memcpy(&absolute, &magnitude, 4);
    const float rounded = absolute * 16777216.0f + 12582912.0f;
    uint32_t code;
    std::memcpy(&code, &rounded, 4);
    return static_cast<uint16_t>(sign | (code & 0xffff));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) / 16777216.0f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace freehold
