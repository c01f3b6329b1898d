// AVX-512 tier with VNNI: 16 lanes, VPDPBUSD.
#include "freehold.h"
#include "simd.h"
#include "floats.inl"
#include "quantized.inl"
#include "attention.inl"

const freehold::Tier freehold::kAvx512 = {"avx512", quantize, linear_quantized, linear_float, rmsnorm, rope, silu_mul, gelu_mul, attention, join};
#include "peak.inl"

namespace freehold {
double peak_avx512(double seconds) { return dot_peak(seconds); }
}  // namespace freehold
