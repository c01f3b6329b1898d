#include "executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace freehold {

namespace {

constexpr int kBlockRows = 16;   // rows of one sequence in an attention task
constexpr int kBriefRows = 64;   // a step of fewer rows is brief: meetings cost more of it than work (see `crowd.h`)
constexpr int kSharedRows = 4;   // from so many rows on, members share row-wise work; below, each does all of it for itself
constexpr int kSegmentTokens = kSegment * kPage;  // contexts this short are attended to by whole KV heads without another meeting
constexpr int kShares = 4;       // attention tasks for each member, so that all end at about the same time

bool quantized(const Matrix& m) { return m.format == Format::int4 || m.format == Format::int8; }

// Operations that write every value of their output from inputs and constants alone.
bool writes_whole(const Instruction& op) {
  switch (op.kind) {
    case Kind::rmsnorm:
      return !op.accumulate;
    case Kind::embed: case Kind::rope_table: case Kind::silu_mul: case Kind::gelu_mul: case Kind::gather: case Kind::residual:
      return true;
    default:
      return false;
  }
}

// Gives each instruction its work counters (one for each part of a matrix); returns how many there are.
size_t number(std::vector<Instruction>& program) {
  size_t counters = 0;
  for (auto& op : program) {
    op.counter = counters;
    counters += std::max<size_t>(1, op.parts.size());
  }
  return counters;
}

// What rounding a row to int8, one scale per unit of columns, takes away from it.
void lost(const float* x, int columns, int unit, float* out) {
  for (int begin = 0; begin < columns; begin += unit) {
    const int end = std::min(begin + unit, columns);
    float top = 0;
    for (int i = begin; i < end; ++i) top = std::max(top, std::fabs(x[i]));
    float scale = top / 127.0f;
    if (!(scale >= 1.17549435e-38f)) scale = 0;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (int i = begin; i < end; ++i) out[i] = x[i] - static_cast<float>(__builtin_lrintf(x[i] * inverse)) * scale;
  }
}

void expect(bool good, const char* what) {
  if (!good) throw std::invalid_argument(what);
}

}  // namespace

Executor::Executor(const Tier& tier, std::vector<BufferShape> buffers, std::vector<Instruction> program, int logits,
                   KVType kv_type, int layers, int pages, int kv_heads, int head_dim, int context, int vocabulary, int threads)
    : tier_(tier), shapes_(std::move(buffers)), program_(std::move(program)), logits_(logits), context_(context),
      vocabulary_(vocabulary), team_(threads), data_(shapes_.size()), next_(number(program_)), normed_(team_.capacity()), scratch_(team_.capacity()) {
  expect(head_dim > 0 && head_dim <= kMaxHeadDim && head_dim % kPanel == 0, "head_dim must be a multiple of 16, at most 256");
  kv_ = {kv_type, layers, pages, kv_heads, head_dim, nullptr, nullptr, nullptr, nullptr};
  const size_t tokens = static_cast<size_t>(layers) * pages * kv_heads * kPage;
  keys_ = Memory(tokens * head_dim * kv_.element(), false);
  values_ = Memory(tokens * head_dim * kv_.element(), false);
  if (kv_type == KVType::int8) {
    key_scales_ = Memory(tokens * sizeof(float), false);
    value_scales_ = Memory(tokens * sizeof(float), false);
  }
  kv_.keys = keys_.data();
  kv_.values = values_.data();
  kv_.key_scales = reinterpret_cast<float*>(key_scales_.data());
  kv_.value_scales = reinterpret_cast<float*>(value_scales_.data());
  for (const auto& op : program_)
    if (op.kind == Kind::attention) group_ = std::max(group_, op.heads / op.kv_heads);
  for (const auto& op : program_)
    for (const auto& part : op.parts) {
      if (op.kind != Kind::linear || !quantized(part->matrix)) continue;
      widest_ = std::max(widest_, static_cast<size_t>(part->matrix.padded));
      most_units_ = std::max(most_units_, static_cast<size_t>(part->matrix.padded / part->matrix.unit));
    }
  for (auto& memory : scratch_) memory = Memory(scratch_bytes(static_cast<int>(widest_)));
  replicable_.assign(shapes_.size(), true);
  for (const auto& op : program_) {
    if (!writes_whole(op)) replicable_[op.out] = false;
    if (op.kind == Kind::attention) replicable_[op.in] = false;  // members read each other's heads
  }
  copies_.resize(team_.capacity() - 1, std::vector<std::vector<float>>(shapes_.size()));
  for (auto& copies : copies_)
    for (size_t b = 0; b < shapes_.size(); ++b)
      if (replicable_[b]) copies[b].resize(static_cast<size_t>(kSharedRows) * shapes_[b].columns);
  base_.resize(team_.capacity(), std::vector<float*>(shapes_.size()));
  for (const bool tokens : {false, true})
    for (const bool outputs : {false, true}) plans_[tokens][outputs] = plan(tokens, outputs);
}

std::vector<float> Spare::take() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (kept_.empty()) return {};
  std::vector<float> values = std::move(kept_.back());
  kept_.pop_back();
  return values;
}

void Spare::give(std::vector<float>&& values) {
  constexpr size_t kMost = 2;
  std::lock_guard<std::mutex> lock(mutex_);
  if (kept_.size() < kMost) kept_.push_back(std::move(values));
}

bool Executor::copied(int buffer, bool few_tokens, bool few_outputs) const {
  return replicable_[buffer] && (shapes_[buffer].outputs ? few_outputs : few_tokens);
}

// The attention for which instruction `first` and those after it prepare heads (norms and rotations in place); 0 if none.
size_t Executor::head_stage(size_t first) const {
  for (size_t i = first; i < program_.size(); ++i) {
    const Instruction& op = program_[i];
    const bool in_place = op.kind == Kind::headnorm || (op.kind == Kind::rope && replicable_[op.in]);
    if (in_place && op.out == program_[first].out && op.column % op.head_dim == 0) continue;
    if (op.kind != Kind::attention || (i > first && op.in != program_[first].out)) return 0;
    const bool same = std::all_of(program_.begin() + first, program_.begin() + i, [&](const auto& prepares) { return prepares.head_dim == op.head_dim; });
    return same ? i : 0;
  }
  return 0;
}

std::vector<Executor::Stage> Executor::plan(bool few_tokens, bool few_outputs) const {
  std::vector<Stage> stages;
  for (size_t i = 0; i < program_.size(); ++i) {
    const Instruction& op = program_[i];
    if (const size_t last = few_tokens ? head_stage(i) : 0) {
      stages.push_back({Work::heads, i, last, false});
      i = last;
    } else if (op.kind == Kind::linear) {
      const bool few = shapes_[op.in].outputs ? few_outputs : few_tokens;
      const bool codes = std::any_of(op.parts.begin(), op.parts.end(), [](const auto& part) { return quantized(part->matrix); });
      if (!few && codes) stages.push_back({Work::quantize, i, i, false});
      stages.push_back({Work::linear, i, i, false});
    } else if (op.kind == Kind::attention) {
      stages.push_back({Work::store, i, i, false});
      stages.push_back({Work::attend, i, i, false});
    } else {
      stages.push_back({copied(op.out, few_tokens, few_outputs) ? Work::copies : Work::rows, i, i, false});
    }
  }
  std::vector<std::vector<Touch>> touches(stages.size());
  for (size_t i = 0; i < stages.size(); ++i) touch(stages[i], few_tokens, few_outputs, touches[i]);
  const std::vector<bool> meet = freehold::meetings(touches, static_cast<int>(shapes_.size()) + 2);
  for (size_t i = 0; i < stages.size(); ++i) stages[i].meet = meet[i];
  return stages;
}

void Executor::touch(const Stage& stage, bool few_tokens, bool few_outputs, std::vector<Touch>& touches) const {
  const Instruction& op = program_[stage.last];
  const int codes = static_cast<int>(shapes_.size()), cache = codes + 1;
  auto add = [&](int resource, bool write, bool whole) {
    if (resource >= 0 && (resource >= codes || !copied(resource, few_tokens, few_outputs))) touches.push_back({resource, write, whole});
  };
  switch (stage.work) {
    case Work::copies: add(op.in, false, true); return;
    case Work::rows:
      add(op.in, false, op.kind == Kind::gather);
      add(op.out, true, false);
      return;
    case Work::quantize:
      add(op.in, false, false);
      add(codes, true, false);
      return;
    case Work::linear:
      if (!(shapes_[op.in].outputs ? few_outputs : few_tokens)) add(codes, false, true);
      add(op.in, false, true);
      add(op.out, true, true);
      return;
    case Work::heads:
    case Work::attend:
      add(op.in, stage.work == Work::heads, true);
      add(cache, stage.work == Work::heads, true);
      add(op.out, true, true);
      return;
    case Work::store:
      add(op.in, false, false);
      add(cache, true, false);
      return;
  }
}

int Executor::meetings() const {
  int count = 1;
  for (const Stage& stage : plans_[true][true]) count += stage.meet;
  return count;
}

void Executor::check(const StepView& s) const {
  expect(s.rows > 0, "a step needs at least one token");
  for (int i = 0; i < s.rows; ++i) {
    expect(s.tokens[i] >= 0 && s.tokens[i] < vocabulary_, "token id out of range");
    expect(s.positions[i] >= 0 && s.positions[i] < context_, "position out of range");
    expect(s.sequences[i] >= 0 && s.sequences[i] < s.table_rows, "sequence out of range");
    expect(s.positions[i] / kPage < s.table_columns, "position beyond the sequence's pages");
  }
  for (int i = 0; i < s.rows; ++i)
    for (int p = 0; p <= s.positions[i] / kPage; ++p) {
      const int page = s.tables[static_cast<size_t>(s.sequences[i]) * s.table_columns + p];
      expect(page >= 0 && page < kv_.pages, "page out of range");
    }
  for (int i = 0; i < s.output_rows; ++i) expect(s.outputs[i] >= 0 && s.outputs[i] < s.rows, "output row out of range");
}

void Executor::prepare(const StepView& s) {
  step_ = s;
  const bool few_tokens = s.rows < kSharedRows, few_outputs = s.output_rows < kSharedRows;
  plan_ = &plans_[few_tokens][few_outputs];
  data_[logits_] = spare_->take();
  for (size_t b = 0; b < shapes_.size(); ++b) {
    const size_t need = static_cast<size_t>(rows_of(static_cast<int>(b))) * shapes_[b].columns;
    if (data_[b].size() < need) data_[b].resize(need);
    for (int member = 0; member < team_.capacity(); ++member) {
      const bool own = member > 0 && copied(static_cast<int>(b), few_tokens, few_outputs);
      base_[member][b] = own ? copies_[member - 1][b].data() : data_[b].data();
    }
  }
  // Members quantize few rows each for themselves, many together.
  const size_t rows = std::max(kSharedRows * team_.capacity(), s.rows);
  if (codes_.size() < rows * widest_) codes_.resize(rows * widest_);
  if (scales_.size() < rows * most_units_) scales_.resize(rows * most_units_);
  if (sums_.size() < rows * most_units_) sums_.resize(rows * most_units_);
  if (starts_.size() < rows * most_units_) starts_.resize(rows * most_units_);
  for (auto& counter : next_) counter.store(0, std::memory_order_relaxed);
  blocks_.clear();
  for (int begin = 0; begin < s.rows;) {
    int end = begin + 1;
    while (end < s.rows && end - begin < kBlockRows && s.sequences[end] == s.sequences[begin]) ++end;
    blocks_.push_back({begin, end});
    begin = end;
  }
  prepare_attention();
}

// Who attends to what in this step, the same in every layer. Blocks that would keep one member busy for long are cut.
void Executor::prepare_attention() {
  attending_.clear();
  auto tokens = [&](const Block& block) { return step_.positions[block.end - 1] + 1; };
  auto cost = [&](const Block& block) { return static_cast<double>(block.end - block.begin) * tokens(block); };
  double total = 0;
  for (const Block& block : blocks_) total += cost(block);
  size_t part = 0, joined = 0;
  for (int b = 0; b < static_cast<int>(blocks_.size()); ++b) {
    const int segments = (tokens(blocks_[b]) - 1) / kSegmentTokens + 1;
    const bool cut = segments > 1 && cost(blocks_[b]) * kShares * team_.size() > total * kv_.heads;
    const size_t floats = static_cast<size_t>(blocks_[b].end - blocks_[b].begin) * group_ * (kv_.dim + 2);
    for (int head = 0; head < kv_.heads; ++head) {
      if (!cut) attending_.push_back({b, head, -1, segments, 0, 0});
      if (!cut) continue;
      for (int s = 0; s < segments; ++s) attending_.push_back({b, head, s, segments, part + s * floats, joined});
      part += segments * floats;
      ++joined;
    }
  }
  auto length = [&](const Attending& task) { return task.segment < 0 ? cost(blocks_[task.block]) : cost(blocks_[task.block]) / task.segments; };
  std::stable_sort(attending_.begin(), attending_.end(), [&](const auto& a, const auto& b) { return length(a) > length(b); });
  if (partials_.size() < part) partials_.resize(part);
  if (joined_.size() < joined) joined_ = std::vector<std::atomic<int>>(joined);
}

std::vector<float> Executor::run(const StepView& step) {
  check(step);
  prepare(step);
  team_.run([this](int member) { execute(member); }, step.rows < kBriefRows);
  return std::move(data_[logits_]);
}

void Executor::execute(int member) {
  using Clock = std::chrono::steady_clock;
  const bool timed = timing_ && member == 0;
  Clock::time_point begin = timed ? Clock::now() : Clock::time_point();
  size_t previous = 0;
  auto note = [&](size_t instruction) {
    const auto now = Clock::now();
    seconds_[previous] += std::chrono::duration<double>(now - begin).count();
    begin = now;
    previous = instruction;
  };
  for (const Stage& stage : *plan_) {
    if (stage.meet) team_.barrier();
    if (timed) note(stage.last);
    work(stage, member);
  }
  if (timed) note(0);
}

void Executor::work(const Stage& stage, int member) {
  const Instruction& op = program_[stage.last];
  const int size = team_.size();
  switch (stage.work) {
    case Work::copies:
      for (int r = 0; r < rows_of(op.out); ++r) row_wise(op, r, member);
      return;
    case Work::rows:
      for (int r = member; r < rows_of(op.out); r += size) row_wise(op, r, member);
      return;
    case Work::quantize: {
      const auto first = std::find_if(op.parts.begin(), op.parts.end(), [](const auto& part) { return quantized(part->matrix); });
      quantize(op, (*first)->matrix, member);
      return;
    }
    case Work::linear: linear(op, member); return;
    case Work::heads: heads(stage, member); return;
    case Work::store:
      for (int r = member; r < step_.rows; r += size) store_kv(op, r, 0, op.kv_heads);
      return;
    case Work::attend: attend(op); return;
  }
}

std::vector<double> Executor::profile() {
  timing_ = true;
  std::vector<double> result(program_.size());
  seconds_.resize(program_.size());
  seconds_.swap(result);
  return result;
}

void Executor::rmsnorm(const Instruction& op, const float* x, float* out, int member) {
  const int columns = shapes_[op.out].columns;
  if (!op.accumulate) return tier_.rmsnorm(x, op.vector.data(), op.offset, op.eps, columns, out);
  std::vector<float>& normed = normed_[member];
  if (normed.size() < static_cast<size_t>(columns)) normed.resize(columns);
  tier_.rmsnorm(x, op.vector.data(), op.offset, op.eps, columns, normed.data());
  for (int i = 0; i < columns; ++i) out[i] += normed[i];
}

void Executor::row_wise(const Instruction& op, int r, int member) {
  float* out = row(op.out, r, member);
  switch (op.kind) {
    case Kind::embed: {
      int token = step_.tokens[r], part = 0;
      while (token >= op.parts[part]->matrix.rows) token -= op.parts[part++]->matrix.rows;
      unpack_row(op.parts[part]->matrix, token, out);
      if (op.scale != 1.0f)
        for (int i = 0; i < shapes_[op.out].columns; ++i) out[i] *= op.scale;
      return;
    }
    case Kind::rmsnorm:
      rmsnorm(op, row(op.in, r, member), out, member);
      return;
    case Kind::headnorm:
      for (int h = 0; h < op.heads; ++h) {
        float* head = out + op.column + h * op.head_dim;
        tier_.rmsnorm(head, op.vector.data(), op.offset, op.eps, op.head_dim, head);
      }
      return;
    case Kind::rope_table: {
      const int half = static_cast<int>(op.vector.size());
      for (int i = 0; i < half; ++i) {
        const float angle = static_cast<float>(step_.positions[r]) * op.vector[i];
        out[i] = std::cos(angle) * op.factor;
        out[half + i] = std::sin(angle) * op.factor;
      }
      return;
    }
    case Kind::rope:
      tier_.rope(row(op.in, r, member), op.heads, op.head_dim, out + op.column);
      return;
    case Kind::silu_mul:
      tier_.silu_mul(row(op.in, r, member), shapes_[op.out].columns, out);
      return;
    case Kind::gelu_mul:
      tier_.gelu_mul(row(op.in, r, member), shapes_[op.out].columns, out);
      return;
    case Kind::gather:
      std::memcpy(out, row(op.in, step_.outputs[r], member), static_cast<size_t>(shapes_[op.out].columns) * sizeof(float));
      return;
    case Kind::residual:
      lost(row(op.in, r, member), shapes_[op.out].columns, op.unit, out);
      return;
    case Kind::linear:
    case Kind::attention:
      return;  // not row-wise: `execute` never passes them
  }
}

// Where the current linear's activations lie: one place for all, or one for each member, which may be a part ahead.
Executor::Quantized Executor::quantized_rows(int rows, int member) {
  const size_t base = rows >= kSharedRows ? 0 : static_cast<size_t>(member) * kSharedRows;
  return {codes_.data() + base * widest_, scales_.data() + base * most_units_, sums_.data() + base * most_units_,
          starts_.data() + base * most_units_};
}

// Rows of the linear's input as int8, for matrices like `m`: all rows (few rows) or this member's.
void Executor::quantize(const Instruction& op, const Matrix& m, int member) {
  const int rows = rows_of(op.in), units = m.padded / m.unit;
  const bool shared = rows >= kSharedRows;
  const Quantized to = quantized_rows(rows, member);
  for (int r = shared ? member : 0; r < rows; r += shared ? team_.size() : 1) {
    const size_t unit = static_cast<size_t>(r) * units;
    tier_.quantize(row(op.in, r, member), m.columns, m.unit, m.zero, to.codes + static_cast<size_t>(r) * m.padded, to.scales + unit,
                   to.sums + unit, to.starts + unit);
  }
}

void Executor::linear(const Instruction& op, int member) {
  const bool shared = rows_of(op.in) >= kSharedRows;
  int column = op.column, unit = 0, zero = 0;
  for (size_t p = 0; p < op.parts.size(); ++p) {
    const Matrix& m = op.parts[p]->matrix;
    if (quantized(m) && (m.unit != unit || m.zero != zero)) {  // else the last part's quantized activations serve
      if (shared && unit) {  // the first ones were made by the stage before
        team_.barrier();     // the last part's readers must be done
        quantize(op, m, member);
        team_.barrier();
      } else if (!shared) {
        quantize(op, m, member);
      }
      unit = m.unit;
      zero = m.zero;
    }
    linear_part(op, m, column, next_[op.counter + p], member);
    column += m.rows;
  }
}

void Executor::linear_part(const Instruction& op, const Matrix& m, int column, std::atomic<int>& next, int member) {
  const int rows = rows_of(op.in), size = team_.size();
  const Quantized from = quantized_rows(rows, member);
  const Activations activations = {from.codes, from.scales, from.sums, from.starts, m.padded, quantized(m) ? m.padded / m.unit : 0};
  const float* bias = op.vector.empty() ? nullptr : op.vector.data() + (column - op.column);
  const Output out = {row(op.out, 0, member) + column, shapes_[op.out].columns, bias, op.accumulate};
  auto panels = [&](int begin, int end) {
    if (quantized(m))
      tier_.linear_quantized(m, activations, rows, begin, end, out, scratch_[member].data());
    else
      tier_.linear_float(m, row(op.in, 0, member), shapes_[op.in].columns, rows, begin, end, out);
  };
  if (rows < kSharedRows) {  // memory-bound: equal shares, in order
    panels(static_cast<int>(static_cast<int64_t>(m.panels) * member / size), static_cast<int>(static_cast<int64_t>(m.panels) * (member + 1) / size));
    return;
  }
  constexpr int kChunk = 4;  // panels: what the tiers take together at most
  for (int begin = next.fetch_add(kChunk); begin < m.panels; begin = next.fetch_add(kChunk))
    panels(begin, std::min(begin + kChunk, m.panels));
}

// Few rows: each member takes whole KV heads, prepares them for all rows, and attends.
void Executor::heads(const Stage& stage, int member) {
  const Instruction& op = program_[stage.last];
  for (int head = member; head < op.kv_heads; head += team_.size())
    for (int r = 0; r < step_.rows; ++r) prepare_head(stage, head, r, member);
  const int longest = *std::max_element(step_.positions, step_.positions + step_.rows);
  if (longest >= kSegmentTokens && op.kv_heads % team_.size()) {  // worth a meeting: contexts are shared out evenly
    team_.barrier();
    attend(op);
    return;
  }
  for (int head = member; head < op.kv_heads; head += team_.size())
    for (int b = 0; b < static_cast<int>(blocks_.size()); ++b) attend(op, {b, head, -1, 0, 0, 0});
}

// What comes between the projection and attention, on one row's part of a KV head: its queries, key and value.
void Executor::prepare_head(const Stage& stage, int head, int r, int member) {
  const Instruction& attention = program_[stage.last];
  const int group = attention.heads / attention.kv_heads, dim = attention.head_dim;
  auto each = [&](int column) {
    for (size_t i = stage.first; i < stage.last; ++i) {
      const Instruction& op = program_[i];
      if (column < op.column || column >= op.column + op.heads * dim) continue;
      float* x = row(op.out, r) + column;
      if (op.kind == Kind::headnorm)
        tier_.rmsnorm(x, op.vector.data(), op.offset, op.eps, dim, x);
      else
        tier_.rope(row(op.in, r, member), 1, dim, x);
    }
  };
  for (int h = 0; h < group; ++h) each((head * group + h) * dim);
  each((attention.heads + head) * dim);
  each((attention.heads + attention.kv_heads + head) * dim);
  store_kv(attention, r, head, 1);
}

// Keys and values of `count` KV heads of one row into the cache.
void Executor::store_kv(const Instruction& op, int r, int first, int count) {
  const int dim = op.head_dim, position = step_.positions[r];
  const int page = step_.tables[static_cast<size_t>(step_.sequences[r]) * step_.table_columns + position / kPage];
  const int slot = position % kPage;
  const float* k = row(op.in, r) + (op.heads + first) * dim;
  const float* v = k + op.kv_heads * dim;
  for (int h = first; h < first + count; ++h, k += dim, v += dim) {
    const size_t block = kv_.block(op.layer, page, h), scale_block = kv_.scale_block(op.layer, page, h);
    if (kv_.type == KVType::f32) {
      float* keys = reinterpret_cast<float*>(kv_.keys) + block;
      for (int d = 0; d < dim; ++d) keys[d * kPage + slot] = k[d];
      std::memcpy(reinterpret_cast<float*>(kv_.values) + block + static_cast<size_t>(slot) * dim, v, dim * sizeof(float));
    } else if (kv_.type == KVType::f16) {
      uint16_t* keys = reinterpret_cast<uint16_t*>(kv_.keys) + block;
      uint16_t* values = reinterpret_cast<uint16_t*>(kv_.values) + block + static_cast<size_t>(slot) * dim;
      for (int d = 0; d < dim; ++d) keys[d * kPage + slot] = half_from_float(k[d]);
      for (int d = 0; d < dim; ++d) values[d] = half_from_float(v[d]);
    } else {
      int8_t* keys = reinterpret_cast<int8_t*>(kv_.keys) + block + slot * 4;
      int8_t* values = reinterpret_cast<int8_t*>(kv_.values) + block + static_cast<size_t>(slot / 4) * dim * 4 + slot % 4;
      alignas(64) int8_t codes[kMaxHeadDim];
      auto quantize_head = [&](const float* x, float& scale) {
        float top = 0;
        for (int d = 0; d < dim; ++d) top = std::max(top, std::fabs(x[d]));
        scale = top / 127.0f;
        if (!(scale >= 1.17549435e-38f)) scale = 0;
        const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        for (int d = 0; d < dim; ++d) codes[d] = static_cast<int8_t>(__builtin_lrintf(x[d] * inverse));
      };
      quantize_head(k, kv_.key_scales[scale_block + slot]);
      for (int d = 0; d < dim; d += 4) std::memcpy(keys + d * kPage, codes + d, 4);
      quantize_head(v, kv_.value_scales[scale_block + slot]);
      for (int d = 0; d < dim; ++d) values[d * 4] = codes[d];
    }
  }
}

void Executor::attend(const Instruction& op) {
  std::atomic<int>& next = next_[op.counter];
  const int total = static_cast<int>(attending_.size());
  for (int i = next.fetch_add(1); i < total; i = next.fetch_add(1)) {
    const Attending& task = attending_[i];
    attend(op, task);
    if (task.segment < 0 || joined_[task.joined].fetch_add(1, std::memory_order_acq_rel) + 1 < task.segments) continue;
    joined_[task.joined].store(0, std::memory_order_relaxed);  // for the next layer, which begins after a meeting
    join(op, task);
  }
}

void Executor::attend(const Instruction& op, const Attending& attending) {
  const Block& block = blocks_[attending.block];
  const float* q[kMaxQueries];
  float* out[kMaxQueries];
  int32_t positions[kMaxQueries];
  AttentionTask task = {op.layer, attending.head, 0, q, out, positions, nullptr, op.scale, op.window, attending.segment, nullptr};
  task.pages = step_.tables + static_cast<size_t>(step_.sequences[block.begin]) * step_.table_columns;
  float* part = partials_.data() + attending.part;
  const int group = op.heads / op.kv_heads;
  auto flush = [&] {
    task.parts = part;
    tier_.attention(kv_, task);
    part += static_cast<size_t>(task.queries) * (kv_.dim + 2);
    task.queries = 0;
  };
  for (int r = block.begin; r < block.end; ++r)
    for (int h = 0; h < group; ++h) {
      const int column = (attending.head * group + h) * op.head_dim;
      q[task.queries] = row(op.in, r) + column;
      out[task.queries] = row(op.out, r) + column;
      positions[task.queries++] = step_.positions[r];
      if (task.queries == kMaxQueries) flush();
    }
  if (task.queries) flush();
}

// The segments' results of a block's rows for one KV head; `last` is the one that was finished last.
void Executor::join(const Instruction& op, const Attending& last) {
  const Block& block = blocks_[last.block];
  const int group = op.heads / op.kv_heads, size = kv_.dim + 2;
  const ptrdiff_t stride = static_cast<ptrdiff_t>(block.end - block.begin) * group_ * size;
  const float* part = partials_.data() + last.part - last.segment * stride;
  for (int r = block.begin; r < block.end; ++r)
    for (int h = 0; h < group; ++h, part += size)
      tier_.join(part, last.segments, stride, kv_.dim, row(op.out, r) + (last.head * group + h) * op.head_dim);
}

void Executor::copy_page(int source, int target) {
  expect(source >= 0 && source < kv_.pages && target >= 0 && target < kv_.pages, "page out of range");
  const size_t scales = static_cast<size_t>(kv_.layers) * kv_.heads * kPage * sizeof(float), bytes = scales / sizeof(float) * kv_.dim * kv_.element();
  auto copy = [&](Memory& memory, size_t size) { std::memcpy(memory.data() + target * size, memory.data() + source * size, size); };
  copy(keys_, bytes);
  copy(values_, bytes);
  if (kv_.type != KVType::int8) return;
  copy(key_scales_, scales);
  copy(value_scales_, scales);
}

}  // namespace freehold
