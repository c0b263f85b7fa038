// A recorded forward pass: buffers, instructions in phases, and its replay on a pool of threads.
//
// Between phases all threads meet. There are three kinds of phase:
//   rows      instructions that work row by row; a thread runs all of them on its share of the rows
//   products  jobs, each some products of equal width with a tail of instructions that work column by column; cut into tasks of
//             some columns and rows, whose tail runs while its columns are in the cache
//   tasks     one instruction, cut in its own way: attention into queries, kv heads and splits of the cache; the choice of blocks into
//             a few sparse rows of a sequence and kv heads; compression of keys. Where a step has no task, the threads do not meet either.
// Tasks are dealt out in contiguous shares, so that each thread reads its weights as one stream; who is done helps the others.
// What a task computes does not depend on who runs it, so results do not depend on the number of threads.
// Knows neither layers nor models; what a phase holds is decided by whoever records it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace minicpm4 {

// Arrays of one step; see Step and LinearStep in src/minicpm4/model.
struct StepView {
  const int32_t *tokens, *positions, *slots, *starts, *lengths, *pages, *logit_rows, *numerics;
  int num_tokens, num_sequences, pages_stride, num_logits;
  // Of draft trees, else null: further slots that row i is written to, [more_starts[i], more_starts[i + 1]), and of each sequence the token from
  // which on its compressed keys are made.
  const int32_t *more_starts = nullptr, *more_slots = nullptr, *fresh = nullptr;
};

constexpr int kOrdinary = 0, kBf16 = 1;  // numerics of a sequence's rows
constexpr int kTreePages = 256;          // pages behind the cache's own, for the branches of draft trees; touched when there are some

enum class Op { embed, scale, rms_norm, rms_norm_heads, add_scaled, add_bias, swiglu, rotation, rope, take, quantize, store_keys, store_values, linear, attend, merge, block_maxima, compress_keys, select_blocks };

// Operands that an op does not use are -1 or 0.
//   embed    out = factor * weight[tokens]          linear  out = weight . a, with what a was quantized to
//   scale    out = factor * a                       rms_norm  out = a / rms(a; eps = factor) * vector
//   rms_norm_heads  the same of each head of a      add_bias  out = a + vector
//   add_scaled  out = a + factor * b                swiglu    out = silu(a) * b
//   rotation    out = cosines | sines of positions by the table `vector`
//   rope        out = a turned by b                 take      out[i] = a[logit_rows[i]]
//   quantize   a gets codes, where the program has any; rows of prompts are rounded to bfloat16 instead, where it has that
//   store_keys, store_values   a -> keys, values of `layer`
//   compress_keys   the compressed keys of `layer` that the step completes, from its keys
//   select_blocks   the blocks of each sparse row that a's queries choose by the compressed keys of `layer`
//   attend      out = attention of a over `layer`, but for rows that are alone in their sequence and see several splits;
//   merge       these are put together here
//   block_maxima   out's column t = the largest of a's columns in task t of the products, NaN where one is NaN
struct Instruction {
  Op op;
  int out = -1, a = -1, b = -1;
  int weight = -1, vector = -1, layer = -1;
  float factor = 0;
};

enum class PhaseKind { rows, products, tasks };

class Program {
 public:
  // max_rows: the most tokens of one step. code_bytes: of activations' codes, 1 or 2, or 0 for none. has_bf16_prompts: whether prompts are
  // multiplied with quantized weights in bfloat16. num_pages: pages of the KV cache.
  struct Options {
    int max_rows, code_bytes;
    bool has_bf16_prompts;
    int num_pages, num_layers, num_kv_heads, head_dim, group_heads;
    KvFormat kv_format;
    SparseRule sparse;
  };

  Program(const Kernels& kernels, ThreadPool& pool, const Options& options);

  int add_weight(std::shared_ptr<const Arena> arena, const Weight& weight);
  int add_vector(const float* values, int columns);
  // is_local: whether its values are only looked at by the task that makes them, so that a task's worth of them is kept. What they are
  // encoded to is kept of all rows.
  int add_buffer(int columns, bool is_local = false);
  // over_logit_rows: the phase's rows are the step's rows of logits instead of all.
  void begin_phase(PhaseKind kind, bool over_logit_rows);
  // In a phase of products: what follows belongs together and has the same columns.
  void begin_job();
  // std::invalid_argument for an operand that is not there, and where a local buffer would be looked at outside the task that makes it.
  void add(const Instruction& instruction);

  // Runs one step; the result is the last instruction's buffer, or what its block maxima are of, valid until the next run.
  void run(const StepView& step);
  // Runs some of the phases; who runs a part fills the rows of the buffers that it reads, and reads those that it fills.
  void run_phases(const StepView& step, int first, int last);
  int num_phases() const { return static_cast<int>(phases_.size()); }
  float* row(int buffer, int index) { return buffers_[buffer].values.as<float>() + buffers_[buffer].stride * index; }
  int result_buffer() const;
  int maxima_buffer() const;  // of the result's block maxima, -1 where the program makes none
  int num_tokens() const { return num_tokens_; }  // rows of the table that tokens are looked up in
  int task_columns() const { return task_columns_; }
  // Without the pages of draft trees.
  size_t kv_bytes() const { return (kv_.bytes() + fine_.bytes() + coarse_.bytes()) / num_all_pages() * options_.num_pages; }
  const Options& options() const { return options_; }
  KvLayer kv_layer(int layer) const;
  SparseLayer sparse_layer(int layer) const;
  // Writes a row of keys, which are its values too, to the place of a token of the sequence that has these pages; and the compressed keys that it
  // completes.
  void store(int layer, const float* row, const int32_t* pages, int token);
  // Of the newest step's sparse rows, in their order: the blocks that a kv head of the last layer has chosen, ascending.
  int num_sparse_rows() const { return num_sparse_rows_; }
  std::span<const int32_t> chosen_blocks(int sparse_row, int kv_head) const;
  // All that is kept of a page, of every layer: keys, values, compressed keys.
  void copy_page(int source, int target);
  // Token `source` of the sequence that has these pages becomes its token `target` too: keys and values of every layer.
  void copy_token(const int32_t* pages, int source, int target);
  // The compressed keys that end with a token, of every layer.
  void compress_at(const int32_t* pages, int token);
  int num_all_pages() const { return options_.num_pages + kTreePages; }
  // Which buffer holds what the head multiplies, after a run; -1 for none.
  void keep_hidden(int buffer) { hidden_buffer_ = buffer; }
  int hidden_buffer() const { return hidden_buffer_; }
  int columns_of(int buffer) const { return buffers_[buffer].columns; }
  int stride_of(int buffer) const { return static_cast<int>(buffers_[buffer].stride); }

 private:
  struct Buffer {
    int columns = 0, local = -1;  // local: which of a worker's local arrays its values are in, -1 for none
    size_t stride = 0;  // of a local buffer: the widest task's
    Memory values, high, low, scales, half_sums;  // all but the first are empty where nothing is encoded
    Bf16Rows bf16 = {};                            // in hot_

    Codes codes() const { return {high.as<int8_t>(), low.as<int8_t>(), scales.as<float>(), half_sums.as<float>()}; }
  };
  struct Job {
    std::vector<Instruction> products, tail;
    int columns = 0, task_columns = 0, num_column_tasks = 0;  // of its products
  };
  struct Phase {
    PhaseKind kind;
    bool over_logit_rows;
    std::vector<Job> jobs;  // one, unless the phase is of products
  };
  struct Slice {
    int first_row, last_row, first_column, last_column, worker;
    size_t local_stride;
    bool over_logit_rows;
  };
  // Rows that a task of products takes.
  struct RowRange {
    int first_row, last_row;
    bool is_bf16;
  };
  // The dense or the sparse rows of a sequence of the step: their first attend task, how many tasks these are for a kv head (rows are
  // taken `queries` at a time, each in num_splits parts), their first split among those of lone rows, their first sparse row, and their
  // first select task (rows choose select_rows at a time).
  struct AttentionPlan {
    int sequence, first_row, last_row;
    bool is_sparse;
    int queries, num_blocks, num_splits, select_rows;
    int first_task, first_split, first_sparse, first_select;
  };
  struct NewCompressedKey {
    int sequence, last_token;
    bool is_coarse;
  };
  struct alignas(64) TaskCounter {  // of a worker in the tasks of a phase: the next one to take
    std::atomic<int> next{0};
  };

  void run_phase(size_t index, const StepView& step, int worker);
  void rms_norm_head(const float* x, const float* weight, float eps, float* out) const;
  void apply(const Instruction& in, const StepView& step, const Slice& slice);
  void apply_row(const Instruction& in, const StepView& step, int i, const Slice& slice);
  float* cells(int buffer, int i, const Slice& slice);
  int rows_of(const Phase& phase, const StepView& step) const { return phase.over_logit_rows ? step.num_logits : step.num_tokens; }
  int share_start(int num_tasks, int worker) const { return static_cast<int>(static_cast<int64_t>(num_tasks) * worker / pool_.size()); }
  template <class Work>
  void take_tasks(size_t phase, int num_tasks, int worker, Work work);
  void check_operands(const Instruction& instruction) const;
  void check_locals(const Instruction& instruction) const;
  template <class Store>
  void store_row(const StepView& step, int i, Store store) const;
  void make_room_to_encode(int buffer);
  const Instruction& last_instruction() const;
  static int num_product_tasks(const Phase& phase, int num_ranges);
  static const Job& job_of(const Phase& phase, int num_ranges, int* task);
  void run_products(size_t index, const StepView& step, int worker);
  const uint8_t* first_tiles(const Phase& phase, int num_ranges, int task) const;
  const uint8_t* first_tiles_after(size_t index, int worker) const;
  void run_product_task(const Phase& phase, const StepView& step, int worker, int task, const uint8_t* after);
  bool has_wide_tasks(const Instruction& product) const;
  int num_tasks(const Phase& phase) const;
  void run_tasks(size_t index, const StepView& step, int worker);
  void run_attend_task(const Instruction& in, const StepView& step, int worker, int task);
  void run_select_task(const Instruction& in, const StepView& step, int worker, int task);
  void run_compress_task(const Instruction& in, const StepView& step, int worker, int task);
  AttendTask attend_task(const Instruction& in, const StepView& step, const AttentionPlan& plan, int worker);
  int sparse_queries(int num_rows) const;
  void add_plan(const StepView& step, int sequence, int first_row, int last_row, bool is_sparse);
  void merge_row(const Instruction& in, const StepView& step, int i);
  void plan_attention(const StepView& step);
  void plan_rows(const StepView& step);
  const std::vector<RowRange>& ranges_of(const Phase& phase) const { return phase.over_logit_rows ? logit_ranges_ : row_ranges_; }
  void list_compressed(const StepView& step, int sequence);
  Rows rows_of(const Buffer& buffer) const;
  CompressedLayer compressed_layer(const Memory& kept, const CompressedShape& shape, int layer) const;
  float* partial(int split, int head);

  const Kernels& kernels_;
  ThreadPool& pool_;
  const Options options_;
  const int task_columns_;  // of a product; wide tasks, which the head never has, have twice as many
  std::vector<std::shared_ptr<const Arena>> kept_;
  std::vector<Weight> weights_;
  std::vector<Memory> vectors_;
  std::vector<Buffer> buffers_;
  std::vector<Phase> phases_;
  std::vector<TaskCounter> counters_;    // [phase][worker]
  std::vector<Memory> scratch_;  // one a thread
  Arena hot_;                    // in huge pages: local values, and rows in bfloat16
  std::vector<float*> locals_;   // [local array][worker]: the rows of a range, the columns of a task, `local_stride` apart
  std::vector<RowRange> row_ranges_, logit_ranges_;  // of the step's rows
  std::vector<bool> are_bf16_;   // of the step's rows
  std::vector<AttentionPlan> plans_;        // one or two a sequence of the step, in the order of rows
  std::vector<NewCompressedKey> new_compressed_;
  std::vector<int32_t> blocks_, block_counts_;  // of the step's sparse rows: [sparse row][kv head][max_blocks]; [sparse row][kv head]
  int hidden_buffer_ = -1, num_tokens_ = 0;
  int num_attend_tasks_ = 0, num_select_tasks_ = 0, num_kv_splits_ = 0, num_sparse_rows_ = 0;
  Memory partials_;              // attention over a split: [split][head][padded dim + 2], of lone rows
  Memory kv_, fine_, coarse_;    // keys and values; compressed keys
};

}  // namespace minicpm4
