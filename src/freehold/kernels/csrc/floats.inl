// Float operations of a tier: norms, rotary embedding, SiLU and GELU, float linears. Included once per tier unit.

namespace {

void rmsnorm(const float* x, const float* gain, float offset, float eps, int columns, float* out) {
  vf squares = {};
  float rest = 0;
  int i = 0;
  for (; i + W <= columns; i += W) squares = fma(load(x + i), load(x + i), squares);
  for (; i < columns; ++i) rest += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf((sum(squares) + rest) / static_cast<float>(columns) + eps);
  for (i = 0; i + W <= columns; i += W) store(out + i, load(x + i) * scale * (load(gain + i) + offset));
  for (; i < columns; ++i) out[i] = x[i] * scale * (gain[i] + offset);
}

// table: cos [dim/2] then sin [dim/2].
void rope(const float* table, int heads, int dim, float* x) {
  const int half = dim / 2;
  for (int h = 0; h < heads; ++h, x += dim) {
    int i = 0;
    for (; i + W <= half; i += W) {
      const vf a = load(x + i), b = load(x + half + i), c = load(table + i), s = load(table + half + i);
      store(x + i, a * c - b * s);
      store(x + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i], c = table[i], s = table[half + i];
      x[i] = a * c - b * s;
      x[half + i] = b * c + a * s;
    }
  }
}

inline vf silu(vf x) { return x / (1.0f + exp(-x)); }

// GELU by tanh (arXiv 1606.08415): x/2 * (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) * (x + 0.044715 x^3).
inline vf gelu(vf x) { return x / (1.0f + exp(-1.5957691216057308f * (x + 0.044715f * x * x * x))); }

template <vf (*Activation)(vf)>
void gated(const float* x, int half, float* out) {
  const float* up = x + half;
  for (int i = 0; i < half; i += W) {
    if (i + W <= half) {
      store(out + i, Activation(load(x + i)) * load(up + i));
      continue;
    }
    float gate[W] = {}, value[W] = {}, result[W];
    memcpy(gate, x + i, (half - i) * sizeof(float));
    memcpy(value, up + i, (half - i) * sizeof(float));
    store(result, Activation(load(gate)) * load(value));
    memcpy(out + i, result, (half - i) * sizeof(float));
  }
}

void silu_mul(const float* x, int half, float* out) { gated<silu>(x, half, out); }

void gelu_mul(const float* x, int half, float* out) { gated<gelu>(x, half, out); }

// Writes 16 sums of one row, with bias and accumulation, clipped to the matrix.
inline void finish(const freehold::Matrix& m, const freehold::Output& out, int row, int panel, const vf* acc) {
  const int column = panel * freehold::kPanel;
  float* target = out.data + row * out.stride + column;
  if (column + freehold::kPanel <= m.rows) {
    for (int v = 0; v < V; ++v) {
      vf value = acc[v];
      if (out.bias) value = value + load(out.bias + column + v * W);
      if (out.accumulate) value = load(target + v * W) + value;
      store(target + v * W, value);
    }
    return;
  }
  float values[freehold::kPanel];
  for (int v = 0; v < V; ++v) store(values + v * W, acc[v]);
  for (int i = 0; i < m.rows - column; ++i) {
    float value = values[i];
    if (out.bias) value = value + out.bias[column + i];
    target[i] = out.accumulate ? target[i] + value : value;
  }
}

inline vf weight(const float* p) { return load(p); }
inline vf weight(const uint16_t* p) { return load_bf16(p); }

// R rows by P panels; each output sums its columns in order, one fused multiply-add after the other.
template <int R, int P, class T>
void float_block(const freehold::Matrix& m, const float* x, ptrdiff_t stride, int row, int panel, const freehold::Output& out) {
  vf acc[R][P][V] = {};
  const T* w = static_cast<const T*>(m.codes) + static_cast<size_t>(panel) * m.columns * freehold::kPanel;
  const size_t step = static_cast<size_t>(m.columns) * freehold::kPanel;
  const float* rows = x + row * stride;
  for (int k = 0; k < m.columns; ++k)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < V; ++v) {
        const vf value = weight(w + p * step + static_cast<size_t>(k) * freehold::kPanel + v * W);
        for (int r = 0; r < R; ++r) acc[r][p][v] = fma(value, splat(rows[r * stride + k]), acc[r][p][v]);
      }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) finish(m, out, row + r, panel + p, acc[r][p]);
}

template <int P, class T>
void float_rows(const freehold::Matrix& m, const float* x, ptrdiff_t stride, int rows, int panel, const freehold::Output& out) {
  int row = 0;
  for (; row + 8 <= rows; row += 8) float_block<8, P, T>(m, x, stride, row, panel, out);
  for (; row + 4 <= rows; row += 4) float_block<4, P, T>(m, x, stride, row, panel, out);
  for (; row < rows; ++row) float_block<1, P, T>(m, x, stride, row, panel, out);
}

template <class T>
void linear_float_of(const freehold::Matrix& m, const float* x, ptrdiff_t stride, int rows, int begin, int end,
                     const freehold::Output& out) {
  int panel = begin;
  if (rows < 4)
    for (; panel + 4 <= end; panel += 4)
      for (int row = 0; row < rows; ++row) float_block<1, 4, T>(m, x, stride, row, panel, out);
  for (; panel + 2 <= end; panel += 2) float_rows<2, T>(m, x, stride, rows, panel, out);
  for (; panel < end; ++panel) float_rows<1, T>(m, x, stride, rows, panel, out);
}

void linear_float(const freehold::Matrix& m, const float* x, ptrdiff_t stride, int rows, int begin, int end,
                  const freehold::Output& out) {
  if (m.format == freehold::Format::f32)
    linear_float_of<float>(m, x, stride, rows, begin, end, out);
  else
    linear_float_of<uint16_t>(m, x, stride, rows, begin, end, out);
}

}  // namespace
