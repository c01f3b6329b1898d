// The narrow native face: flat functions over pointers and strides, one table of them per ISA tier.
// No Python, no allocation and no threads below this line; `executor.cpp` brings those.
#pragma once
#include <cstddef>
#include <cstdint>

namespace freehold {

constexpr int kPanel = 16;     // columns (output features) per packed panel
constexpr int kPage = 64;      // tokens per KV page
constexpr int kMaxUnit = 128;  // columns accumulated as integers before scales apply, at most
constexpr int kMaxHeadDim = 256;

enum class Format : int { int4, int8, bf16, f32 };
enum class KVType : int { int8, f16, f32 };

// A packed [rows, columns] weight matrix. Panels of 16 rows (output features), zero-padded.
//   int4: per panel, for each 8 columns 64 bytes: byte 4*c+i holds column i in its low and column 4+i in its high nibble
//         of feature c. int8: per panel, for each 4 columns 64 bytes: byte 4*c+i holds column i of feature c.
//         (The operand order of VPDPBUSD and of an AMX B tile.)
//   f32, bf16: per panel, for each column 16 values.
//   scales, offsets: per panel, for each group 16 values, float32 or bfloat16.
struct Matrix {
  Format format;
  int rows, columns;
  int panels;           // ceil(rows / 16)
  int padded;           // columns rounded up to a multiple of `unit` (1 for floats)
  int unit;             // columns per activation scale: 32, 64 or 128
  int units_per_group;  // weight scale changes every so many units
  int groups;
  int zero;             // subtracted from codes: 2^(bits-1) if symmetric, 0 if there are offsets
  bool narrow_scales;   // scales and offsets are bfloat16
  const void* codes;
  const void* scales;
  const void* offsets;  // null if symmetric
};

// Activations quantized by `quantize` for matrices of one unit and zero: int8 [rows, stride]; per unit a scale, the sum of
// codes (a small integer, exact as a float), and what integer sums start from: -zero times the sum.
struct Activations {
  const int8_t* codes;
  const float* scales;   // [rows, units]
  const float* sums;     // [rows, units]
  const int32_t* starts; // [rows, units]
  ptrdiff_t stride;      // bytes from row to row
  int units;
};

struct Output {
  float* data;           // [rows, stride]; panel p writes columns 16p .. 16p+15, clipped to the matrix's rows
  ptrdiff_t stride;
  const float* bias;     // [matrix.rows] or null
  bool accumulate;       // add to what is there
};

// KV cache. keys [page, layer, head, dim, 64], values [page, layer, head, 64, dim], both of `type`: what a page of tokens
// takes lies together. int8 keeps four values that are multiplied together side by side, in the operand order of VPDPBUSD: keys
// [.., dim/4, 64, 4], values [.., 64/4, dim, 4]; it has float32 scales [page, layer, head, 64] for each.
struct KVCache {
  KVType type;
  int layers, pages, heads, dim;
  char* keys;
  char* values;
  float* key_scales;
  float* value_scales;
  size_t element() const { return type == KVType::int8 ? 1 : type == KVType::f16 ? 2 : 4; }
  size_t block(int layer, int page, int head) const {  // in elements
    return ((static_cast<size_t>(page) * layers + layer) * heads + head) * kPage * dim;
  }
  size_t scale_block(int layer, int page, int head) const {
    return ((static_cast<size_t>(page) * layers + layer) * heads + head) * kPage;
  }
};

constexpr int kMaxQueries = 64;
constexpr int kSegment = 16; // pages: contexts are attended to in segments, whose results are joined in order

// Queries of one sequence against one KV head.
struct AttentionTask {
  int layer, head;         // KV head
  int queries;             // 1 .. kMaxQueries
  const float* const* q;   // [queries] pointers to `dim` floats
  float* const* out;       // [queries] pointers to `dim` floats
  const int32_t* positions;  // [queries], never decreasing
  const int32_t* pages;    // page numbers of the sequence
  float scale;
  int window;              // a query sees so many tokens, itself included; 0 = all before it
  int segment;             // the one to attend to, its results going to `parts`; -1 = all of them, joined into `out`
  float* parts;            // [queries, dim + 2] for `join`, or null
};

// What one ISA tier offers. Every function works on the given rows only and treats each row by the same operations
// in the same order whatever the number of rows.
struct Tier {
  const char* name;
  // One row: absmax int8 per unit of columns; see reference.quantize_rows. The other pointers as in Activations.
  void (*quantize)(const float* x, int columns, int unit, int zero, int8_t* codes, float* scales, float* sums, int32_t* starts);
  // Panels [begin, end) of a quantized matrix for `rows` rows. scratch: scratch_bytes(matrix) bytes, 64-aligned.
  void (*linear_quantized)(const Matrix&, const Activations&, int rows, int begin, int end, const Output&, void* scratch);
  void (*linear_float)(const Matrix&, const float* x, ptrdiff_t stride, int rows, int begin, int end, const Output&);
  void (*rmsnorm)(const float* x, const float* gain, float offset, float eps, int columns, float* out);
  void (*rope)(const float* table, int heads, int dim, float* x);
  void (*silu_mul)(const float* x, int half, float* out);
  void (*gelu_mul)(const float* x, int half, float* out);  // GELU by tanh
  void (*attention)(const KVCache&, const AttentionTask&);
  // Parts of one query, one for each segment of its context, `stride` floats apart, into its output [dim].
  void (*join)(const float* parts, int segments, ptrdiff_t stride, int dim, float* out);
};

// Scratch for one thread in linear_quantized: two panels expanded to bytes, and 32 x 32 int32 sums for AMX.
inline size_t scratch_bytes(int padded_columns) { return static_cast<size_t>(padded_columns) * 2 * kPanel + 32 * 32 * 4 + 64; }

extern const Tier kPortable;
#if defined(__x86_64__)
extern const Tier kAvx2;
extern const Tier kAvx512;
extern const Tier kAmx;
extern const Tier kAmxEmulated;
#endif

// Half precision in software, round to nearest even; the same on every machine.
uint16_t half_from_float(float value);
float float_from_half(uint16_t bits);

}  // namespace freehold
