#include "cpu.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>

#include "pack.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace freehold {

double peak_portable(double seconds);
#if defined(__x86_64__)
double peak_avx2(double seconds);
double peak_avx512(double seconds);
double peak_amx(double seconds);
#endif

namespace {

#if defined(__x86_64__)
struct Leaf { unsigned a = 0, b = 0, c = 0, d = 0; };

Leaf cpuid(unsigned leaf, unsigned sub) {
  Leaf r;
  if (!__get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

unsigned long long xcr0() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
}

struct Found { bool avx2, fma, f16c, avx512, vnni, amx_tile, amx_int8, amx_permitted; };

// Linux hands out the 8 KiB of tile state only on request (Documentation/arch/x86/xstate.rst: ARCH_REQ_XCOMP_PERM, 18).
bool ask_for_tiles() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}

Found find() {
  Found f{};
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0);
  if (!(one.c >> 27 & 1)) return f;  // OSXSAVE
  const auto states = xcr0();
  const bool ymm = (states & 0x6) == 0x6, zmm = ymm && (states & 0xe0) == 0xe0;
  f.avx2 = ymm && (seven.b >> 5 & 1);
  f.fma = ymm && (one.c >> 12 & 1);
  f.f16c = ymm && (one.c >> 29 & 1);
  f.avx512 = zmm && (seven.b >> 16 & 1) && (seven.b >> 17 & 1) && (seven.b >> 30 & 1) && (seven.b >> 31 & 1);  // F DQ BW VL
  f.vnni = zmm && (seven.c >> 11 & 1);
  f.amx_tile = seven.d >> 24 & 1;
  f.amx_int8 = seven.d >> 25 & 1;
  f.amx_permitted = f.amx_tile && f.amx_int8 && ask_for_tiles();
  return f;
}

const Found& found() {
  static const Found f = find();
  return f;
}
#endif

double team_rate(int threads, const std::function<double()>& one) {
  std::vector<std::thread> team;
  std::vector<double> rates(threads);
  for (int t = 0; t < threads; ++t) team.emplace_back([&, t] { rates[t] = one(); });
  double total = 0;
  for (int t = 0; t < threads; ++t) {
    team[t].join();
    total += rates[t];
  }
  return total;
}

}  // namespace

std::vector<std::pair<std::string, bool>> cpu_features() {
#if defined(__x86_64__)
  const Found& f = found();
  return {{"avx2", f.avx2}, {"fma", f.fma}, {"f16c", f.f16c}, {"avx512", f.avx512}, {"avx512_vnni", f.vnni},
          {"amx_tile", f.amx_tile}, {"amx_int8", f.amx_int8}, {"amx_permitted", f.amx_permitted}};
#else
  return {};
#endif
}

const Tier& tier_by_name(const std::string& name) {
  if (name == "portable") return kPortable;
#if defined(__x86_64__)
  const Found& f = found();
  const bool avx2 = f.avx2 && f.fma && f.f16c, avx512 = avx2 && f.avx512 && f.vnni;
  const struct { const Tier& tier; bool usable; } tiers[] = {
      {kAvx2, avx2}, {kAvx512, avx512}, {kAmx, avx512 && f.amx_permitted}, {kAmxEmulated, avx512}};
  for (const auto& [tier, usable] : tiers)
    if (name == tier.name) {
      if (!usable) throw std::invalid_argument("this machine can't run the " + name + " tier");
      return tier;
    }
#endif
  throw std::invalid_argument("unknown tier " + name);
}

double read_bandwidth(size_t bytes, int threads, int repeats) {
  Memory memory(bytes);
  std::memset(memory.data(), 1, bytes);  // pages never written are all one page of zeros, which stays in cache
  const size_t words = bytes / 8, share = words / threads;
  const auto* data = reinterpret_cast<const uint64_t*>(memory.data());
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    std::atomic<uint64_t> sink{0};
    std::vector<std::thread> team;
    const auto begin = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; ++t)
      team.emplace_back([&, t] {
        uint64_t a[8] = {};
        for (size_t w = share * t; w + 8 <= share * (t + 1); w += 8)
          for (int j = 0; j < 8; ++j) a[j] ^= data[w + j];
        sink ^= a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
      });
    for (auto& thread : team) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(share) * threads * 8 / seconds);
  }
  return best;
}

double int8_peak(const std::string& name, int threads, double seconds) {
  tier_by_name(name);
#if defined(__x86_64__)
  if (name == "avx2") return team_rate(threads, [=] { return peak_avx2(seconds); });
  if (name == "avx512") return team_rate(threads, [=] { return peak_avx512(seconds); });
  if (name == "amx") return team_rate(threads, [=] { return peak_amx(seconds); });
#endif
  return team_rate(threads, [=] { return peak_portable(seconds); });
}

}  // namespace freehold
