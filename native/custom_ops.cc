// MindSpore's ahead-of-time convention for custom operations: a symbol gets pointers, ranks, shapes and type names of its inputs and, last,
// of its output, and returns 0, or a number with which the graph fails. Of the rows of a padded batch only the first `count` are computed,
// the others become 0.
#include "custom_ops.h"

#include <algorithm>
#include <cstring>

#include "packing.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace minicpm4 {
namespace {

// Arithmetic as this project means it while it lives: MindSpore's threads take the smallest numbers for zero, and the scales of many a
// half-precision block are such.
class OrdinaryFloats {
 public:
#if defined(__SSE__)
  OrdinaryFloats() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~OrdinaryFloats() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#elif defined(__aarch64__)
  OrdinaryFloats() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~OrdinaryFloats() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

constexpr int kTaskTiles = 8, kRowsPerTask = 128;  // as large as the tasks of the native executor's programs

}  // namespace

WeightHandle::WeightHandle(const Kernels& kernels, std::shared_ptr<SharedThreadPool> pool, std::shared_ptr<const Arena> arena, const Weight& weight)
    : kernels_(kernels), pool_(std::move(pool)), arena_(std::move(arena)), weight_(weight) {}

void WeightHandle::multiply(const float* x, int num_rows, float* out) {
  const std::lock_guard lock(pool_->mutex);
  const size_t columns = weight_.columns, stride = round_up(columns, kTileRows), out_columns = weight_.rows, out_stride = round_up(out_columns, kTileRows);
  if (stride != columns) {
    padded_x_.assign(stride * num_rows, 0);
    for (int i = 0; i < num_rows; ++i) std::copy_n(x + columns * i, columns, padded_x_.data() + stride * i);
    x = padded_x_.data();
  }
  if (out_stride != out_columns) padded_out_.resize(out_stride * num_rows);
  float* result = out_stride != out_columns ? padded_out_.data() : out;
  const Rows rows{x, stride, weight_.columns, {}};
  const int tiles = weight_.num_tiles(), workers = pool_->pool.size();
  pool_->pool.run([&](int worker) {  // contiguous shares, so that each thread reads its weights as one stream
    const int first = static_cast<int>(int64_t{tiles} * worker / workers), last = static_cast<int>(int64_t{tiles} * (worker + 1) / workers);
    for (int tile = first; tile < last; tile += kTaskTiles) {
      const int end = std::min(tile + kTaskTiles, last);
      for (int row = 0; row < num_rows; row += kRowsPerTask)
        kernels_.multiply(weight_, tile, end, rows, row, std::min(row + kRowsPerTask, num_rows), result, out_stride, weight_.tile(end < tiles ? end : 0));
    }
  });
  if (result == out) return;
  for (int i = 0; i < num_rows; ++i) std::copy_n(result + out_stride * i, out_columns, out + out_columns * i);
}

bool WeightHandle::look_up(const int32_t* tokens, int num_tokens, float* out) const {
  if (!std::all_of(tokens, tokens + num_tokens, [&](int32_t token) { return 0 <= token && token < weight_.rows; })) return false;
  for (int i = 0; i < num_tokens; ++i) unpack_row(weight_, tokens[i], out + static_cast<size_t>(weight_.columns) * i);
  return true;
}

AttentionHandle::AttentionHandle(const Kernels& kernels, std::shared_ptr<SharedThreadPool> pool, const Program::Options& options)
    : pool_(std::move(pool)),
      program_(kernels, pool_->pool, options),
      queries_(program_.add_buffer(query_columns())),
      keys_(program_.add_buffer(key_columns())),
      values_(program_.add_buffer(key_columns())),
      out_(program_.add_buffer(query_columns())) {
  for (int layer = 0; layer < options.num_layers; ++layer) add_layer(layer);
  phases_per_layer_ = program_.num_phases() / options.num_layers;
}

void AttentionHandle::add_layer(int layer) {
  const auto add_task = [&](Op op, int out, int a) {
    program_.begin_phase(PhaseKind::tasks, false);
    program_.add({.op = op, .out = out, .a = a, .layer = layer});
  };
  program_.begin_phase(PhaseKind::rows, false);
  program_.add({.op = Op::store_keys, .a = keys_, .layer = layer});
  program_.add({.op = Op::store_values, .a = values_, .layer = layer});
  if (options().sparse.is_on()) {
    add_task(Op::compress_keys, -1, keys_);
    add_task(Op::select_blocks, -1, queries_);
  }
  add_task(Op::attend, out_, queries_);
  program_.begin_phase(PhaseKind::rows, false);
  program_.add({.op = Op::merge, .out = out_, .a = out_});
}

void AttentionHandle::attend(int layer, const StepView& step, const float* queries, const float* keys, const float* values, float* out) {
  const std::lock_guard lock(pool_->mutex);
  for (int i = 0; i < step.num_tokens; ++i) {
    std::copy_n(queries + static_cast<size_t>(query_columns()) * i, query_columns(), program_.row(queries_, i));
    std::copy_n(keys + static_cast<size_t>(key_columns()) * i, key_columns(), program_.row(keys_, i));
    std::copy_n(values + static_cast<size_t>(key_columns()) * i, key_columns(), program_.row(values_, i));
  }
  program_.run_phases(step, phases_per_layer_ * layer, phases_per_layer_ * (layer + 1));
  for (int i = 0; i < step.num_tokens; ++i) std::copy_n(program_.row(out_, i), query_columns(), out + static_cast<size_t>(query_columns()) * i);
}

namespace {

enum Failure { kWrongInputs = 1, kWrongToken = 2, kWrongLayer = 3 };

// What a symbol is called with; the last parameter is its output, [rows, columns].
struct Call {
  int num_params;
  void** params;
  int* ranks;
  int64_t** shapes;
  const char** types;

  bool is(int index, const char* type, std::initializer_list<int64_t> shape) const {
    return std::strcmp(types[index], type) == 0 && ranks[index] == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), shapes[index]);
  }
  template <class T>
  T* at(int index) const { return static_cast<T*>(params[index]); }
  template <class T>
  T* object(int index) const { return reinterpret_cast<T*>(*at<const int64_t>(index)); }
  int64_t num_rows() const { return shapes[num_params - 1][0]; }
  float* out() const { return at<float>(num_params - 1); }
  void clear_after(int64_t count) const {
    const int64_t columns = shapes[num_params - 1][1];
    std::fill(out() + columns * count, out() + columns * num_rows(), 0.f);
  }
};

// x [rows, columns], count [1], the address of a WeightHandle [1]
int multiply(const Call& call) {
  if (call.num_params != 4 || !call.is(1, "int32", {1}) || !call.is(2, "int64", {1})) return kWrongInputs;
  WeightHandle& weight = *call.object<WeightHandle>(2);
  const int count = *call.at<const int32_t>(1);
  if (!call.is(0, "float32", {call.num_rows(), weight.columns()}) || !call.is(3, "float32", {call.num_rows(), weight.rows()}) || count < 0 || count > call.num_rows())
    return kWrongInputs;
  if (count > 0) weight.multiply(call.at<const float>(0), count, call.out());
  call.clear_after(count);
  return 0;
}

// tokens [rows], the address of a WeightHandle [1]
int look_up(const Call& call) {
  if (call.num_params != 3 || !call.is(0, "int32", {call.num_rows()}) || !call.is(1, "int64", {1})) return kWrongInputs;
  const WeightHandle& weight = *call.object<WeightHandle>(1);
  if (!call.is(2, "float32", {call.num_rows(), weight.columns()})) return kWrongInputs;
  return weight.look_up(call.at<const int32_t>(0), static_cast<int>(call.num_rows()), call.out()) ? 0 : kWrongToken;
}

// queries, keys, values; positions, slots [rows], starts [rows + 1], lengths [rows], pages [rows, width]: of as many sequences as there are
// rows, of which those past the step's have none; the address of an AttentionHandle and the layer's number [2]
int attend(const Call& call) {
  if (call.num_params != 10 || !call.is(8, "int64", {2})) return kWrongInputs;
  AttentionHandle& attention = *call.object<AttentionHandle>(8);
  const int64_t rows = call.num_rows(), layer = call.at<const int64_t>(8)[1], queries = attention.query_columns(), keys = attention.key_columns();
  if (layer < 0 || layer >= attention.options().num_layers) return kWrongLayer;
  if (!call.is(0, "float32", {rows, queries}) || !call.is(1, "float32", {rows, keys}) || !call.is(2, "float32", {rows, keys}) ||
      !call.is(9, "float32", {rows, queries}) || !call.is(3, "int32", {rows}) || !call.is(4, "int32", {rows}) || !call.is(5, "int32", {rows + 1}) ||
      !call.is(6, "int32", {rows}) || !call.is(7, "int32", {rows, call.shapes[7][1]}))
    return kWrongInputs;
  const int32_t* starts = call.at<const int32_t>(5);
  const StepView step{.tokens = nullptr,
                      .positions = call.at<const int32_t>(3),
                      .slots = call.at<const int32_t>(4),
                      .starts = starts,
                      .lengths = call.at<const int32_t>(6),
                      .pages = call.at<const int32_t>(7),
                      .logit_rows = nullptr,
                      .numerics = nullptr,
                      .num_tokens = starts[rows],
                      .num_sequences = static_cast<int>(rows),
                      .pages_stride = static_cast<int>(call.shapes[7][1]),
                      .num_logits = 0};
  attention.attend(static_cast<int>(layer), step, call.at<const float>(0), call.at<const float>(1), call.at<const float>(2), call.out());
  call.clear_after(step.num_tokens);
  return 0;
}

}  // namespace
}  // namespace minicpm4

#define MINICPM4_CUSTOM_OP(name)                                                                                                   \
  extern "C" __attribute__((visibility("default"))) int minicpm4_##name(int num_params, void** params, int* ranks, int64_t** shapes, \
                                                                        const char** types, void*, void*) {                       \
    const minicpm4::OrdinaryFloats floats;                                                                                         \
    return minicpm4::name({num_params, params, ranks, shapes, types});                                                             \
  }
MINICPM4_CUSTOM_OP(multiply)
MINICPM4_CUSTOM_OP(look_up)
MINICPM4_CUSTOM_OP(attend)
