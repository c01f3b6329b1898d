// How fast this tier's dot product runs from registers: the limit that prefill is held against.
#include <time.h>

namespace {

inline double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Operations (two for each multiply-add) per second of eight independent chains of dot4.
[[maybe_unused]] double dot_peak(double seconds) {
  constexpr int kChains = 8, kRounds = 1 << 14;
  alignas(64) uint8_t bytes[4 * W];
  memset(bytes, 3, sizeof bytes);
  vi acc[kChains] = {};
  double done = 0;
  const double begin = now();
  double elapsed = 0;
  while (elapsed < seconds) {
    vb w = load_bytes(bytes);
    for (int i = 0; i < kRounds; ++i) {
      asm volatile("" : "+m"(bytes));
      for (int c = 0; c < kChains; ++c) acc[c] = dot4<true>(acc[c], w, 0x01020304);
    }
    done += static_cast<double>(kRounds) * kChains * W * 4 * 2;
    elapsed = now() - begin;
  }
  volatile int32_t sink = 0;
  for (int c = 0; c < kChains; ++c) sink = sink + acc[c][0];
  return done / elapsed;
}

}  // namespace
