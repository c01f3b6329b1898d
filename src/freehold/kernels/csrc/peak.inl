// How fast this tier's dot product runs from registers: the limit that prefill is held against.
#include <time.h>

namespace {

inline double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The same value, as far as the compiler knows a new one: nothing computed from it may be hoisted or shared.
inline vb fresh(vb w) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(w));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(w));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(w));
#endif
  return w;
}

// Operations (two for each multiply-add) per second of eight independent chains of dot products, joined as linears join them. The chains are named one by one:
// as an array they would live in memory.
[[maybe_unused]] double dot_peak(double seconds) {
  constexpr int kRounds = 1 << 14;
  alignas(64) uint8_t bytes[4 * W];
  memset(bytes, 3, sizeof bytes);
  vb w = load_bytes(bytes);
  vi a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {}, sums[8] = {};
  double done = 0, elapsed = 0;
  const double begin = now();
  while (elapsed < seconds) {
    for (int i = 0; i < kRounds; ++i) {
      const int32_t x = 0x01020304;
      a = dot_part<true>(a, fresh(w), x); b = dot_part<true>(b, fresh(w), x); c = dot_part<true>(c, fresh(w), x); d = dot_part<true>(d, fresh(w), x);
      e = dot_part<true>(e, fresh(w), x); f = dot_part<true>(f, fresh(w), x); g = dot_part<true>(g, fresh(w), x); h = dot_part<true>(h, fresh(w), x);
      if (i % (kPart / 4)) continue;
      vi* parts[] = {&a, &b, &c, &d, &e, &f, &g, &h};
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        sums[j] = end_part<true>(sums[j], *parts[j]);
        *parts[j] = begin_part<true>(sums[j]);
      }
    }
    done += static_cast<double>(kRounds) * 8 * W * 4 * 2;
    elapsed = now() - begin;
  }
  float sink[W];
  store(sink, to_float(sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7]));
  asm volatile("" : : "m"(sink));
  return done / elapsed;
}

}  // namespace
