// AMX int8 tier: as AVX-512 for few rows; from 32 rows on, tiles. Compiled twice: with the real instructions, and with
// FREEHOLD_AMX_EMULATED in plain C++, so that the tiling is tested on machines without AMX.
#include "freehold.h"
#include "simd.h"
#include "floats.inl"
#include "quantized.inl"
#include "attention.inl"

namespace {

constexpr int kTileRows = 32;  // from so many rows on, tiles beat VPDPBUSD

#if defined(FREEHOLD_AMX_EMULATED)
struct Tile {
  int rows, bytes;
  union { int8_t s8[16][64]; uint8_t u8[16][64]; int32_t s32[16][16]; };
};
thread_local Tile tiles[8];
inline void configure(const int* rows, const int* bytes) {
  for (int i = 0; i < 8; ++i) { memset(&tiles[i], 0, sizeof(Tile)); tiles[i].rows = rows[i]; tiles[i].bytes = bytes[i]; }
}
inline void release() {}
inline void tile_zero(int t) { memset(tiles[t].s8, 0, sizeof tiles[t].s8); }
inline void tile_load(int t, const void* p, ptrdiff_t stride) {
  for (int r = 0; r < tiles[t].rows; ++r) memcpy(tiles[t].s8[r], static_cast<const char*>(p) + r * stride, tiles[t].bytes);
}
inline void tile_store(int t, void* p, ptrdiff_t stride) {
  for (int r = 0; r < tiles[t].rows; ++r) memcpy(static_cast<char*>(p) + r * stride, tiles[t].s32[r], tiles[t].bytes);
}
inline void tile_dot(int c, int a, int b) {  // signed a by unsigned b, as TDPBSUD
  for (int r = 0; r < tiles[c].rows; ++r)
    for (int k = 0; k < tiles[a].bytes / 4; ++k)
      for (int n = 0; n < tiles[c].bytes / 4; ++n)
        for (int i = 0; i < 4; ++i) tiles[c].s32[r][n] += tiles[a].s8[r][4 * k + i] * tiles[b].u8[k][4 * n + i];
}
#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, p, stride) tile_load(t, p, stride)
#define TILE_STORE(t, p, stride) tile_store(t, p, stride)
#define TILE_DOT(c, a, b) tile_dot(c, a, b)
#else
inline void configure(const int* rows, const int* bytes) {
  struct alignas(64) { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; ++i) { config.rows[i] = static_cast<uint8_t>(rows[i]); config.bytes[i] = static_cast<uint16_t>(bytes[i]); }
  // gcc 12 takes _tile_loadconfig to read 8 bytes only; without this barrier the rest may not be written yet.
  asm volatile("" ::: "memory");
  _tile_loadconfig(&config);
}
inline void release() { _tile_release(); }
// Macros, since gcc pastes tile numbers into the assembly text.
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, p, stride) _tile_loadd(t, p, stride)
#define TILE_STORE(t, p, stride) _tile_stored(t, p, stride)
#define TILE_DOT(c, a, b) _tile_dpbsud(c, a, b)
#endif

// Tiles 0-3: sums (2 x 2 of 16 x 16); 4, 5: activations of 16 rows; 6, 7: weights of a panel.
// `low` rows in the second row tile (1-16).
void configure_for(int unit, int low) {
  const int depth = unit < 64 ? unit : 64;
  const int rows[8] = {16, 16, low, low, 16, low, depth / 4, depth / 4};
  const int bytes[8] = {64, 64, 64, 64, depth, depth, 64, 64};
  configure(rows, bytes);
}

// 32 rows (16 + low) by one or two panels expanded at `codes`.
void tile_block(const freehold::Matrix& m, const uint8_t* codes, const freehold::Activations& a, int row, int low, int panel,
                int panels, const freehold::Output& out, int32_t* sums) {
  const size_t step = static_cast<size_t>(m.padded) * freehold::kPanel;
  const int depth = m.unit < 64 ? m.unit : 64;
  const int8_t* x = a.codes + row * a.stride;
  vf acc[32][2][V] = {};
  for (int u = 0; u < a.units; ++u) {
    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
    for (int k = u * m.unit; k < (u + 1) * m.unit; k += depth) {
      TILE_LOAD(4, x + k, a.stride);
      TILE_LOAD(5, x + 16 * a.stride + k, a.stride);
      TILE_LOAD(6, codes + static_cast<size_t>(k) * 16, 64);
      TILE_DOT(0, 4, 6);
      TILE_DOT(2, 5, 6);
      if (panels == 2) {
        TILE_LOAD(7, codes + step + static_cast<size_t>(k) * 16, 64);
        TILE_DOT(1, 4, 7);
        TILE_DOT(3, 5, 7);
      }
    }
    TILE_STORE(0, sums, 128); TILE_STORE(1, sums + 16, 128);
    TILE_STORE(2, sums + 16 * 32, 128); TILE_STORE(3, sums + 16 * 32 + 16, 128);
    for (int p = 0; p < panels; ++p)
      for (int v = 0; v < V; ++v) {
        const size_t at = (static_cast<size_t>(panel + p) * m.groups + u / m.units_per_group) * freehold::kPanel + v * W;
        const vf scale = load_scale(m, m.scales, at);
        const vf offset = m.offsets ? load_scale(m, m.offsets, at) : vf{};
        for (int r = 0; r < 16 + low; ++r) {
          const size_t i = static_cast<size_t>(row + r) * a.units + u;
          vi dot;
          __builtin_memcpy(&dot, sums + r * 32 + p * 16 + v * W, sizeof dot);
          dot = dot + a.starts[i];
          acc[r][p][v] = apply_scales(acc[r][p][v], dot, scale, m.offsets ? &offset : nullptr, a.sums[i], a.scales[i]);
        }
      }
  }
  for (int r = 0; r < 16 + low; ++r)
    for (int p = 0; p < panels; ++p) finish(m, out, row + r, panel + p, acc[r][p]);
}

void linear_tiles(const freehold::Matrix& m, const freehold::Activations& a, int rows, int begin, int end,
                  const freehold::Output& out, void* scratch) {
  if (rows < kTileRows) return linear_quantized(m, a, rows, begin, end, out, scratch);
  int32_t* sums = static_cast<int32_t*>(scratch);
  uint8_t* expanded = reinterpret_cast<uint8_t*>(sums + 32 * 32);
  const bool packed = m.format == freehold::Format::int4;
  const size_t step = static_cast<size_t>(m.padded) * freehold::kPanel;
  const uint8_t* codes = static_cast<const uint8_t*>(m.codes);
  const int whole = rows / 32 * 32, rest = rows - whole;
  for (int panel = begin; panel < end; panel += 2) {
    const int panels = end - panel < 2 ? end - panel : 2;
    const uint8_t* bytes = codes + panel * step;
    if (packed) {
      for (int p = 0; p < panels; ++p) expand(codes + (panel + p) * step / 2, m.padded, expanded + p * step);
      bytes = expanded;
    }
    configure_for(m.unit, 16);
    for (int row = 0; row < whole; row += 32) tile_block(m, bytes, a, row, 16, panel, panels, out, sums);
    if (rest > 16) {
      configure_for(m.unit, rest - 16);
      tile_block(m, bytes, a, whole, rest - 16, panel, panels, out, sums);
    }
    release();
  }
  if (rest > 0 && rest <= 16) {  // too few for two row tiles
    const size_t units = static_cast<size_t>(whole) * a.units;
    const freehold::Activations tail = {a.codes + whole * a.stride, a.scales + units, a.sums + units, a.starts + units, a.stride, a.units};
    const freehold::Output tail_out = {out.data + whole * out.stride, out.stride, out.bias, out.accumulate};
    linear_quantized(m, tail, rest, begin, end, tail_out, scratch);
  }
}

}  // namespace

#if defined(FREEHOLD_AMX_EMULATED)
const freehold::Tier freehold::kAmxEmulated = {"amx-emulated", quantize, linear_tiles, linear_float, rmsnorm, rope, silu_mul, gelu_mul, attention, join};
#else
const freehold::Tier freehold::kAmx = {"amx", quantize, linear_tiles, linear_float, rmsnorm, rope, silu_mul, gelu_mul, attention, join};
#endif

#if !defined(FREEHOLD_AMX_EMULATED)
#include "peak.inl"

namespace freehold {
// Four independent sums from four resident tiles.
double peak_amx(double seconds) {
  alignas(64) static const char zeros[1024] = {};
  configure_for(64, 16);
  TILE_LOAD(4, zeros, 64); TILE_LOAD(5, zeros, 64); TILE_LOAD(6, zeros, 64); TILE_LOAD(7, zeros, 64);
  TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
  constexpr int kRounds = 1 << 12;
  double done = 0, elapsed = 0;
  const double begin = now();
  while (elapsed < seconds) {
    for (int i = 0; i < kRounds; ++i) {
      TILE_DOT(0, 4, 6); TILE_DOT(1, 4, 7); TILE_DOT(2, 5, 6); TILE_DOT(3, 5, 7);
    }
    done += static_cast<double>(kRounds) * 4 * 16 * 16 * 64 * 2;
    elapsed = now() - begin;
  }
  release();
  return done / elapsed;
}
}  // namespace freehold
#endif
