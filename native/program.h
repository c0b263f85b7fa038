// A recorded forward pass: buffers, instructions in phases, and its replay on a team of threads.
//
// Between phases all threads meet. In a phase of row instructions a thread runs all of them on its share of the rows; the
// other instructions (multiply, attend) are alone in their phase and cut into tasks that threads take until none is left.
// Knows neither layers nor models; what a phase holds is decided by whoever records it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace minicpm4 {

// Arrays of one step; see Step in src/minicpm4/model/step.py.
struct StepView {
  const int32_t *tokens, *positions, *slots, *starts, *lengths, *pages, *wanted;
  int num_tokens, num_sequences, pages_stride, num_wanted;
};

enum class Op { embed, scale, rms_norm, add_scaled, swiglu, rotation, rope, take, quantize, store, multiply, attend };

// Operands that an op does not use are -1 or 0.
//   embed    out = factor * weight[tokens]          multiply  out = weight . a, quantized if a is
//   scale    out = factor * a                       rms_norm  out = a / rms(a; eps = factor) * vector
//   add_scaled  out = a + factor * b                swiglu    out = silu(a) * b
//   rotation    out = cosines | sines of positions by the table `vector`
//   rope        out = a turned by b                 take      out[i] = a[wanted[i]]
//   quantize    a gets codes                        store     a, b -> keys, values of `layer`
//   attend      out = attention of a over `layer`
struct Instruction {
  Op op;
  int out = -1, a = -1, b = -1;
  int weight = -1, vector = -1, layer = -1;
  float factor = 0;
};

class Program {
 public:
  // max_rows: the most tokens of one step. num_pages: pages of the KV cache. code_bytes: of activations' codes, 1 or 2.
  struct Options {
    int max_rows, code_bytes, num_pages, num_layers, num_kv_heads, head_dim, group_heads;
    KvFormat kv_format;
  };

  Program(const Kernels& kernels, Team& team, const Options& options);

  int add_weight(std::shared_ptr<const Memory> memory, const Weight& weight);
  int add_vector(const float* values, int columns);
  int add_buffer(int columns);
  // Starts a phase of row instructions or of tasks. over_wanted: its rows are the wanted ones instead of all.
  void begin_phase(bool over_wanted);
  void add(const Instruction& instruction);

  // Runs one step; the result is the last instruction's buffer, [wanted][stride], valid until the next run.
  const float* run(const StepView& step);
  int result_stride() const;
  size_t kv_bytes() const { return kv_.bytes(); }
  const Options& options() const { return options_; }
  KvLayer kv_layer(int layer) const;

 private:
  struct Buffer {
    int columns = 0;
    size_t stride = 0;
    Memory values, high, low, scales, sums, half_sums;  // without codes, all but the first are empty

    Codes codes() const { return {high.as<int8_t>(), low.as<int8_t>(), scales.as<float>(), sums.as<float>(), half_sums.as<float>()}; }
  };
  struct Phase {
    std::vector<Instruction> instructions;
    bool over_wanted;
  };

  void run_phase(const Phase& phase, std::atomic<int>& next_task, const StepView& step, int member);
  void run_rows(const Instruction& in, const StepView& step, int first, int last);
  void run_multiply(const Phase& phase, std::atomic<int>& next_task, int num_rows);
  void run_attend(const Instruction& in, std::atomic<int>& next_task, const StepView& step, int member);
  Rows rows_of(const Buffer& buffer) const;
  float* row(int buffer, int index) { return buffers_[buffer].values.as<float>() + buffers_[buffer].stride * index; }

  const Kernels& kernels_;
  Team& team_;
  const Options options_;
  std::vector<std::shared_ptr<const Memory>> kept_;
  std::vector<Weight> weights_;
  std::vector<Memory> vectors_;
  std::vector<Buffer> buffers_;
  std::vector<Phase> phases_;
  std::unique_ptr<std::atomic<int>[]> next_tasks_;
  std::vector<Memory> scratch_;  // one a thread
  Memory kv_;
};

}  // namespace minicpm4
