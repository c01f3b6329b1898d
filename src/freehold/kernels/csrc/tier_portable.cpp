// Portable tier: plain C++ with compiler vectors of 16 bytes; any CPU.
#include "freehold.h"
#include "simd.h"
#include "floats.inl"
#include "quantized.inl"
#include "attention.inl"

const freehold::Tier freehold::kPortable = {"portable", quantize, linear_quantized, linear_float, rmsnorm, rope, silu_mul, gelu_mul, attention, join};
#include "peak.inl"

namespace freehold {
double peak_portable(double seconds) { return dot_peak(seconds); }
}  // namespace freehold
