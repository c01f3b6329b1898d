// Runs a program: the whole list of operations for one scheduler step, by a team of threads.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pack.h"
#include "plan.h"
#include "team.h"

namespace freehold {

enum class Kind : int { embed, rmsnorm, linear, headnorm, rope_table, rope, attention, silu_mul, gelu_mul, gather, residual };

struct Instruction {
  Kind kind;
  int out = -1, in = -1;                          // buffer numbers
  std::vector<std::shared_ptr<Packed>> parts;     // of a matrix, stacked along rows
  std::vector<float> vector;                      // gain, bias or inv_freq
  int column = 0, heads = 0, kv_heads = 0, head_dim = 0, layer = 0, unit = 0, window = 0;
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

// Logits that were handed over and came back, for later steps: fresh memory for a large vocabulary costs more than its copy.
class Spare {
 public:
  std::vector<float> take();
  void give(std::vector<float>&& values);

 private:
  std::mutex mutex_;
  std::vector<std::vector<float>> kept_;
};

class Executor {
 public:
  Executor(const Tier& tier, std::vector<BufferShape> buffers, std::vector<Instruction> program, int logits, KVType kv_type,
           int layers, int pages, int kv_heads, int head_dim, int context, int vocabulary, int threads);
  // Throws std::invalid_argument when an index of the step is out of range. Returns the logits, [outputs, vocabulary] at
  // the least; give them to `spare` when they are no longer needed.
  std::vector<float> run(const StepView& step);
  std::shared_ptr<Spare> spare() const { return spare_; }
  void copy_page(int source, int target);
  const std::vector<float>& buffer(int index) const { return data_[index]; }
  const BufferShape& shape(int index) const { return shapes_[index]; }
  int logits_columns() const { return shapes_[logits_].columns; }
  // Seconds that member 0 spent in each instruction since the last call, waiting at the meeting after it included; turns
  // timing on.
  std::vector<double> profile();
  // Meetings of a step of one row, the last one included.
  int meetings() const;
  // Steps that one thread did alone, because other programs wanted the processors too.
  uint64_t steps_alone() const { return team_.alone(); }
  size_t kv_bytes() const { return keys_.size() + values_.size() + key_scales_.size() + value_scales_.size(); }

 private:
  struct Block { int begin, end; };  // rows of one sequence that attend together
  // Attention of a block's rows for one KV head: to the whole context (segment -1), or to one of its segments, whose results
  // go to `partials_` from `part` on. Whoever finishes the last segment joins them; `joined` counts them.
  struct Attending { int block, head, segment, segments; size_t part, joined; };
  // How an instruction is done. Few rows (fewer than kSharedRows): row-wise operations that can be are done by every member
  // on copies of its own, and quantizing with them, so that nobody waits. Many: each member has its own rows.
  enum class Work { copies, rows, quantize, linear, heads, store, attend };
  struct Stage {
    Work work;
    size_t first, last;  // instructions; several only for `heads`
    bool meet;           // before it
  };
  struct Quantized { int8_t* codes; float *scales, *sums; int32_t* starts; };
  Quantized quantized_rows(int rows, int member);
  void check(const StepView& step) const;
  void prepare(const StepView& step);
  void prepare_attention();
  std::vector<Stage> plan(bool few_tokens, bool few_outputs) const;
  size_t head_stage(size_t first) const;
  void touch(const Stage& stage, bool few_tokens, bool few_outputs, std::vector<Touch>& touches) const;
  bool copied(int buffer, bool few_tokens, bool few_outputs) const;
  void execute(int member);
  void work(const Stage& stage, int member);
  void quantize(const Instruction& op, const Matrix& m, int member);
  void linear(const Instruction& op, int member);
  void heads(const Stage& stage, int member);
  void prepare_head(const Stage& stage, int head, int row, int member);
  void linear_part(const Instruction& op, const Matrix& m, int column, std::atomic<int>& next, int member);
  void store_kv(const Instruction& op, int row, int first, int count);
  void attend(const Instruction& op);
  void attend(const Instruction& op, const Attending& task);
  void join(const Instruction& op, const Attending& task);
  void row_wise(const Instruction& op, int row, int member);
  void rmsnorm(const Instruction& op, const float* x, float* out, int member);
  float* row(int buffer, int row, int member = 0) {
    return base_[member][buffer] + static_cast<size_t>(row) * shapes_[buffer].columns;
  }
  int rows_of(int buffer) const { return shapes_[buffer].outputs ? step_.output_rows : step_.rows; }

  const Tier& tier_;
  std::vector<BufferShape> shapes_;
  std::vector<Instruction> program_;
  int logits_, context_, vocabulary_;
  KVCache kv_{};
  Memory keys_, values_, key_scales_, value_scales_;
  Team team_;
  std::shared_ptr<Spare> spare_ = std::make_shared<Spare>();
  std::vector<std::vector<float>> data_;
  std::vector<bool> replicable_;                    // buffers that row-wise operations alone write, as a whole
  std::vector<std::vector<std::vector<float>>> copies_;  // by member but the first, of replicable buffers: kSharedRows rows
  std::vector<std::vector<float*>> base_;           // by member: where it finds each buffer in this step
  std::vector<Stage> plans_[2][2];                  // [few tokens][few outputs]
  const std::vector<Stage>* plan_ = nullptr;
  StepView step_{};
  std::vector<Block> blocks_;
  int group_ = 1;                       // most query heads of a KV head
  std::vector<Attending> attending_;    // the longest first
  std::vector<float> partials_;
  std::vector<std::atomic<int>> joined_;
  std::vector<std::atomic<int>> next_;  // work counters of the instructions
  bool timing_ = false;
  std::vector<double> seconds_;         // by instruction, when timing
  size_t widest_ = 1, most_units_ = 1;  // columns and activation groups of the widest quantized linear
  std::vector<std::vector<float>> normed_;  // per member: a row that `rmsnorm` adds to what is there
  std::vector<int8_t> codes_;           // activations quantized for the current linear
  std::vector<float> scales_, sums_;
  std::vector<int32_t> starts_;
  std::vector<Memory> scratch_;         // per member
};

}  // namespace freehold
