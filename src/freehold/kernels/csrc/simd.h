// Vectors for one ISA tier, chosen by the flags this translation unit is compiled with. Everything here has internal
// linkage and uses no standard library templates, so that no code for a newer ISA can leak into another unit.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int V = 16 / W;  // vectors per panel of 16

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));

inline vf load(const float* p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
inline vf splat(float x) { return x - vf{}; }
inline vi splat(int32_t x) { return x - vi{}; }
inline vi as_int(vf v) { vi r; __builtin_memcpy(&r, &v, sizeof r); return r; }
inline vf as_float(vi v) { vf r; __builtin_memcpy(&r, &v, sizeof r); return r; }
inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
inline vf vmax(vf a, vf b) { return a > b ? a : b; }
inline vf vmin(vf a, vf b) { return a < b ? a : b; }
inline vf vabs(vf a) { return as_float(as_int(a) & 0x7fffffff); }

// a * b + c, fused where the tier has it: the same on every path of one tier.
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// Lanes joined by halves: lane i with lane i + W/2, and so on. The same order on every tier of one width.
#if defined(__AVX2__)
template <__m128 (*Join)(__m128, __m128)>
inline float halves(vf v) {
#if defined(__AVX512F__)
  const __m256 wide_low = _mm512_castps512_ps256((__m512)v), wide_high = _mm512_extractf32x8_ps((__m512)v, 1);
  __m128 x = Join(Join(_mm256_castps256_ps128(wide_low), _mm256_castps256_ps128(wide_high)),
                  Join(_mm256_extractf128_ps(wide_low, 1), _mm256_extractf128_ps(wide_high, 1)));
#else
  __m128 x = Join(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#endif
  x = Join(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(Join(x, _mm_shuffle_ps(x, x, 1)));
}
inline __m128 add4(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
inline __m128 max4(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
inline float sum(vf v) { return halves<add4>(v); }
inline float maximum(vf v) { return halves<max4>(v); }
#else
inline float sum(vf v) {
  float s[W];
  store(s, v);
  for (int step = W / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}
inline float maximum(vf v) {
  float m = v[0];
  for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
  return m;
}
#endif

inline vf load_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  vi r;
  for (int i = 0; i < W; ++i) r[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return as_float(r);
#endif
}

inline vf load_int8(const int8_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  vf r;
  for (int i = 0; i < W; ++i) r[i] = p[i];
  return r;
#endif
}

inline vf load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vf r;
  for (int i = 0; i < W; ++i) r[i] = freehold::float_from_half(p[i]);
  return r;
#endif
}

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds |x| < 2^22 to the nearest even integer

// exp(x), relative error below 2e-7 (degree-6 polynomial on [-ln2/2, ln2/2]; Cody and Waite reduction); 0 below -87.
inline vf exp(vf x) {
  const vf limited = vmin(vmax(x, splat(-87.0f)), splat(88.0f));
  const vf shifted = limited * 1.44269504088896341f + kMagic;
  const vf n = shifted - kMagic;
  vf r = limited - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const vi power = (as_int(shifted) - as_int(splat(kMagic)) + 127) << 23;
  const vf result = y * as_float(power);
  return x < -87.0f ? vf{} : result;
}

// 2^x for x <= 0, relative error below 3e-7: minimax polynomial on [-1/2, 1/2]. What lies below -126 counts as -126.
inline vf exp2(vf x) {
  const vf limited = vmax(x, splat(-126.0f));
  const vf shifted = limited + kMagic;
  const vf r = limited - (shifted - kMagic);
  vf y = splat(1.3264727219e-3f);
  y = fma(y, r, splat(9.6715128124e-3f));
  y = fma(y, r, splat(5.5507337448e-2f));
  y = fma(y, r, splat(2.4022242083e-1f));
  y = fma(y, r, splat(6.9314697760e-1f));
  y = fma(y, r, splat(1.0f));
  return as_float(as_int(y) + (as_int(shifted) << 23));  // the shift leaves the whole part in the exponent's place
}

}  // namespace
