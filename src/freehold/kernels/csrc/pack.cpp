#include "pack.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
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

// The shape of a quantized matrix in panels. Throws std::invalid_argument.
Matrix quantized_shape(int rows, int columns, int bits, int group, bool symmetric) {
  if (bits != 4 && bits != 8) throw std::invalid_argument("bits must be 4 or 8, got " + std::to_string(bits));
  const bool grouped = group == 32 || group == 64 || group == 128;
  if (!grouped && group != columns)
    throw std::invalid_argument("group must be 32, 64, 128 or the whole row, got " + std::to_string(group));
  Matrix m{};
  m.format = bits == 4 ? Format::int4 : Format::int8;
  m.rows = rows;
  m.columns = columns;
  m.panels = (rows + kPanel - 1) / kPanel;
  m.unit = grouped ? group : 64;
  m.padded = (columns + m.unit - 1) / m.unit * m.unit;
  m.units_per_group = grouped ? 1 : m.padded / m.unit;
  m.groups = grouped ? m.padded / m.unit : 1;
  m.zero = symmetric ? 1 << (bits - 1) : 0;
  return m;
}

Matrix plain_shape(int rows, int columns, Format format) {
  Matrix m{};
  m.format = format;
  m.rows = rows;
  m.columns = m.padded = columns;
  m.panels = (rows + kPanel - 1) / kPanel;
  return m;
}

bool is_float(Format format) { return format == Format::f32 || format == Format::bf16; }

template <class T>
std::shared_ptr<Packed> pack_plain(const T* data, int rows, int columns, Format format) {
  auto packed = std::make_shared<Packed>();
  Matrix& m = packed->matrix;
  m = plain_shape(rows, columns, format);
  packed->codes = Memory(packed->code_bytes());
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

Mapping::Mapping(const char* path) {
  auto fail = [&](const char* what) { throw std::runtime_error(std::string(what) + " " + path + ": " + std::strerror(errno)); };
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) fail("can't open");
  struct stat info{};
  void* data = MAP_FAILED;
  if (fstat(file, &info) == 0 && info.st_size > 0) data = mmap(nullptr, info.st_size, PROT_READ, MAP_SHARED, file, 0);
  const int reason = errno;
  close(file);
  errno = reason;
  if (data == MAP_FAILED) fail("can't map");
  data_ = static_cast<char*>(data);
  size_ = info.st_size;
  madvise(data_, size_, MADV_WILLNEED);  // a hint only
}
Mapping::~Mapping() { munmap(data_, size_); }

size_t Packed::code_bytes() const {
  const size_t values = static_cast<size_t>(matrix.panels) * matrix.padded * kPanel;
  switch (matrix.format) {
    case Format::int4: return values / 2;
    case Format::int8: return values;
    case Format::bf16: return values * 2;
    case Format::f32: return values * 4;
  }
  return 0;
}

size_t Packed::scale_bytes() const {
  return static_cast<size_t>(matrix.panels) * matrix.groups * kPanel * (matrix.narrow_scales ? 2 : 4);
}

std::shared_ptr<Packed> packed_in(std::shared_ptr<const Mapping> file, const Place& place) {
  constexpr int kMost = 1 << 30;
  if (place.rows < 1 || place.columns < 1 || place.rows > kMost || place.columns > kMost)
    throw std::invalid_argument("rows and columns must be between 1 and 2^30");
  auto packed = std::make_shared<Packed>();
  Matrix& m = packed->matrix;
  const bool plain = is_float(place.format), symmetric = place.offsets_at < 0;
  m = plain ? plain_shape(place.rows, place.columns, place.format)
            : quantized_shape(place.rows, place.columns, place.format == Format::int4 ? 4 : 8, place.group, symmetric);
  m.narrow_scales = !plain && place.narrow_scales;
  auto section = [&](int64_t at, size_t bytes) {
    if (at < 0 || at % 64 || bytes > file->size() || static_cast<size_t>(at) > file->size() - bytes)
      throw std::invalid_argument("a section of " + std::to_string(bytes) + " bytes at " + std::to_string(at) + " is not in the file");
    return file->data() + at;
  };
  m.codes = section(place.codes_at, packed->code_bytes());
  if (!plain) m.scales = section(place.scales_at, packed->scale_bytes());
  if (!plain && !symmetric) m.offsets = section(place.offsets_at, packed->scale_bytes());
  packed->file = std::move(file);
  return packed;
}

std::shared_ptr<Packed> pack_quantized(const uint8_t* codes, const float* scales, const float* offsets, int rows, int columns,
                                       int bits, int group) {
  auto packed = std::make_shared<Packed>();
  Matrix& m = packed->matrix;
  m = quantized_shape(rows, columns, bits, group, !offsets);
  const size_t count = static_cast<size_t>(rows) * m.groups;
  m.narrow_scales = fits_bf16(scales, count) && (!offsets || fits_bf16(offsets, count));
  packed->scales = pack_scales(scales, rows, m.groups, m.panels, m.narrow_scales);
  if (offsets) packed->offsets = pack_scales(offsets, rows, m.groups, m.panels, m.narrow_scales);
  packed->codes = Memory(packed->code_bytes());
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
