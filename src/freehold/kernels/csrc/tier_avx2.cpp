// AVX2 tier (with FMA and F16C): 8 lanes; VPMADDUBSW where codes are small enough not to saturate.
#include "freehold.h"
#include "simd.h"
#include "floats.inl"
#include "quantized.inl"
#include "attention.inl"

const freehold::Tier freehold::kAvx2 = {"avx2", quantize, linear_quantized, linear_float, rmsnorm, rope, silu_mul, gelu_mul, attention, join};
#include "peak.inl"

namespace freehold {
double peak_avx2(double seconds) { return dot_peak(seconds); }
}  // namespace freehold
