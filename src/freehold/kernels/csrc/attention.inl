// Attention of a tier: queries of one sequence against the pages of one KV head. Included once per tier unit, after
// quantized.inl.
//
// A context is cut into segments of kSegment pages, at the same places for everybody. A query goes through the pages of a
// segment with an online softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018); the results
// of its segments are joined in order, by whoever computed them. Exponentials have base 2. Queries share the reading of a
// page and nothing else: each is computed as if it were alone.
//
// With an int8 cache a query becomes 16-bit integers, and probabilities times their values' scales 16-bit fractions of the
// most they could be in the page; see reference.int8_weights. VNNI multiplies both as two planes of bytes with keys and
// values as they are; other tiers multiply the same integers as floats.

namespace {

#if defined(__AVX512F__)
constexpr int kQueries = 6;  // queries that share one pass over a page, at most
#else
constexpr int kQueries = 4;  // sixteen registers: eight sums, and what they are made of
#endif
constexpr int kSide = 2;     // vectors of tokens or of columns that a pass takes together

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kQueryTop = 32512.0f, kWeightTop = 65280.0f;  // largest codes: 127 * 256 and 255 * 256

// Values of the cache as floats. A step is how many lie side by side: `vector(p, i)` is the i-th of each W of them.
template <class T>
constexpr int kStep = 1;
template <>
constexpr int kStep<int8_t> = 4;
inline vf vector(const float* p, int) { return load(p); }
inline vf vector(const uint16_t* p, int) { return load_half(p); }
inline vf vector(const int8_t* p, int i) {
  vi quads;
  __builtin_memcpy(&quads, p, sizeof quads);
  return to_float(quads << (24 - 8 * i) >> 24);
}

// One page of the cache, see KVCache; int8 has scales.
template <class T>
struct Page {
  const T* keys;
  const T* values;
  const float* key_scales;
  const float* value_scales;
  ptrdiff_t next;  // in values: how far off the page is that will be read after this one; its lines are fetched meanwhile
};

template <class T>
Page<T> page_of(const freehold::KVCache& kv, const freehold::AttentionTask& task, int number) {
  const size_t block = kv.block(task.layer, task.pages[number], task.head);
  const size_t scales = kv.scale_block(task.layer, task.pages[number], task.head);
  return {reinterpret_cast<const T*>(kv.keys) + block, reinterpret_cast<const T*>(kv.values) + block,
          kv.key_scales ? kv.key_scales + scales : nullptr, kv.value_scales ? kv.value_scales + scales : nullptr, 0};
}

// A hint to fetch, of the page that will be read next, what lies where `count` values from `at` on lie in this one.
template <class T>
inline void fetch_next(const T* at, ptrdiff_t next, int count) {
  const uint8_t* there = reinterpret_cast<const uint8_t*>(at + next);
  for (int i = 0; i < count * static_cast<int>(sizeof(T)); i += 64) fetch(there + i);
}

// What is known of a task's queries before they meet a page.
struct Queries {
  const float* q[freehold::kMaxQueries];
  float scale[freehold::kMaxQueries];  // from a dot product to an exponent of 2
#if !defined(__AVX512F__)
  alignas(64) float codes[freehold::kMaxQueries * freehold::kMaxHeadDim];
#else
  alignas(64) int8_t high[freehold::kMaxQueries * freehold::kMaxHeadDim];  // planes of the codes: 256 * high + low
  alignas(64) int8_t low[freehold::kMaxQueries * freehold::kMaxHeadDim];
  int32_t start_high[freehold::kMaxQueries], start_low[freehold::kMaxQueries];  // -128 times their sums: keys are taken as key + 128
#endif
};

// How far queries are in a segment: the largest exponent so far, the sum of powers, and the values' sum [dim] for each.
struct Progress {
  float top[freehold::kMaxQueries], sum[freehold::kMaxQueries];
  alignas(64) float values[freehold::kMaxQueries * freehold::kMaxHeadDim];
};

// What N queries make of one page: probabilities relative to the page's largest, times their values' scales.
template <int N>
struct Met {
  alignas(64) float weights[N][freehold::kPage];  // as floats, or
  alignas(64) uint8_t high[N][freehold::kPage];   // as 16-bit codes in two planes
  alignas(64) uint8_t low[N][freehold::kPage];
  float unit[N];                                  // what a weight of 1, or of code 1, stands for
  float keep[N], add[N];                          // factors of what was before and of this page
  int begin = freehold::kPage, end = 0;           // tokens that any of them sees
};

template <int N>
struct Count { static constexpr int value = N; };

inline int32_t total(vi v) {
  int32_t sum = 0;
  for (int i = 0; i < W; ++i) sum += v[i];
  return sum;
}

// `x` for tokens t .. t+W-1 that are in [begin, end), `otherwise` for the rest.
inline vf seen(int t, int begin, int end, vf x, vf otherwise) {
  vi token;
  for (int i = 0; i < W; ++i) token[i] = t + i;
  x = token < end ? x : otherwise;
  return token >= begin ? x : otherwise;
}

// The first position that a query sees.
inline int first_seen(const freehold::AttentionTask& task, int query) {
  const int first = task.positions[query] + 1 - task.window;
  return task.window > 0 && first > 0 ? first : 0;
}

// scores[i][t] = q_i . k_t for the 64 tokens of a page.
template <int N, class T>
void page_scores(const Page<T>& page, int dim, const Queries& queries, int first, float (*scores)[freehold::kPage]) {
  constexpr int S = kStep<T>;
  for (int t = 0; t < freehold::kPage; t += kSide * W) {
    vf acc[N][kSide] = {};
    for (int d = 0; d < dim; d += S) {
      fetch_next(page.keys + d * freehold::kPage + t * S, page.next, kSide * W * S);
#pragma GCC unroll 4
      for (int j = 0; j < S; ++j) {
        vf key[kSide];
#pragma GCC unroll 2
        for (int b = 0; b < kSide; ++b) key[b] = vector(page.keys + d * freehold::kPage + (t + b * W) * S, j);
#pragma GCC unroll 6
        for (int i = 0; i < N; ++i) {
          const vf q = splat(queries.q[first + i][d + j]);
#pragma GCC unroll 2
          for (int b = 0; b < kSide; ++b) acc[i][b] = fma(key[b], q, acc[i][b]);
        }
      }
    }
    for (int i = 0; i < N; ++i)
      for (int b = 0; b < kSide; ++b) store(scores[i] + t + b * W, acc[i][b]);
  }
}

// values[i] = keep_i * values[i] + add_i * (weights_i . V): B vectors of columns from `d` on.
template <int N, int B, class T>
void page_values(const Page<T>& page, int dim, int d, const Met<N>& met, Progress& progress, int first) {
  constexpr int S = kStep<T>;
  vf acc[N][B] = {};
  for (int t = met.begin / S * S; t < met.end; t += S) {
    fetch_next(page.values + t * dim + d * S, page.next, B * W * S);
#pragma GCC unroll 4
    for (int j = 0; j < S; ++j) {
      vf value[B];
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) value[b] = vector(page.values + t * dim + (d + b * W) * S, j);
#pragma GCC unroll 6
      for (int i = 0; i < N; ++i) {
        const vf weight = splat(met.weights[i][t + j]);
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) acc[i][b] = fma(value[b], weight, acc[i][b]);
      }
    }
  }
  for (int i = 0; i < N; ++i)
    for (int b = 0; b < B; ++b) {
      float* at = progress.values + (first + i) * dim + d + b * W;
      store(at, fma(acc[i][b], splat(met.add[i] * met.unit[i]), load(at) * met.keep[i]));
    }
}

#if defined(__AVX512F__)
template <int N>
void page_scores(const Page<int8_t>& page, int dim, const Queries& queries, int first, float (*scores)[freehold::kPage]) {
  const int8_t* high = queries.high + first * dim;
  const int8_t* low = queries.low + first * dim;
  for (int t = 0; t < freehold::kPage; t += kSide * W) {
    vi sum_high[N][kSide], sum_low[N][kSide];
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 2
      for (int b = 0; b < kSide; ++b) {
        sum_high[i][b] = splat(queries.start_high[first + i]);
        sum_low[i][b] = splat(queries.start_low[first + i]);
      }
    for (int d = 0; d < dim; d += 4) {
      fetch_next(page.keys + d * freehold::kPage + t * 4, page.next, kSide * W * 4);
      vb key[kSide];
#pragma GCC unroll 2
      for (int b = 0; b < kSide; ++b) {
        const vb signed_key = load_bytes(reinterpret_cast<const uint8_t*>(page.keys) + d * freehold::kPage + (t + b * W) * 4);
        key[b] = _mm512_xor_si512(signed_key, _mm512_set1_epi8(-128));
      }
#pragma GCC unroll 6
      for (int i = 0; i < N; ++i) {
        const int32_t h = quad(high + i * dim + d), l = quad(low + i * dim + d);
#pragma GCC unroll 2
        for (int b = 0; b < kSide; ++b) {
          sum_high[i][b] = dot4<false>(sum_high[i][b], key[b], h);
          sum_low[i][b] = dot4<false>(sum_low[i][b], key[b], l);
        }
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 2
      for (int b = 0; b < kSide; ++b) store(scores[i] + t + b * W, to_float((sum_high[i][b] << 8) + sum_low[i][b]));
  }
}

template <int N, int B>
void page_values(const Page<int8_t>& page, int dim, int d, const Met<N>& met, Progress& progress, int first) {
  vi sum_high[N][B] = {}, sum_low[N][B] = {};
  for (int t = met.begin / 4 * 4; t < met.end; t += 4) {
    fetch_next(page.values + t * dim + d * 4, page.next, B * W * 4);
    vb value[B];
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) value[b] = load_bytes(reinterpret_cast<const uint8_t*>(page.values) + t * dim + (d + b * W) * 4);
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) {
      int32_t h, l;
      __builtin_memcpy(&h, met.high[i] + t, 4);
      __builtin_memcpy(&l, met.low[i] + t, 4);
      const __m512i high = _mm512_set1_epi32(h), low = _mm512_set1_epi32(l);
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        sum_high[i][b] = (vi)_mm512_dpbusd_epi32((__m512i)sum_high[i][b], high, value[b]);
        sum_low[i][b] = (vi)_mm512_dpbusd_epi32((__m512i)sum_low[i][b], low, value[b]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      float* at = progress.values + (first + i) * dim + d + b * W;
      const vf sum = to_float((sum_high[i][b] << 8) + sum_low[i][b]);
      store(at, fma(sum, splat(met.add[i] * met.unit[i]), load(at) * met.keep[i]));
    }
}

#endif

template <class T>
constexpr bool kCoded = false;  // whether queries and weights are rounded to integers
template <>
constexpr bool kCoded<int8_t> = true;

// W weights that are codes but for rounding.
template <int N>
inline void store_codes(vf weights, Met<N>& met, int i, int t) {
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)(as_int(weights + kMagic));  // the integer, in the 16 low bits
  _mm_storeu_si128((__m128i*)(met.low[i] + t), _mm512_cvtepi32_epi8(bits));
  _mm_storeu_si128((__m128i*)(met.high[i] + t), _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, 8)));
#else
  store(met.weights[i] + t, weights + kMagic - kMagic);
#endif
}

// A page's value scales as codes count them, for those who see all of it.
struct Scales {
  alignas(64) float code[freehold::kPage];  // what a probability of 1 is as a code
  float unit;
};

// `begin` and `end`: the tokens that are seen; the scales of others may be anything.
template <bool MASKED>
void code_scales(const float* scales, int begin, int end, Scales& out) {
  vf most = {};
  for (int t = 0; t < freehold::kPage; t += W) {
    vf s = load(scales + t);
    if (MASKED) s = seen(t, begin, end, s, vf{});
    store(out.code + t, s);
    most = vmax(most, s);
  }
  const float top = maximum(most);
  out.unit = top / kWeightTop;
  const float inverse = out.unit >= 1.17549435e-38f ? 1.0f / out.unit : 0.0f;
  for (int t = 0; t < freehold::kPage; t += W) store(out.code + t, load(out.code + t) * inverse);
}

// Turns a query's dot products into weights; returns the page's largest exponent, and the sum of powers relative to it.
template <bool MASKED, class T, int N>
float page_softmax(const Page<T>& page, const Scales& shared, float scale, int begin, int end, Met<N>& met, int i, float& sum_of) {
  float* row = met.weights[i];
  vf top = splat(-__builtin_inff());
  for (int t = 0; t < freehold::kPage; t += W) {
    vf s = load(row + t) * scale;
    if (page.key_scales) s = s * load(page.key_scales + t);
    if (MASKED) s = seen(t, begin, end, s, splat(-__builtin_inff()));
    store(row + t, s);
    top = vmax(top, s);
  }
  const float high = maximum(top);
  Scales own;
  const Scales* scales = &shared;
  if (kCoded<T> && MASKED) code_scales<true>(page.value_scales, begin, end, own), scales = &own;
  met.unit[i] = kCoded<T> ? scales->unit : 1.0f;
  vf total = {};
  for (int t = 0; t < freehold::kPage; t += W) {
    const vf p = exp2(load(row + t) - high);
    total = total + p;
    if (kCoded<T>)
      store_codes(p * load(scales->code + t), met, i, t);
    else
      store(row + t, MASKED ? seen(t, begin, end, p, vf{}) : p);
  }
  sum_of = sum(total);
  return high;
}

// N queries from `first` on meet page number `number`.
template <int N, class T>
void attend_page(const Page<T>& page, const Scales& scales, int number, int dim, const freehold::AttentionTask& task,
                 const Queries& queries, int first, Progress& progress) {
  Met<N> met;
  page_scores<N>(page, dim, queries, first, met.weights);
  alignas(64) float gap[W] = {}, sums[N];
  bool higher[N];
  for (int i = 0; i < N; ++i) {
    const int begin = first_seen(task, first + i) - number * freehold::kPage;
    const int end = task.positions[first + i] + 1 - number * freehold::kPage;
    if (end <= 0 || begin >= freehold::kPage) {  // sees nothing of it
      memset(met.weights[i], 0, sizeof met.weights[i]);
      memset(met.high[i], 0, sizeof met.high[i]);
      memset(met.low[i], 0, sizeof met.low[i]);
      higher[i] = false;
      sums[i] = met.unit[i] = 0;
      continue;
    }
    const float top = begin <= 0 && end >= freehold::kPage
                          ? page_softmax<false>(page, scales, queries.scale[first + i], begin, end, met, i, sums[i])
                          : page_softmax<true>(page, scales, queries.scale[first + i], begin, end, met, i, sums[i]);
    met.begin = begin < met.begin ? (begin < 0 ? 0 : begin) : met.begin;
    met.end = end > met.end ? (end > freehold::kPage ? freehold::kPage : end) : met.end;
    float& before = progress.top[first + i];
    higher[i] = top > before;
    gap[i] = higher[i] ? before - top : top - before;
    before = higher[i] ? top : before;
  }
  store(gap, exp2(load(gap)));
  for (int i = 0; i < N; ++i) {
    met.keep[i] = higher[i] ? gap[i] : 1.0f;
    met.add[i] = higher[i] ? 1.0f : gap[i];
    progress.sum[first + i] = progress.sum[first + i] * met.keep[i] + sums[i] * met.add[i];
  }
  int d = 0;
  for (; d + kSide * W <= dim; d += kSide * W) page_values<N, kSide>(page, dim, d, met, progress, first);
  for (; d < dim; d += W) page_values<N, 1>(page, dim, d, met, progress, first);
}

template <class T>
void attend_page(const Page<T>& page, int number, int dim, const freehold::AttentionTask& task, const Queries& queries, Progress& progress) {
  Scales scales;
  if (kCoded<T>) code_scales<false>(page.value_scales, 0, freehold::kPage, scales);
  const int passes = (task.queries + kQueries - 1) / kQueries;
  for (int pass = 0, first = 0, last; pass < passes; ++pass, first = last) {
    last = task.queries * (pass + 1) / passes;  // rows come in order of position
    if (task.positions[last - 1] < number * freehold::kPage || first_seen(task, first) >= (number + 1) * freehold::kPage) continue;
    auto meet = [&](auto n) { attend_page<decltype(n)::value>(page, scales, number, dim, task, queries, first, progress); };
    switch (last - first) {
      case 1: meet(Count<1>()); break;
      case 2: meet(Count<2>()); break;
      case 3: meet(Count<3>()); break;
      case 4: meet(Count<4>()); break;
#if defined(__AVX512F__)
      case 5: meet(Count<5>()); break;
      default: meet(Count<6>());
#endif
    }
  }
}

template <class T>
void prepare(const freehold::AttentionTask& task, int dim, Queries& queries) {
  for (int i = 0; i < task.queries; ++i) {
    queries.q[i] = task.q[i];
    queries.scale[i] = task.scale * kLog2E;
    if (!kCoded<T>) continue;
    vf most = {};
    for (int d = 0; d < dim; d += W) most = vmax(most, vabs(load(task.q[i] + d)));
    float unit = maximum(most) / kQueryTop;
    if (!(unit >= 1.17549435e-38f)) unit = 0;  // as in `quantize`
    const float inverse = unit > 0 ? 1.0f / unit : 0.0f;
    queries.scale[i] *= unit;
#if defined(__AVX512F__)
    vi sum_high = {}, sum_low = {};
    for (int d = 0; d < dim; d += W) {
      const vi code = as_int(load(task.q[i] + d) * inverse + kMagic) - as_int(splat(kMagic));
      const vi high = (code + 128) >> 8, low = code - (high << 8);
      store_int8(queries.high + i * dim + d, high);
      store_int8(queries.low + i * dim + d, low);
      sum_high = sum_high + high;
      sum_low = sum_low + low;
    }
    queries.start_high[i] = -128 * total(sum_high);
    queries.start_low[i] = -128 * total(sum_low);
#else
    queries.q[i] = queries.codes + i * dim;
    for (int d = 0; d < dim; d += W) store(queries.codes + i * dim + d, load(task.q[i] + d) * inverse + kMagic - kMagic);
#endif
  }
}

// Joins a query's next segment (largest exponent, sum, values) to those before it. One that it sees nothing of changes nothing.
inline void join_next(float& top, float& sum, float* values, float next_top, float next_sum, const float* next, int dim) {
  if (next_sum == 0) return;
  const bool higher = sum == 0 || next_top > top;
  const float less = sum == 0 ? 0.0f : exp2(splat(higher ? top - next_top : next_top - top))[0];
  const float keep = higher ? less : 1.0f, add = higher ? 1.0f : less;
  for (int d = 0; d < dim; d += W) store(values + d, fma(load(next + d), splat(add), sum == 0 ? vf{} : load(values + d) * keep));
  sum = sum * keep + next_sum * add;
  top = higher ? next_top : top;
}

inline void normalize(float* values, float sum, int dim) {
  for (int d = 0; d < dim; d += W) store(values + d, load(values + d) / sum);
}

void join(const float* parts, int segments, ptrdiff_t stride, int dim, float* out) {
  float top = 0, sum = 0;
  for (int s = 0; s < segments; ++s, parts += stride) join_next(top, sum, out, parts[dim], parts[dim + 1], parts, dim);
  normalize(out, sum, dim);
}

template <class T>
void attend_segment(const freehold::KVCache& kv, const freehold::AttentionTask& task, const Queries& queries, int segment, Progress& progress) {
  for (int i = 0; i < task.queries; ++i) progress.top[i] = -3.0e38f, progress.sum[i] = 0;
  memset(progress.values, 0, sizeof(float) * task.queries * kv.dim);
  int number = first_seen(task, 0) / freehold::kPage, last = task.positions[task.queries - 1] / freehold::kPage;
  if (number < segment * freehold::kSegment) number = segment * freehold::kSegment;
  if (last >= (segment + 1) * freehold::kSegment) last = (segment + 1) * freehold::kSegment - 1;
  for (; number <= last; ++number) {
    Page<T> page = page_of<T>(kv, task, number);
    if (number < task.positions[task.queries - 1] / freehold::kPage) page.next = page_of<T>(kv, task, number + 1).keys - page.keys;
    attend_page(page, number, kv.dim, task, queries, progress);
  }
}

template <class T>
void attend(const freehold::KVCache& kv, const freehold::AttentionTask& task) {
  const int dim = kv.dim;
  Queries queries;
  Progress progress;
  prepare<T>(task, dim, queries);
  if (task.segment >= 0) {
    attend_segment<T>(kv, task, queries, task.segment, progress);
    for (int i = 0; i < task.queries; ++i) {
      float* part = task.parts + static_cast<ptrdiff_t>(i) * (dim + 2);
      memcpy(part, progress.values + i * dim, dim * sizeof(float));
      part[dim] = progress.top[i];
      part[dim + 1] = progress.sum[i];
    }
    return;
  }
  float top[freehold::kMaxQueries] = {}, sum[freehold::kMaxQueries] = {};
  constexpr int kTokens = freehold::kSegment * freehold::kPage;
  for (int s = first_seen(task, 0) / kTokens; s <= task.positions[task.queries - 1] / kTokens; ++s) {
    attend_segment<T>(kv, task, queries, s, progress);
    for (int i = 0; i < task.queries; ++i)
      join_next(top[i], sum[i], task.out[i], progress.top[i], progress.sum[i], progress.values + i * dim, dim);
  }
  for (int i = 0; i < task.queries; ++i) normalize(task.out[i], sum[i], dim);
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
