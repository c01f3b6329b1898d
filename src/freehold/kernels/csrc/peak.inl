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

// Operations (two for each multiply-add) per second of eight independent chains of dot4. The chains are named one by one:
// as an array they would live in memory.
[[maybe_unused]] double dot_peak(double seconds) {
  constexpr int kRounds = 1 << 14;
  alignas(64) uint8_t bytes[4 * W];
  memset(bytes, 3, sizeof bytes);
  vb w = load_bytes(bytes);
  vi a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {};
  double done = 0, elapsed = 0;
  const double begin = now();
  while (elapsed < seconds) {
    for (int i = 0; i < kRounds; ++i) {
      a = dot4<true>(a, fresh(w), 0x01020304); b = dot4<true>(b, fresh(w), 0x01020304);
      c = dot4<true>(c, fresh(w), 0x01020304); d = dot4<true>(d, fresh(w), 0x01020304);
      e = dot4<true>(e, fresh(w), 0x01020304); f = dot4<true>(f, fresh(w), 0x01020304);
      g = dot4<true>(g, fresh(w), 0x01020304); h = dot4<true>(h, fresh(w), 0x01020304);
    }
    done += static_cast<double>(kRounds) * 8 * W * 4 * 2;
    elapsed = now() - begin;
  }
  float sink[W];
  store(sink, to_float(a + b + c + d + e + f + g + h));
  asm volatile("" : : "m"(sink));
  return done / elapsed;
}

}  // namespace
