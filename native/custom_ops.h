// Weights and a paged cache for graphs of other frameworks, which know them by their addresses; custom_ops.cc has the symbols that they call.
// Arrays are float32, rows one after the other without padding; what lies past the columns that kernels work in is added here.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "program.h"
#include "threads.h"

namespace minicpm4 {

// A pool whose users take turns: a framework calls from whatever thread it likes.
struct SharedThreadPool {
  explicit SharedThreadPool(int workers) : pool(workers) {}
  ThreadPool pool;
  std::mutex mutex;
};

class WeightHandle {
 public:
  WeightHandle(const Kernels& kernels, std::shared_ptr<SharedThreadPool> pool, std::shared_ptr<const Arena> arena, const Weight& weight);

  int rows() const { return weight_.rows; }
  int columns() const { return weight_.columns; }

  // out[num_rows][rows] = x[num_rows][columns] . weight
  void multiply(const float* x, int num_rows, float* out);
  // out[num_tokens][columns] = the weight's rows of these numbers; false, and nothing is written, where there is no such row.
  bool look_up(const int32_t* tokens, int num_tokens, float* out) const;

 private:
  const Kernels& kernels_;
  const std::shared_ptr<SharedThreadPool> pool_;
  const std::shared_ptr<const Arena> arena_;
  const Weight weight_;
  std::vector<float> padded_x_, padded_out_;
};

// The attention of all layers over one paged cache, as a program of which a call runs one layer.
class AttentionHandle {
 public:
  AttentionHandle(const Kernels& kernels, std::shared_ptr<SharedThreadPool> pool, const Program::Options& options);

  int query_columns() const { return options().num_kv_heads * options().group_heads * options().head_dim; }
  int key_columns() const { return options().num_kv_heads * options().head_dim; }
  const Program::Options& options() const { return program_.options(); }
  Program& program() { return program_; }

  // Writes keys and values to the step's slots, then out = attention of the queries to the step's pages. The step was checked.
  void attend(int layer, const StepView& step, const float* queries, const float* keys, const float* values, float* out);

 private:
  void add_layer(int layer);

  const std::shared_ptr<SharedThreadPool> pool_;
  Program program_;
  const int queries_, keys_, values_, out_;  // buffers
  int phases_per_layer_ = 0;
};

}  // namespace minicpm4
