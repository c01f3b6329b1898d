// Runs a program: the whole list of operations for one scheduler step, by a team of threads.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "pack.h"
#include "team.h"

namespace freehold {

enum class Kind : int { embed, rmsnorm, linear, headnorm, rope_table, rope, attention, silu_mul, gather, residual };

struct Instruction {
  Kind kind;
  int out = -1, in = -1;                          // buffer numbers
  std::vector<std::shared_ptr<Packed>> parts;     // of a matrix, stacked along rows
  std::vector<float> vector;                      // gain, bias or inv_freq
  int column = 0, heads = 0, kv_heads = 0, head_dim = 0, layer = 0, unit = 0;
  bool accumulate = false;
  float scale = 1, eps = 0, offset = 0, factor = 1;
  size_t counter = 0;                             // first of its work counters
};

struct BufferShape {
  int columns;
  bool outputs;  // one row per output rather than per token
};

struct StepView {
  const int32_t *tokens, *positions, *sequences, *tables, *outputs;
  int rows, table_rows, table_columns, output_rows;
};

class Executor {
 public:
  Executor(const Tier& tier, std::vector<BufferShape> buffers, std::vector<Instruction> program, int logits, KVType kv_type,
           int layers, int pages, int kv_heads, int head_dim, int context, int vocabulary, int threads);
  // Throws std::invalid_argument when an index of the step is out of range. Returns the logits, valid until the next run.
  const float* run(const StepView& step);
  void copy_page(int source, int target);
  const std::vector<float>& buffer(int index) const { return data_[index]; }
  const BufferShape& shape(int index) const { return shapes_[index]; }
  int logits_columns() const { return shapes_[logits_].columns; }
  // Seconds that member 0 spent in each instruction since the last call, waiting at its barrier included; turns timing on.
  std::vector<double> profile();
  // Steps that one thread did alone, because other programs wanted the processors too.
  uint64_t steps_alone() const { return team_.alone(); }
  size_t kv_bytes() const { return keys_.size() + values_.size() + key_scales_.size() + value_scales_.size(); }

 private:
  struct Block { int begin, end; };  // rows of one sequence that attend together
  struct Quantized { int8_t* codes; float *scales, *sums; int32_t* starts; };
  Quantized quantized_rows(int rows, int member);
  void check(const StepView& step) const;
  void prepare(const StepView& step);
  void execute(int member);
  void linear(const Instruction& op, int member);
  void linear_part(const Instruction& op, const Matrix& m, int column, std::atomic<int>& next, int member);
  void store_kv(const Instruction& op, int row);
  void attend(const Instruction& op);
  void attend_block(const Instruction& op, const Block& block, int head, int first, int count);
  void row_wise(const Instruction& op, int row);
  float* row(int buffer, int row) { return data_[buffer].data() + static_cast<size_t>(row) * shapes_[buffer].columns; }
  int rows_of(int buffer) const { return shapes_[buffer].outputs ? step_.output_rows : step_.rows; }

  const Tier& tier_;
  std::vector<BufferShape> shapes_;
  std::vector<Instruction> program_;
  int logits_, context_, vocabulary_;
  KVCache kv_{};
  Memory keys_, values_, key_scales_, value_scales_;
  Team team_;
  std::vector<std::vector<float>> data_;
  StepView step_{};
  std::vector<Block> blocks_;
  std::vector<std::atomic<int>> next_;  // work counters of the instructions
  bool timing_ = false;
  std::vector<double> seconds_;         // by instruction, when timing
  size_t widest_ = 1, most_units_ = 1;  // columns and activation groups of the widest quantized linear
  std::vector<int8_t> codes_;           // activations quantized for the current linear
  std::vector<float> scales_, sums_;
  std::vector<int32_t> starts_;
  std::vector<Memory> scratch_;         // per member
};

}  // namespace freehold
