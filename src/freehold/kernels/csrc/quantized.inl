// Quantized linears of a tier, equal to reference.quantized_linear to the last bit: integer dot products per unit, then
// float32 multiplications and additions in a fixed order (never fused). Included once per tier unit.

namespace {

// W integers in -128..127 as bytes.
inline void store_int8(int8_t* p, vi v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
#else
  for (int i = 0; i < W; ++i) p[i] = static_cast<int8_t>(v[i]);
#endif
}

void quantize(const float* x, int columns, int unit, int zero, int8_t* codes, float* scales, float* sums, int32_t* starts) {
  for (int begin = 0, u = 0; begin < columns; begin += unit, ++u) {
    const int width = columns - begin < unit ? columns - begin : unit;
    alignas(64) float padded[freehold::kMaxUnit];
    const float* from = x + begin;
    if (width < unit) {
      memset(padded, 0, sizeof padded);
      memcpy(padded, from, width * sizeof(float));
      from = padded;
    }
    vf top = {};
    for (int i = 0; i < unit; i += W) top = vmax(top, vabs(load(from + i)));
    float scale = maximum(top) / 127.0f;
    if (!(scale >= 1.17549435e-38f)) scale = 0;  // a subnormal scale has no usable inverse
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    vi total = {};
    for (int i = 0; i < unit; i += W) {
      const vf rounded = load(from + i) * inverse + kMagic;
      const vi q = as_int(rounded) - as_int(splat(kMagic));
      total = total + q;
      store_int8(codes + begin + i, q);
    }
    int32_t s = 0;
    for (int j = 0; j < W; ++j) s += total[j];
    scales[u] = scale;
    sums[u] = static_cast<float>(s);
    starts[u] = -zero * s;
  }
}

// 4 * W weight bytes: W features by 4 columns.
#if defined(__AVX512F__)
typedef __m512i vb;
inline vb load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline vb low_nibbles(vb v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
inline vb high_nibbles(vb v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0x0f)); }
inline void store_bytes(uint8_t* p, vb v) { _mm512_storeu_si512(p, v); }
template <bool SMALL>
inline vi dot4(vi acc, vb w, int32_t x) {
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, w, _mm512_set1_epi32(x));
}
#elif defined(__AVX2__)
typedef __m256i vb;
inline vb load_bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline vb low_nibbles(vb v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
inline vb high_nibbles(vb v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0x0f)); }
inline void store_bytes(uint8_t* p, vb v) { _mm256_storeu_si256((__m256i*)p, v); }
// SMALL: codes are at most 15, so VPMADDUBSW's 16-bit pair sums can't saturate (15 * 128 * 2 < 32768).
template <bool SMALL>
inline vi dot4(vi acc, vb w, int32_t x) {
  const __m256i quad = _mm256_set1_epi32(x);
  if (SMALL) {
    const __m256i pairs = _mm256_maddubs_epi16(w, quad);
    return (vi)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), odd_x = _mm256_srai_epi16(quad, 8);
  const __m256i even_w = _mm256_and_si256(w, _mm256_set1_epi16(0xff)), odd_w = _mm256_srli_epi16(w, 8);
  const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(even_w, even_x), _mm256_madd_epi16(odd_w, odd_x));
  return (vi)_mm256_add_epi32((__m256i)acc, both);
}
#else
typedef uint8_t vb __attribute__((vector_size(4 * W)));
inline vb load_bytes(const uint8_t* p) { vb v; __builtin_memcpy(&v, p, sizeof v); return v; }
inline vb low_nibbles(vb v) { return v & 0x0f; }
inline vb high_nibbles(vb v) { return v >> 4; }
inline void store_bytes(uint8_t* p, vb v) { __builtin_memcpy(p, &v, sizeof v); }
template <bool SMALL>
inline vi dot4(vi acc, vb w, int32_t x) {
  int8_t quad[4];
  __builtin_memcpy(quad, &x, 4);
  for (int c = 0; c < W; ++c)
    acc[c] += w[4 * c] * quad[0] + w[4 * c + 1] * quad[1] + w[4 * c + 2] * quad[2] + w[4 * c + 3] * quad[3];
  return acc;
}
#endif

// Sums over kPart columns, that `dot4` is taken for, and how they join a sum of 32-bit integers. AVX2 adds 16-bit pair sums
// of small codes first (8 * 2 * 15 * 127 < 32768): one instruction less for each dot product.
constexpr int kPart = 32;
#if defined(__AVX2__) && !defined(__AVX512F__)
template <bool SMALL>
inline vi begin_part(vi sum) { return SMALL ? vi{} : sum; }
template <bool SMALL>
inline vi dot_part(vi part, vb w, int32_t x) {
  return SMALL ? (vi)_mm256_add_epi16((__m256i)part, _mm256_maddubs_epi16(w, _mm256_set1_epi32(x))) : dot4<SMALL>(part, w, x);
}
template <bool SMALL>
inline vi end_part(vi sum, vi part) { return SMALL ? sum + (vi)_mm256_madd_epi16((__m256i)part, _mm256_set1_epi16(1)) : part; }
#else
template <bool SMALL>
inline vi begin_part(vi sum) { return sum; }
template <bool SMALL>
inline vi dot_part(vi part, vb w, int32_t x) { return dot4<SMALL>(part, w, x); }
template <bool SMALL>
inline vi end_part(vi, vi part) { return part; }
#endif

// A hint to fetch what will be read a little later; harmless beyond the end of memory.
inline void fetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

inline int32_t quad(const int8_t* p) { int32_t x; __builtin_memcpy(&x, p, 4); return x; }

inline vf load_scale(const freehold::Matrix& m, const void* scales, size_t index) {
  return m.narrow_scales ? load_bf16(static_cast<const uint16_t*>(scales) + index) : load(static_cast<const float*>(scales) + index);
}

// The scales' part of one unit: acc += (float(dot) * w_scale (+ float(sum) * w_offset)) * x_scale.
inline vf apply_scales(vf acc, vi dot, vf scale, const vf* offset, float sum, float x_scale) {
  vf part = to_float(dot) * scale;
  if (offset) part = part + sum * *offset;
  return acc + part * x_scale;
}

// R rows by P panels. PACKED: codes are nibbles; else bytes (an int8 matrix, or int4 panels expanded by `expand`).
// AHEAD: the panels come from memory, and those that follow are fetched meanwhile.
template <int R, int P, bool PACKED, bool SMALL, bool AHEAD = false>
void quantized_block(const freehold::Matrix& m, const uint8_t* codes, const freehold::Activations& a, int row, int panel,
                     const freehold::Output& out) {
  const size_t step = static_cast<size_t>(m.padded) * freehold::kPanel / (PACKED ? 2 : 1);
  const int8_t* x = a.codes + row * a.stride;
  const size_t first_unit = static_cast<size_t>(row) * a.units;
  vf acc[R][P][V] = {};
  for (int u = 0; u < a.units; ++u) {
    vi dot[R][P][V];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) dot[r][p][v] = splat(a.starts[first_unit + static_cast<size_t>(r) * a.units + u]);
    for (int begin = u * m.unit; begin < (u + 1) * m.unit; begin += kPart) {
      vi part[R][P][V];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < V; ++v) part[r][p][v] = begin_part<SMALL>(dot[r][p][v]);
      for (int k = begin; k < begin + kPart; k += 8) {
        vb first[P][V], second[P][V];
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < V; ++v) {
            const uint8_t* at = codes + p * step + static_cast<size_t>(k) * (PACKED ? 8 : 16) + v * 4 * W;
            if (AHEAD && v % (64 / (4 * W)) == 0) {  // the same place of the panels that follow: each is a short stream of its own
              fetch(at + P * step);
              if (!PACKED) fetch(at + P * step + 64);
            }
            if (PACKED) {
              const vb both = load_bytes(at);
              first[p][v] = low_nibbles(both);
              second[p][v] = high_nibbles(both);
            } else {
              first[p][v] = load_bytes(at);
              second[p][v] = load_bytes(at + 64);
            }
          }
        for (int r = 0; r < R; ++r)
          for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) {
              part[r][p][v] = dot_part<SMALL>(part[r][p][v], first[p][v], quad(x + r * a.stride + k));
              part[r][p][v] = dot_part<SMALL>(part[r][p][v], second[p][v], quad(x + r * a.stride + k + 4));
            }
      }
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < V; ++v) dot[r][p][v] = end_part<SMALL>(dot[r][p][v], part[r][p][v]);
    }
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < V; ++v) {
        const size_t at = (static_cast<size_t>(panel + p) * m.groups + u / m.units_per_group) * freehold::kPanel + v * W;
        if (AHEAD && v == 0) {
          const size_t next = (at + static_cast<size_t>(P) * m.groups * freehold::kPanel) * (m.narrow_scales ? 2 : 4);
          fetch(static_cast<const uint8_t*>(m.scales) + next);
        }
        const vf scale = load_scale(m, m.scales, at);
        const vf offset = m.offsets ? load_scale(m, m.offsets, at) : vf{};
        for (int r = 0; r < R; ++r) {
          const size_t i = first_unit + static_cast<size_t>(r) * a.units + u;
          acc[r][p][v] = apply_scales(acc[r][p][v], dot[r][p][v], scale, m.offsets ? &offset : nullptr, a.sums[i], a.scales[i]);
        }
      }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) finish(m, out, row + r, panel + p, acc[r][p]);
}

// One panel of nibbles as bytes, in the order of an int8 panel.
inline void expand(const uint8_t* packed, int padded, uint8_t* bytes) {
  for (int k = 0; k < padded; k += 8, packed += 64, bytes += 128)
    for (int v = 0; v < V; ++v) {
      const vb both = load_bytes(packed + v * 4 * W);
      store_bytes(bytes + v * 4 * W, low_nibbles(both));
      store_bytes(bytes + 64 + v * 4 * W, high_nibbles(both));
    }
}

template <int P, bool PACKED, bool SMALL>
void quantized_rows(const freehold::Matrix& m, const uint8_t* codes, const freehold::Activations& a, int rows, int panel,
                    const freehold::Output& out) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) quantized_block<4, P, PACKED, SMALL>(m, codes, a, row, panel, out);
  for (; row + 2 <= rows; row += 2) quantized_block<2, P, PACKED, SMALL>(m, codes, a, row, panel, out);
  for (; row < rows; ++row) quantized_block<1, P, PACKED, SMALL>(m, codes, a, row, panel, out);
}

constexpr int kPair = V == 1 ? 2 : 1;  // panels in a block of several rows: as many as the registers hold
constexpr int kExpandRows = 16;  // from so many rows on, unpacking a panel once is cheaper than for every block of rows
constexpr int kWide = 4;         // panels in a wide block

#if defined(__AVX512F__)
// R rows by four panels: integer sums in 4R registers, weights in eight, and the float sums in memory. Each broadcast
// activation meets four panels, and each nibble is unpacked once for R rows. Loops over p and r must be unrolled, or gcc
// keeps the integer sums in memory.
template <int R, bool PACKED, bool OFFSETS, bool AHEAD>
void wide_block(const freehold::Matrix& m, const uint8_t* codes, const freehold::Activations& a, int row, int panel,
                const freehold::Output& out) {
  const size_t step = static_cast<size_t>(m.padded) * freehold::kPanel / (PACKED ? 2 : 1);
  const size_t scale_step = static_cast<size_t>(m.groups) * freehold::kPanel;
  const ptrdiff_t stride = a.stride;
  const int units = a.units, unit = m.unit, units_per_group = m.units_per_group;
  const int8_t* x = a.codes + row * stride;
  const float* x_scales = a.scales + static_cast<size_t>(row) * units;
  const float* x_sums = a.sums + static_cast<size_t>(row) * units;
  const int32_t* starts = a.starts + static_cast<size_t>(row) * units;
  size_t scale_at = static_cast<size_t>(panel) * scale_step;
  alignas(64) float memory[R * kWide * W] = {};
  float* acc = memory;
  asm volatile("" : "+r"(acc));  // else they would be taken for registers, and the integer sums spilled instead
  for (int u = 0, inside = 0; u < units; ++u) {
    vi dot[R][kWide];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < kWide; ++p) dot[r][p] = splat(starts[static_cast<size_t>(r) * units + u]);
    for (int k = u * unit; k < (u + 1) * unit; k += 8) {
      vb first[kWide], second[kWide];
#pragma GCC unroll 4
      for (int p = 0; p < kWide; ++p) {
        const uint8_t* at = codes + p * step + static_cast<size_t>(k) * (PACKED ? 8 : 16);
        if (AHEAD) fetch(at + kWide * step);
        if (AHEAD && !PACKED) fetch(at + kWide * step + 64);
        first[p] = load_bytes(at);
        second[p] = PACKED ? high_nibbles(first[p]) : load_bytes(at + 64);
        if (PACKED) first[p] = low_nibbles(first[p]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int32_t even = quad(x + r * stride + k), odd = quad(x + r * stride + k + 4);
#pragma GCC unroll 4
        for (int p = 0; p < kWide; ++p) dot[r][p] = dot4<PACKED>(dot[r][p], first[p], even);
#pragma GCC unroll 4
        for (int p = 0; p < kWide; ++p) dot[r][p] = dot4<PACKED>(dot[r][p], second[p], odd);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kWide; ++p) {
      const size_t at = scale_at + p * scale_step;
      if (AHEAD) fetch(static_cast<const uint8_t*>(m.scales) + (at + kWide * scale_step) * (m.narrow_scales ? 2 : 4));
      const vf scale = load_scale(m, m.scales, at);
      const vf offset = OFFSETS ? load_scale(m, m.offsets, at) : vf{};
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const size_t i = static_cast<size_t>(r) * units + u;
        float* sum = acc + (r * kWide + p) * W;
        store(sum, apply_scales(load(sum), dot[r][p], scale, OFFSETS ? &offset : nullptr, x_sums[i], x_scales[i]));
      }
    }
    if (++inside == units_per_group) {  // not a division: it costs as much as eight products
      inside = 0;
      scale_at += freehold::kPanel;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < kWide; ++p) {
      const vf sum = load(acc + (r * kWide + p) * W);
      finish(m, out, row + r, panel + p, &sum);
    }
}

// Rows in fours; the first four bring the panels from memory, the others find them in the cache.
template <bool PACKED, bool OFFSETS>
void wide_rows(const freehold::Matrix& m, const uint8_t* codes, const freehold::Activations& a, int rows, int panel,
               const freehold::Output& out) {
  int row = 0;
  if (rows >= 4) wide_block<4, PACKED, OFFSETS, true>(m, codes, a, row, panel, out), row = 4;
  for (; row + 4 <= rows; row += 4) wide_block<4, PACKED, OFFSETS, false>(m, codes, a, row, panel, out);
  switch (rows - row) {
    case 3: wide_block<3, PACKED, OFFSETS, true>(m, codes, a, row, panel, out); break;
    case 2: wide_block<2, PACKED, OFFSETS, true>(m, codes, a, row, panel, out); break;
    case 1: quantized_block<1, kWide, PACKED, PACKED, true>(m, codes, a, row, panel, out); break;
    default: break;
  }
}
#endif

template <bool PACKED, bool SMALL>
void quantized_panels(const freehold::Matrix& m, const freehold::Activations& a, int rows, int begin, int end,
                      const freehold::Output& out) {
  const size_t step = static_cast<size_t>(m.padded) * freehold::kPanel / (PACKED ? 2 : 1);
  const uint8_t* codes = static_cast<const uint8_t*>(m.codes);
  int panel = begin;
#if defined(__AVX512F__)
  for (; panel + kWide <= end; panel += kWide)
    if (m.offsets)
      wide_rows<PACKED, true>(m, codes + panel * step, a, rows, panel, out);
    else
      wide_rows<PACKED, false>(m, codes + panel * step, a, rows, panel, out);
#else
  if (rows == 1)  // one row: four panels in flight hide the latency of their dot products
    for (; panel + 4 <= end; panel += 4) quantized_block<1, 4, PACKED, SMALL, true>(m, codes + panel * step, a, 0, panel, out);
#endif
  for (; panel + kPair <= end; panel += kPair) quantized_rows<kPair, PACKED, SMALL>(m, codes + panel * step, a, rows, panel, out);
  for (; panel < end; ++panel) quantized_rows<1, PACKED, SMALL>(m, codes + panel * step, a, rows, panel, out);
}

void expanded_panels(const freehold::Matrix& m, const freehold::Activations& a, int rows, int begin, int end,
                     const freehold::Output& out, uint8_t* scratch) {
  const size_t packed_step = static_cast<size_t>(m.padded) * freehold::kPanel / 2;
  const size_t step = static_cast<size_t>(m.padded) * freehold::kPanel;
  const uint8_t* codes = static_cast<const uint8_t*>(m.codes);
  for (int panel = begin; panel < end; panel += kPair) {
    const int count = end - panel < kPair ? end - panel : kPair;
    for (int p = 0; p < count; ++p) expand(codes + (panel + p) * packed_step, m.padded, scratch + p * step);
    if (count == kPair)
      quantized_rows<kPair, false, true>(m, scratch, a, rows, panel, out);
    else
      quantized_rows<1, false, true>(m, scratch, a, rows, panel, out);
  }
}

void linear_quantized(const freehold::Matrix& m, const freehold::Activations& a, int rows, int begin, int end,
                      const freehold::Output& out, void* scratch) {
  if (m.format == freehold::Format::int8)
    quantized_panels<false, false>(m, a, rows, begin, end, out);
  else if (V == 1 || rows < kExpandRows)  // wide blocks unpack once for four rows, in the shadow of the products
    quantized_panels<true, true>(m, a, rows, begin, end, out);
  else
    expanded_panels(m, a, rows, begin, end, out, static_cast<uint8_t*>(scratch));
}

}  // namespace
