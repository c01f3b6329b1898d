// Float operations of a tier: norms, rotary embedding, SiLU and GELU, float linears, attention. Included once per tier unit.

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

inline vf kv_load(const float* p) { return load(p); }
inline vf kv_load(const uint16_t* p) { return load_half(p); }
inline vf kv_load(const int8_t* p) { return load_int8(p); }

constexpr int kQueries = 4;  // queries that share one pass over a page, at most
constexpr int kBlock = 4;    // vectors per register block

struct Softmax {  // running maximum, sum and weighted values of one query
  float maximum, sum;
  float out[freehold::kMaxHeadDim];
};

// scores[q][t] = q . k_t for the 64 tokens of a page (keys [dim, 64]).
template <class T, int N>
void page_scores(const T* keys, int dim, const float* const* q, float (*scores)[freehold::kPage]) {
  for (int t = 0; t < freehold::kPage; t += kBlock * W) {
    vf acc[N][kBlock] = {};
    for (int d = 0; d < dim; ++d) {
      const T* row = keys + d * freehold::kPage + t;
      for (int b = 0; b < kBlock; ++b) {
        const vf key = kv_load(row + b * W);
        for (int i = 0; i < N; ++i) acc[i][b] = fma(key, splat(q[i][d]), acc[i][b]);
      }
    }
    for (int i = 0; i < N; ++i)
      for (int b = 0; b < kBlock; ++b) store(scores[i] + t + b * W, acc[i][b]);
  }
}

// Turns a query's scores on one page into probabilities (times the values' scales), with the online softmax update.
// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
inline void page_softmax(float* scores, const float* key_scales, const float* value_scales, float scale, int begin, int seen,
                         int dim, Softmax& state) {
  vf iota;
  for (int i = 0; i < W; ++i) iota[i] = static_cast<float>(i);
  vf top = splat(-__builtin_inff());
  for (int t = 0; t < freehold::kPage; t += W) {
    vf s = load(scores + t) * scale;
    if (key_scales) s = s * load(key_scales + t);
    const vf token = iota + static_cast<float>(t);
    s = token < static_cast<float>(seen) ? s : splat(-__builtin_inff());
    if (begin > t) s = token >= static_cast<float>(begin) ? s : splat(-__builtin_inff());
    store(scores + t, s);
    top = vmax(top, s);
  }
  const float high = maximum(top);
  const float next = high > state.maximum ? high : state.maximum;
  const float correction = exp(splat(state.maximum - next))[0];
  vf total = {};
  for (int t = 0; t < freehold::kPage; t += W) {
    const vf p = exp(load(scores + t) - next);
    total = total + p;
    store(scores + t, value_scales ? p * load(value_scales + t) : p);
  }
  state.sum = state.sum * correction + sum(total);
  state.maximum = next;
  for (int d = 0; d < dim; d += W) store(state.out + d, load(state.out + d) * correction);
}

// out += p . V for the first `seen` tokens of a page (values [64, dim]); dim is a multiple of 16.
template <class T, int N, int B>
void page_values(const T* values, int dim, int d, int seen, float (*p)[freehold::kPage], Softmax* states) {
  vf acc[N][B];
  for (int i = 0; i < N; ++i)
    for (int b = 0; b < B; ++b) acc[i][b] = load(states[i].out + d + b * W);
  for (int t = 0; t < seen; ++t)
    for (int b = 0; b < B; ++b) {
      const vf value = kv_load(values + static_cast<size_t>(t) * dim + d + b * W);
      for (int i = 0; i < N; ++i) acc[i][b] = fma(value, splat(p[i][t]), acc[i][b]);
    }
  for (int i = 0; i < N; ++i)
    for (int b = 0; b < B; ++b) store(states[i].out + d + b * W, acc[i][b]);
}

// One page of the cache: keys [dim, 64], values [64, dim], and int8's scales.
template <class T>
struct Page {
  const T* keys;
  const T* values;
  const float* key_scales;
  const float* value_scales;
};

template <class T>
Page<T> page_of(const freehold::KVCache& kv, const freehold::AttentionTask& task, int page) {
  const size_t block = kv.block(task.layer, task.pages[page], task.head);
  const size_t scales = kv.scale_block(task.layer, task.pages[page], task.head);
  return {reinterpret_cast<const T*>(kv.keys) + block, reinterpret_cast<const T*>(kv.values) + block,
          kv.key_scales ? kv.key_scales + scales : nullptr, kv.value_scales ? kv.value_scales + scales : nullptr};
}

inline void begin(Softmax& state, int dim) {
  state.maximum = -3.0e38f;
  state.sum = 0;
  memset(state.out, 0, dim * sizeof(float));
}

// The first position that a query sees.
inline int first_seen(const freehold::AttentionTask& task, int query) {
  const int first = task.positions[query] + 1 - task.window;
  return task.window > 0 && first > 0 ? first : 0;
}

// N queries from `first` on meet page number `number`. Each is computed as if it were alone.
template <class T, int N>
void attend_page(const Page<T>& page, int number, int dim, const freehold::AttentionTask& task, int first, Softmax* states) {
  alignas(64) float scores[N][freehold::kPage];
  page_scores<T, N>(page.keys, dim, task.q + first, scores);
  int most = 0;
  for (int i = 0; i < N; ++i) {
    int seen = task.positions[first + i] + 1 - number * freehold::kPage;
    if (seen > freehold::kPage) seen = freehold::kPage;
    most = seen > most ? seen : most;
    const int begin = first_seen(task, first + i) - number * freehold::kPage;
    if (seen > 0 && begin < seen)
      page_softmax(scores[i], page.key_scales, page.value_scales, task.scale, begin, seen, dim, states[i]);
    else
      memset(scores[i], 0, sizeof scores[i]);
  }
  int d = 0;
  for (; d + kBlock * W <= dim; d += kBlock * W) page_values<T, N, kBlock>(page.values, dim, d, most, scores, states);
  for (; d < dim; d += W) page_values<T, N, 1>(page.values, dim, d, most, scores, states);
}

template <class T>
void attend_page(const Page<T>& page, int number, int dim, const freehold::AttentionTask& task, Softmax* states) {
  for (int first = 0; first < task.queries; first += kQueries) {
    const int left = task.queries - first;
    const int last = task.positions[(left < kQueries ? task.queries : first + kQueries) - 1];  // rows come in order of position
    if (last < number * freehold::kPage || first_seen(task, first) >= (number + 1) * freehold::kPage) continue;
    switch (left) {
      case 1: attend_page<T, 1>(page, number, dim, task, first, states + first); break;
      case 2: attend_page<T, 2>(page, number, dim, task, first, states + first); break;
      case 3: attend_page<T, 3>(page, number, dim, task, first, states + first); break;
      default: attend_page<T, kQueries>(page, number, dim, task, first, states + first);
    }
  }
}

// Many queries: each page becomes float32 once, for all of them. The conversion is exact, so nothing else changes.
template <class T>
Page<float> widened(const Page<T>& page, int dim, float* keys, float* values) {
  for (int i = 0; i < dim * freehold::kPage; i += W) {
    store(keys + i, kv_load(page.keys + i));
    store(values + i, kv_load(page.values + i));
  }
  return {keys, values, page.key_scales, page.value_scales};
}

constexpr int kWidenFrom = 3 * kQueries;  // queries

template <class T>
void attend(const freehold::KVCache& kv, const freehold::AttentionTask& task) {
  Softmax states[freehold::kMaxQueries];
  alignas(64) float keys[freehold::kPage * freehold::kMaxHeadDim], values[freehold::kPage * freehold::kMaxHeadDim];
  for (int i = 0; i < task.queries; ++i) begin(states[i], kv.dim);
  for (int number = first_seen(task, 0) / freehold::kPage; number * freehold::kPage <= task.positions[task.queries - 1]; ++number) {
    const Page<T> page = page_of<T>(kv, task, number);
    if (task.queries >= kWidenFrom)
      attend_page<float>(widened(page, kv.dim, keys, values), number, kv.dim, task, states);
    else
      attend_page<T>(page, number, kv.dim, task, states);
  }
  for (int i = 0; i < task.queries; ++i)
    for (int d = 0; d < kv.dim; d += W) store(task.out[i] + d, load(states[i].out + d) / states[i].sum);
}

void attention(const freehold::KVCache& kv, const freehold::AttentionTask& task) {
  if (kv.type == freehold::KVType::int8)
    attend<int8_t>(kv, task);
  else if (kv.type == freehold::KVType::f16)
    attend<uint16_t>(kv, task);
  else
    attend<float>(kv, task);
}

}  // namespace
