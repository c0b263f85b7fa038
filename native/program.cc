#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "packing.h"

namespace minicpm4 {
namespace {

constexpr int kTilesPerTask = 4;      // 64 output features: small enough for the cache, large enough for a task
constexpr int kRowsPerTask = 128;     // of a multiplication
constexpr int kAttendRowsPerTask = 32;  // (query, head) pairs that share a page's keys

int attend_queries(int group_heads) { return std::max(1, kAttendRowsPerTask / group_heads); }

}  // namespace

Program::Program(const Kernels& kernels, Team& team, const Options& options) : kernels_(kernels), team_(team), options_(options) {
  const KvLayer shape{nullptr, nullptr, options.kv_format, options.num_kv_heads, options.head_dim};
  const size_t page = (shape.key_page_elements() + shape.value_page_elements()) * shape.element_bytes();
  kv_ = Memory(page * options.num_pages * options.num_layers, false);
  const size_t floats = attend_scratch_floats(attend_queries(options.group_heads), options.group_heads, shape.padded_dim());
  for (int i = 0; i < team.size(); ++i) scratch_.emplace_back(floats * sizeof(float), false);
}

KvLayer Program::kv_layer(int layer) const {
  KvLayer kv{nullptr, nullptr, options_.kv_format, options_.num_kv_heads, options_.head_dim};
  const size_t keys = kv.key_page_elements() * kv.element_bytes() * options_.num_pages;
  const size_t values = kv.value_page_elements() * kv.element_bytes() * options_.num_pages;
  kv.keys = kv_.as<uint8_t>() + (keys + values) * layer;
  kv.values = kv.keys + keys;
  return kv;
}

int Program::add_weight(std::shared_ptr<const Memory> memory, const Weight& weight) {
  kept_.push_back(std::move(memory));
  weights_.push_back(weight);
  return static_cast<int>(weights_.size()) - 1;
}

int Program::add_vector(const float* values, int columns) {
  Memory copy(round_up(columns, 16) * sizeof(float), false);
  std::memcpy(copy.as<float>(), values, columns * sizeof(float));
  vectors_.push_back(std::move(copy));
  return static_cast<int>(vectors_.size()) - 1;
}

int Program::add_buffer(int columns) {
  Buffer buffer;
  buffer.columns = columns;
  buffer.stride = round_up(columns, 16);
  buffer.values = Memory(buffer.stride * options_.max_rows * sizeof(float), false);
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

void Program::begin_phase(bool over_wanted) { phases_.push_back({{}, over_wanted}); }

void Program::add(const Instruction& instruction) {
  phases_.back().instructions.push_back(instruction);
  if (instruction.op != Op::quantize) return;
  Buffer& buffer = buffers_[instruction.a];
  if (buffer.high.bytes() > 0) return;
  const size_t cells = static_cast<size_t>(buffer.columns) * options_.max_rows;
  buffer.high = Memory(cells, false);
  if (options_.code_bytes == 2) buffer.low = Memory(cells, false);
  buffer.scales = Memory(cells / 32 * sizeof(float), false);
  buffer.sums = Memory(cells / 32 * sizeof(float), false);
  buffer.half_sums = Memory(cells / 16 * sizeof(float), false);
}

int Program::result_stride() const { return static_cast<int>(buffers_[phases_.back().instructions.back().out].stride); }

const float* Program::run(const StepView& step) {
  if (!next_tasks_) next_tasks_ = std::make_unique<std::atomic<int>[]>(phases_.size());
  for (size_t i = 0; i < phases_.size(); ++i) next_tasks_[i].store(0, std::memory_order_relaxed);
  team_.run([&](int member) {
    for (size_t i = 0; i < phases_.size(); ++i) {
      run_phase(phases_[i], next_tasks_[i], step, member);
      team_.barrier().wait();
    }
  });
  return row(phases_.back().instructions.back().out, 0);
}

void Program::run_phase(const Phase& phase, std::atomic<int>& next_task, const StepView& step, int member) {
  const int num_rows = phase.over_wanted ? step.num_wanted : step.num_tokens;
  const Op op = phase.instructions.front().op;
  if (op == Op::multiply) return run_multiply(phase, next_task, num_rows);
  if (op == Op::attend) return run_attend(phase.instructions.front(), next_task, step, member);
  const auto share = [&](int m) { return static_cast<int>(static_cast<int64_t>(num_rows) * m / team_.size()); };
  for (const Instruction& in : phase.instructions) run_rows(in, step, share(member), share(member + 1));
}

void Program::run_rows(const Instruction& in, const StepView& step, int first, int last) {
  const int shaped = in.out >= 0 ? in.out : in.a;
  const int n = static_cast<int>(buffers_[shaped].stride), columns = buffers_[shaped].columns;
  for (int i = first; i < last; ++i) {
    float* out = in.out >= 0 ? row(in.out, i) : nullptr;
    switch (in.op) {
      case Op::embed:
        unpack_row(weights_[in.weight], step.tokens[i], out);
        kernels_.scale(out, in.factor, out, n);
        break;
      case Op::scale: kernels_.scale(row(in.a, i), in.factor, out, n); break;
      case Op::rms_norm: kernels_.rms_norm(row(in.a, i), vectors_[in.vector].as<float>(), columns, in.factor, out, n); break;
      case Op::add_scaled: kernels_.add_scaled(row(in.a, i), row(in.b, i), in.factor, out, n); break;
      case Op::swiglu: kernels_.swiglu(row(in.a, i), row(in.b, i), out, n); break;
      case Op::rotation: {
        const int half = columns / 2;
        const float *factors = vectors_[in.vector].as<float>(), *frequencies = factors + half, position = step.positions[i];
        for (int f = 0; f < half; ++f) {
          const float angle = position * factors[f] * frequencies[f];
          out[f] = std::cos(angle) * in.factor;
          out[half + f] = std::sin(angle) * in.factor;
        }
        break;
      }
      case Op::rope: {
        const int head_dim = options_.head_dim;
        const float* angles = row(in.b, i);
        kernels_.rope(row(in.a, i), angles, angles + head_dim / 2, columns / head_dim, head_dim, out);
        break;
      }
      case Op::take: std::memcpy(out, row(in.a, step.wanted[i]), n * sizeof(float)); break;
      case Op::store: kernels_.store_key_value(kv_layer(in.layer), row(in.a, i), row(in.b, i), step.slots[i]); break;
      case Op::quantize: kernels_.quantize(row(in.a, i), columns, buffers_[in.a].codes().row(i, columns)); break;
      case Op::multiply:
      case Op::attend: break;  // tasks, not rows
    }
  }
}

Rows Program::rows_of(const Buffer& buffer) const {
  return {buffer.values.as<float>(), buffer.stride, buffer.columns, buffer.codes()};
}

void Program::run_multiply(const Phase& phase, std::atomic<int>& next_task, int num_rows) {
  const auto tile_tasks = [&](const Instruction& in) { return (weights_[in.weight].num_tiles() + kTilesPerTask - 1) / kTilesPerTask; };
  const int row_tasks = (num_rows + kRowsPerTask - 1) / kRowsPerTask;
  for (;;) {
    int task = next_task.fetch_add(1, std::memory_order_relaxed);
    const Instruction* in = phase.instructions.data();
    const Instruction* end = in + phase.instructions.size();
    while (in < end && task >= tile_tasks(*in) * row_tasks) task -= tile_tasks(*in++) * row_tasks;
    if (in == end) return;
    const Weight& weight = weights_[in->weight];
    const int first_tile = task / row_tasks * kTilesPerTask, first_row = task % row_tasks * kRowsPerTask;
    Buffer& out = buffers_[in->out];
    kernels_.multiply(weight, first_tile, std::min(first_tile + kTilesPerTask, weight.num_tiles()), rows_of(buffers_[in->a]), first_row,
                      std::min(first_row + kRowsPerTask, num_rows), out.values.as<float>(), out.stride);
  }
}

void Program::run_attend(const Instruction& in, std::atomic<int>& next_task, const StepView& step, int member) {
  const int queries = attend_queries(options_.group_heads), heads = options_.num_kv_heads;
  const auto blocks_of = [&](int s) { return (step.starts[s + 1] - step.starts[s] + queries - 1) / queries; };
  for (;;) {
    int task = next_task.fetch_add(1, std::memory_order_relaxed), s = 0;
    while (s < step.num_sequences && task >= blocks_of(s) * heads) task -= blocks_of(s++) * heads;
    if (s == step.num_sequences) return;
    const int block = blocks_of(s) - 1 - task / heads;  // the longest first, so that none is left for the end
    const int first = step.starts[s] + block * queries, last = std::min(first + queries, step.starts[s + 1]);
    const AttendTask work{row(in.a, 0), row(in.out, 0), buffers_[in.a].stride, first, last, step.positions,
                          step.pages + static_cast<size_t>(s) * step.pages_stride, task % heads, options_.group_heads,
                          scratch_[member].as<float>()};
    kernels_.attend(kv_layer(in.layer), work);
  }
}

}  // namespace minicpm4
