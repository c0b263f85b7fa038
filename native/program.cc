#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "packing.h"

namespace minicpm4 {
namespace {

constexpr int kColumnsPerTask = 128;    // of a product: few enough for the cache; 64 makes a decoding step 5 % slower (docs/lab_notes.md)
constexpr int kRowsPerTask = 128;
constexpr int kBf16RowsPerTask = 512;   // where weights are decoded once for all of them
constexpr int kAttendRowsPerTask = 32;  // (query, head) pairs that share a page's keys
constexpr int kWideHead = 256;          // heads up to here fit the columns of a task

int attend_queries(int group_heads) { return std::max(1, kAttendRowsPerTask / group_heads); }

// Columns of a product's task: whole tiles, whole groups of codes, and whole heads.
int columns_per_task(int head_dim) {
  if (head_dim % kTileRows != 0 || head_dim > kWideHead) return kColumnsPerTask;
  return static_cast<int>(round_up(kColumnsPerTask, std::lcm(head_dim, 2 * kTileRows)));
}

// NaN where one is NaN. The loops over lanes become vectors if they are not unrolled before: 73448 logits in 19 us instead of 38.
float largest(const float* x, int n) {
  float best[16];
  int broken[16] = {};
  std::fill_n(best, 16, -std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + 16 <= n; i += 16) {
#pragma GCC unroll 1
    for (int lane = 0; lane < 16; ++lane) best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
#pragma GCC unroll 1
    for (int lane = 0; lane < 16; ++lane) broken[lane] |= x[i + lane] != x[i + lane];
  }
  for (; i < n; ++i) {
    best[0] = std::max(best[0], x[i]);  // keeps best[0] where x[i] is NaN
    broken[0] |= x[i] != x[i];
  }
  for (int lane = 1; lane < 16; ++lane) {
    best[0] = std::max(best[0], best[lane]);
    broken[0] |= broken[lane];
  }
  return broken[0] ? std::numeric_limits<float>::quiet_NaN() : best[0];
}

// Floats that the queries of a task of sparse rows may have, and tasks of them for each thread if rows suffice. A page is read once for all of
// them; what is kept of them meanwhile takes some four times as much, about the second cache. 512 rows at 128K, two threads of a Xeon with 2 MB
// a core (2026-11-26): 1.57 s with half as many, 1.49 with these, 1.51 with twice as many.
constexpr int kSparseFloatsPerTask = 1 << 17, kSparseTasks = 2;

// Floats from a row of a local buffer to the next: no power of two, for tiles of rows would compete for the same lines of a cache.
size_t local_stride(int task_columns) { return task_columns + kTileRows; }

int divide_up(int n, int by) { return (n + by - 1) / by; }

// Fewer rows a task where more threads want tasks: 512, 256 or 128.
int bf16_rows_per_task(int num_threads) { return num_threads <= 4 ? kBf16RowsPerTask : num_threads <= 8 ? kBf16RowsPerTask / 2 : kRowsPerTask; }

}  // namespace

Program::Program(const Kernels& kernels, ThreadPool& pool, const Options& options)
    : kernels_(kernels), pool_(pool), options_(options), task_columns_(columns_per_task(options.head_dim)) {
  if (options.has_bf16_prompts && !kernels.multiply_bf16) throw std::invalid_argument(std::string(kernels.name) + " has no products in bfloat16");
  const KvLayer shape = kv_layer(0);
  kv_ = Memory(shape.page_stride * num_all_pages(), true);
  size_t floats = attend_scratch_floats(attend_queries(options.group_heads), options.group_heads, shape.padded_dim());
  if (options.sparse.is_on()) {
    const SparseLayer sparse = sparse_layer(0);
    const size_t heads = static_cast<size_t>(options.num_kv_heads) * num_all_pages() * options.num_layers;
    fine_ = Memory(sparse.fine.head_bytes() * heads, true);
    if (options.sparse.has_coarse_lse) coarse_ = Memory(sparse.coarse.head_bytes() * heads, true);
    floats = std::max({floats, sparse_scratch_floats(sparse_queries(options.max_rows), options.group_heads, shape.padded_dim(), options.num_pages, options.sparse.max_blocks()),
                       select_scratch_floats(shape, options.sparse, options.group_heads, options.num_pages)});
  }
  for (int i = 0; i < pool.size(); ++i) scratch_.emplace_back(floats * sizeof(float), false);
}

KvLayer Program::kv_layer(int layer) const {
  KvLayer kv{nullptr, nullptr, 0, options_.kv_format, options_.num_kv_heads, options_.head_dim};
  const size_t layer_bytes = 2 * kv.page_bytes();
  kv.page_stride = layer_bytes * options_.num_layers;
  kv.keys = kv_.as<uint8_t>() + layer_bytes * layer;
  kv.values = kv.keys + kv.page_bytes();
  return kv;
}

CompressedLayer Program::compressed_layer(const Memory& kept, const CompressedShape& shape, int layer) const {
  CompressedLayer layout{nullptr, num_all_pages(), options_.kv_format, kv_layer(0).padded_dim(), shape};
  if (kept.bytes() > 0) layout.data = kept.as<uint8_t>() + layout.head_bytes() * options_.num_kv_heads * num_all_pages() * layer;
  return layout;
}

SparseLayer Program::sparse_layer(int layer) const {
  return {options_.sparse, compressed_layer(fine_, options_.sparse.fine(), layer), compressed_layer(coarse_, options_.sparse.coarse(), layer)};
}

std::span<const int32_t> Program::chosen_blocks(int sparse_row, int kv_head) const {
  const size_t list = static_cast<size_t>(sparse_row) * options_.num_kv_heads + kv_head;
  return {blocks_.data() + list * options_.sparse.max_blocks(), static_cast<size_t>(block_counts_[list])};
}

void Program::store(int layer, const float* row, const int32_t* pages, int token) {
  const int slot = pages[token / kPageTokens] * kPageTokens + token % kPageTokens;
  kernels_.store_keys(kv_layer(layer), row, 0, options_.num_kv_heads, slot);
  kernels_.store_values(kv_layer(layer), row, 0, options_.num_kv_heads, slot);
  for (const bool is_coarse : {false, true})
    if (options_.sparse.completes(is_coarse, token)) kernels_.compress(kv_layer(layer), sparse_layer(layer).compressed(is_coarse), pages, token, scratch_.front().as<float>());
}

void Program::compress_at(const int32_t* pages, int token) {
  for (int layer = 0; layer < options_.num_layers; ++layer)
    for (const bool is_coarse : {false, true})
      if (options_.sparse.completes(is_coarse, token)) kernels_.compress(kv_layer(layer), sparse_layer(layer).compressed(is_coarse), pages, token, scratch_.front().as<float>());
}

void Program::copy_token(const int32_t* pages, int source, int target) {
  const int from_page = pages[source / kPageTokens], to_page = pages[target / kPageTokens], from = source % kPageTokens, to = target % kPageTokens;
  const KvLayer shape = kv_layer(0);
  const size_t size = shape.element_bytes(), pack = shape.format == KvFormat::int8 ? 4 : 1, dim = shape.padded_dim();
  const size_t head_bytes = shape.head_elements() * size, run = pack * size;  // of keys, neighbours along the dimension lie together
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    const KvLayer kv = kv_layer(layer);
    for (int head = 0; head < kv.num_kv_heads; ++head) {
      const uint8_t *keys = kv.key_page(from_page) + head * head_bytes, *values = kv.value_page(from_page) + head * head_bytes;
      uint8_t *new_keys = kv.key_page(to_page) + head * head_bytes, *new_values = kv.value_page(to_page) + head * head_bytes;
      for (size_t d = 0; d < dim; d += pack) std::memcpy(new_keys + (d * kPageTokens + to * pack) * size, keys + (d * kPageTokens + from * pack) * size, run);
      for (size_t d = 0; d < dim; ++d)
        std::memcpy(new_values + ((to / pack * dim + d) * pack + to % pack) * size, values + ((from / pack * dim + d) * pack + from % pack) * size, size);
      if (kv.scale_bytes() == 0) continue;
      kv.key_scales(to_page)[head * kPageTokens + to] = kv.key_scales(from_page)[head * kPageTokens + from];
      kv.value_scales(to_page)[head * kPageTokens + to] = kv.value_scales(from_page)[head * kPageTokens + from];
    }
  }
}

void Program::copy_page(int source, int target) {
  const size_t page_bytes = kv_layer(0).page_stride;
  std::memcpy(kv_.as<uint8_t>() + page_bytes * target, kv_.as<uint8_t>() + page_bytes * source, page_bytes);
  for (int layer = 0; layer < options_.num_layers && options_.sparse.is_on(); ++layer) {
    const SparseLayer sparse = sparse_layer(layer);
    for (const CompressedLayer& kept : {sparse.fine, sparse.coarse})
      for (int head = 0; head < options_.num_kv_heads && kept.data; ++head) std::memcpy(kept.page(target, head), kept.page(source, head), kept.head_bytes());
  }
}

int Program::add_weight(std::shared_ptr<const Arena> arena, const Weight& weight) {
  if (kept_.empty() || kept_.back() != arena) kept_.push_back(std::move(arena));
  weights_.push_back(weight);
  return static_cast<int>(weights_.size()) - 1;
}

int Program::add_vector(const float* values, int columns) {
  Memory copy(round_up(columns, 16) * sizeof(float), false);
  std::memcpy(copy.as<float>(), values, columns * sizeof(float));
  vectors_.push_back(std::move(copy));
  return static_cast<int>(vectors_.size()) - 1;
}

int Program::add_buffer(int columns, bool is_local) {
  Buffer buffer;
  buffer.columns = columns;
  if (is_local) {
    buffer.stride = local_stride(options_.has_bf16_prompts ? 2 * task_columns_ : task_columns_);
    buffer.local = static_cast<int>(locals_.size()) / pool_.size();
    const int rows = std::min(options_.max_rows, bf16_rows_per_task(pool_.size()));
    for (int worker = 0; worker < pool_.size(); ++worker) locals_.push_back(reinterpret_cast<float*>(hot_.take(buffer.stride * rows * sizeof(float))));
  } else {
    buffer.stride = round_up(columns, 16);
    buffer.values = Memory(buffer.stride * options_.max_rows * sizeof(float), false);
  }
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

void Program::begin_phase(PhaseKind kind, bool over_logit_rows) {
  phases_.push_back({kind, over_logit_rows, {}});
  if (kind != PhaseKind::products) begin_job();
  counters_ = std::vector<TaskCounter>(phases_.size() * pool_.size());
}

void Program::begin_job() { phases_.back().jobs.emplace_back(); }

void Program::add(const Instruction& instruction) {
  check_operands(instruction);
  check_locals(instruction);
  Job& job = phases_.back().jobs.back();
  (instruction.op == Op::linear ? job.products : job.tail).push_back(instruction);
  if (instruction.op == Op::linear) {
    job.columns = buffers_[instruction.out].columns;
    job.task_columns = has_wide_tasks(job.products.front()) ? 2 * task_columns_ : task_columns_;
    job.num_column_tasks = divide_up(job.columns, job.task_columns);
  }
  if (instruction.op == Op::quantize) make_room_to_encode(instruction.a);
  if (instruction.op == Op::embed) num_tokens_ = weights_[instruction.weight].rows;
}

// Rows in bfloat16 that do not stay in the second cache are read again for each task: so tasks have twice the columns, where all workers still
// get as many of the job's.
bool Program::has_wide_tasks(const Instruction& product) const {
  const size_t values = static_cast<size_t>(bf16_rows_per_task(pool_.size())) * buffers_[product.a].columns;
  return options_.has_bf16_prompts && !phases_.back().over_logit_rows && values > kNearValues &&
         divide_up(buffers_[product.out].columns, 2 * task_columns_) % pool_.size() == 0;
}

void Program::check_operands(const Instruction& in) const {
  const auto check = [](int index, size_t count, const char* what) {
    if (index < -1 || index >= static_cast<int>(count)) throw std::invalid_argument(std::string("an instruction names a ") + what + " that is not there");
  };
  if (phases_.empty() || phases_.back().jobs.empty()) throw std::invalid_argument("an instruction comes before its phase, or its job");
  for (const int buffer : {in.out, in.a, in.b}) check(buffer, buffers_.size(), "buffer");
  check(in.weight, weights_.size(), "weight");
  check(in.vector, vectors_.size(), "vector");
  check(in.layer, options_.num_layers, "layer");
}

void Program::check_locals(const Instruction& in) const {
  const auto is_local = [&](int buffer) { return buffer >= 0 && buffers_[buffer].local >= 0; };
  const bool is_in_task = phases_.back().kind == PhaseKind::products && in.op != Op::block_maxima && !(in.op == Op::rope && is_local(in.b)) &&
                          !(in.op == Op::linear && options_.code_bytes == 0 && is_local(in.a));
  if (in.op == Op::block_maxima && !phases_.back().over_logit_rows) throw std::invalid_argument("block maxima are of rows of logits");
  if (!is_in_task && (is_local(in.out) || is_local(in.a) || is_local(in.b))) throw std::invalid_argument("a local buffer is looked at outside its task");
}

void Program::make_room_to_encode(int index) {
  Buffer& buffer = buffers_[index];
  if (options_.has_bf16_prompts && !phases_.back().over_logit_rows && !buffer.bf16.values) {
    // Room for rows after the last one; an odd number, so that tiles of neighbouring panels lie in different sets of a cache.
    const size_t tiles = static_cast<size_t>(divide_up(options_.max_rows, kTileRows) + 1) | 1;
    const size_t panel_stride = tiles * kTileRows * kGroupColumns, panels = buffer.columns / kGroupColumns;
    buffer.bf16 = {reinterpret_cast<uint16_t*>(hot_.take(panels * panel_stride * sizeof(uint16_t))), panel_stride};
  }
  if (buffer.high.bytes() > 0 || options_.code_bytes == 0) return;
  const size_t cells = static_cast<size_t>(buffer.columns) * options_.max_rows;
  buffer.high = Memory(cells, false);
  if (options_.code_bytes == 2) buffer.low = Memory(cells, false);
  buffer.scales = Memory(cells / 32 * sizeof(float), false);
  buffer.half_sums = Memory(cells / 16 * sizeof(float), false);
}

const Instruction& Program::last_instruction() const {
  const Job& job = phases_.back().jobs.back();
  return (job.tail.empty() ? job.products : job.tail).back();
}

int Program::result_buffer() const {
  const Instruction& last = last_instruction();
  return last.op == Op::block_maxima ? last.a : last.out;
}

int Program::maxima_buffer() const {
  const Instruction& last = last_instruction();
  return last.op == Op::block_maxima ? last.out : -1;
}

void Program::run(const StepView& step) { run_phases(step, 0, num_phases()); }

void Program::run_phases(const StepView& step, int first, int last) {
  plan_rows(step);
  plan_attention(step);
  for (TaskCounter& share : counters_) share.next.store(0, std::memory_order_relaxed);
  pool_.run([&](int worker) {
    for (int i = first; i < last; ++i) {
      if (phases_[i].kind == PhaseKind::tasks && num_tasks(phases_[i]) == 0) continue;
      run_phase(i, step, worker);
      pool_.barrier().wait();
    }
  });
}

void Program::run_phase(size_t index, const StepView& step, int worker) {
  const Phase& phase = phases_[index];
  switch (phase.kind) {
    case PhaseKind::rows: {
      const int num_rows = rows_of(phase, step), first = share_start(num_rows, worker), last = share_start(num_rows, worker + 1);
      for (const Instruction& in : phase.jobs.front().tail) apply(in, step, {first, last, 0, buffers_[in.out >= 0 ? in.out : in.a].columns, worker, 0, phase.over_logit_rows});
      break;
    }
    case PhaseKind::products: run_products(index, step, worker); break;
    case PhaseKind::tasks: run_tasks(index, step, worker); break;
  }
}

int Program::num_tasks(const Phase& phase) const {
  switch (phase.jobs.front().tail.front().op) {
    case Op::compress_keys: return static_cast<int>(new_compressed_.size());
    case Op::select_blocks: return num_select_tasks_;
    default: return num_attend_tasks_;
  }
}

void Program::run_tasks(size_t index, const StepView& step, int worker) {
  const Instruction& in = phases_[index].jobs.front().tail.front();
  take_tasks(index, num_tasks(phases_[index]), worker, [&](int task, int) {
    switch (in.op) {
      case Op::compress_keys: return run_compress_task(in, step, worker, task);
      case Op::select_blocks: return run_select_task(in, step, worker, task);
      default: return run_attend_task(in, step, worker, task);
    }
  });
}

// Calls work(task, end of its share) for the tasks of the worker's own share, then for what the shares of the others still hold.
template <class Work>
void Program::take_tasks(size_t phase, int num_tasks, int worker, Work work) {
  const int workers = pool_.size();
  for (int i = 0; i < workers; ++i) {
    const int owner = (worker + i) % workers, first = share_start(num_tasks, owner), end = share_start(num_tasks, owner + 1);
    std::atomic<int>& next = counters_[phase * workers + owner].next;
    for (int taken; (taken = first + next.fetch_add(1, std::memory_order_relaxed)) < end;) work(taken, end);
  }
}

// One head; the kernel takes whole vectors, and heads of other widths lie side by side.
void Program::rms_norm_head(const float* x, const float* weight, float eps, float* out) const {
  const int columns = options_.head_dim;
  if (columns % 16 == 0) return kernels_.rms_norm(x, weight, columns, eps, out, columns);
  float squares = 0;
  for (int i = 0; i < columns; ++i) squares += x[i] * x[i];
  const float inverse = 1 / std::sqrt(squares / columns + eps);
  for (int i = 0; i < columns; ++i) out[i] = x[i] * inverse * weight[i];
}

void Program::apply(const Instruction& in, const StepView& step, const Slice& slice) {
  for (int i = slice.first_row; i < slice.last_row; ++i) apply_row(in, step, i, slice);
}

// A row of a buffer, from the slice's first column on.
float* Program::cells(int buffer, int i, const Slice& slice) {
  const Buffer& b = buffers_[buffer];
  if (b.local < 0) return row(buffer, i) + slice.first_column;
  return locals_[b.local * pool_.size() + slice.worker] + slice.local_stride * (i - slice.first_row);
}

// Calls store(slot) for every slot that a row is written to.
template <class Store>
void Program::store_row(const StepView& step, int i, Store store) const {
  store(step.slots[i]);
  if (!step.more_slots) return;
  for (int more = step.more_starts[i]; more < step.more_starts[i + 1]; ++more) store(step.more_slots[more]);
}

// One row, the slice's columns. Whole rows for the ops that look at all columns.
void Program::apply_row(const Instruction& in, const StepView& step, int i, const Slice& slice) {
  const int head_dim = options_.head_dim, first = slice.first_column, last = slice.last_column, n = static_cast<int>(round_up(last - first, 16));
  float* out = in.out >= 0 ? cells(in.out, i, slice) : nullptr;
  const float* a = in.a >= 0 ? cells(in.a, in.op == Op::take ? step.logit_rows[i] : i, slice) : nullptr;
  switch (in.op) {
    case Op::embed:
      unpack_row(weights_[in.weight], step.tokens[i], out);
      kernels_.scale(out, in.factor, out, n);
      break;
    case Op::scale: kernels_.scale(a, in.factor, out, n); break;
    case Op::rms_norm: kernels_.rms_norm(a, vectors_[in.vector].as<float>(), last, in.factor, out, n); break;
    case Op::rms_norm_heads:
      for (int column = 0; column < last - first; column += head_dim) rms_norm_head(a + column, vectors_[in.vector].as<float>(), in.factor, out + column);
      break;
    case Op::add_bias: kernels_.add_scaled(a, vectors_[in.vector].as<float>() + first, 1.0f, out, n); break;
    case Op::add_scaled: kernels_.add_scaled(a, cells(in.b, i, slice), in.factor, out, n); break;
    case Op::swiglu: kernels_.swiglu(a, cells(in.b, i, slice), out, n); break;
    case Op::rotation: {
      const int half = last / 2;
      const float *factors = vectors_[in.vector].as<float>(), *frequencies = factors + half, position = step.positions[i];
      for (int f = 0; f < half; ++f) {
        const float angle = position * factors[f] * frequencies[f];
        out[f] = std::cos(angle) * in.factor;
        out[half + f] = std::sin(angle) * in.factor;
      }
      break;
    }
    case Op::rope: kernels_.rope(a, row(in.b, i), row(in.b, i) + head_dim / 2, (last - first) / head_dim, head_dim, out); break;
    case Op::take: std::memcpy(out, a, n * sizeof(float)); break;
    case Op::store_keys: store_row(step, i, [&](int slot) { kernels_.store_keys(kv_layer(in.layer), a, first / head_dim, last / head_dim, slot); }); break;
    case Op::store_values: store_row(step, i, [&](int slot) { kernels_.store_values(kv_layer(in.layer), a, first / head_dim, last / head_dim, slot); }); break;
    case Op::quantize:
      if (!slice.over_logit_rows && are_bf16_[i]) kernels_.to_bf16(a, last - first, buffers_[in.a].bf16, i, first);
      else if (options_.code_bytes > 0) kernels_.quantize(a, last - first, buffers_[in.a].codes().from(buffers_[in.a].columns * static_cast<size_t>(i) + first));
      break;
    case Op::merge: merge_row(in, step, i); break;
    case Op::block_maxima: row(in.out, i)[first / task_columns_] = largest(a, last - first); break;
    case Op::linear: case Op::compress_keys: case Op::select_blocks:
    case Op::attend: break;  // tasks, not rows
  }
}

Rows Program::rows_of(const Buffer& buffer) const {
  return {buffer.values.as<float>(), buffer.stride, buffer.columns, buffer.codes(), buffer.bf16};
}

int Program::num_product_tasks(const Phase& phase, int num_ranges) {
  int total = 0;
  for (const Job& job : phase.jobs) total += job.num_column_tasks * num_ranges;
  return total;
}

// The job that a task of the phase belongs to; `task` becomes its number in that job.
const Program::Job& Program::job_of(const Phase& phase, int num_ranges, int* task) {
  const Job* job = phase.jobs.data();
  for (; *task >= job->num_column_tasks * num_ranges; ++job) *task -= job->num_column_tasks * num_ranges;
  return *job;
}

// The first weights that a task of the phase reads.
const uint8_t* Program::first_tiles(const Phase& phase, int num_ranges, int task) const {
  const Job& job = job_of(phase, num_ranges, &task);
  return weights_[job.products.front().weight].tile(task / num_ranges * job.task_columns / kTileRows);
}

// What a worker reads first in the next phase that has products.
const uint8_t* Program::first_tiles_after(size_t index, int worker) const {
  while (++index < phases_.size()) {
    const int num_ranges = static_cast<int>(ranges_of(phases_[index]).size());
    if (phases_[index].kind != PhaseKind::products || num_ranges == 0) continue;
    const int total = num_product_tasks(phases_[index], num_ranges);
    return first_tiles(phases_[index], num_ranges, std::min(share_start(total, worker), total - 1));
  }
  return weights_.front().data;
}

void Program::run_products(size_t index, const StepView& step, int worker) {
  const Phase& phase = phases_[index];
  const int num_ranges = static_cast<int>(ranges_of(phase).size());
  const uint8_t* after_all = first_tiles_after(index, worker);
  take_tasks(index, num_product_tasks(phase, num_ranges), worker, [&](int task, int end) {
    run_product_task(phase, step, worker, task, task + 1 < end ? first_tiles(phase, num_ranges, task + 1) : after_all);
  });
}

// after: the weights that are read next.
void Program::run_product_task(const Phase& phase, const StepView& step, int worker, int task, const uint8_t* after) {
  const std::vector<RowRange>& ranges = ranges_of(phase);
  const int num_ranges = static_cast<int>(ranges.size());
  const Job& job = job_of(phase, num_ranges, &task);
  const RowRange& range = ranges[task % num_ranges];
  const int first_column = task / num_ranges * job.task_columns, first_tile = first_column / kTileRows;
  const Slice slice{range.first_row, range.last_row, first_column, std::min(first_column + job.task_columns, job.columns), worker, local_stride(job.task_columns), phase.over_logit_rows};
  for (size_t i = 0; i < job.products.size(); ++i) {
    const Instruction& in = job.products[i];
    const Weight& weight = weights_[in.weight];
    const size_t stride = buffers_[in.out].local < 0 ? buffers_[in.out].stride : slice.local_stride;
    float* out = cells(in.out, slice.first_row, slice) - stride * slice.first_row - slice.first_column;  // of row 0, column 0
    const uint8_t* next = i + 1 < job.products.size() ? weights_[job.products[i + 1].weight].tile(first_tile) : after;
    const bool is_bf16 = range.is_bf16 && has_bf16_product(weight.format, weight.columns);
    const auto multiply = is_bf16 ? kernels_.multiply_bf16 : kernels_.multiply;
    const int last_tile = divide_up(slice.last_column, kTileRows), most_rows = is_bf16 ? slice.last_row - slice.first_row : kRowsPerTask;
    for (int row = slice.first_row; row < slice.last_row; row += most_rows)
      multiply(weight, first_tile, last_tile, rows_of(buffers_[in.a]), row, std::min(row + most_rows, slice.last_row), out, stride, next);
  }
  for (const Instruction& in : job.tail) apply(in, step, slice);
}

// Which rows are in bfloat16, and the ranges that tasks take: neighbours that are, or are not. Wanted rows never are: how many there are of
// a prompt depends on who asks.
void Program::plan_rows(const StepView& step) {
  row_ranges_.clear(), logit_ranges_.clear();
  are_bf16_.assign(step.num_tokens, false);
  for (int s = 0; s < step.num_sequences && options_.has_bf16_prompts; ++s)
    if (step.numerics[s] == kBf16) std::fill(are_bf16_.begin() + step.starts[s], are_bf16_.begin() + step.starts[s + 1], true);
  const auto cut = [](int first, int last, bool is_bf16, int most, std::vector<RowRange>& ranges) {
    for (; first < last; first += most) ranges.push_back({first, std::min(first + most, last), is_bf16});
  };
  for (int first = 0; first < step.num_tokens;) {
    const bool is_bf16 = are_bf16_[first];
    const int last = static_cast<int>(std::find(are_bf16_.begin() + first, are_bf16_.end(), !is_bf16) - are_bf16_.begin());
    cut(first, last, is_bf16, is_bf16 ? bf16_rows_per_task(pool_.size()) : kRowsPerTask, row_ranges_);
    first = last;
  }
  cut(0, step.num_logits, false, kRowsPerTask, logit_ranges_);
}

void Program::plan_attention(const StepView& step) {
  plans_.clear();
  new_compressed_.clear();
  num_attend_tasks_ = num_select_tasks_ = num_kv_splits_ = num_sparse_rows_ = 0;
  for (int s = 0; s < step.num_sequences; ++s) {
    const int first = step.starts[s], last = step.starts[s + 1];
    const int first_sparse = static_cast<int>(std::partition_point(step.positions + first, step.positions + last, [&](int position) {
                                                return !options_.sparse.is_sparse(position);
                                              }) - step.positions);
    add_plan(step, s, first, first_sparse, false);
    add_plan(step, s, first_sparse, last, true);
    list_compressed(step, s);
  }
  const size_t bytes = sizeof(float) * num_kv_splits_ * options_.num_kv_heads * options_.group_heads * partial_floats(kv_layer(0).padded_dim());
  if (bytes > partials_.bytes()) partials_ = Memory(2 * bytes, false);
  const size_t lists = static_cast<size_t>(num_sparse_rows_) * options_.num_kv_heads;
  if (lists > block_counts_.size()) block_counts_.resize(2 * lists), blocks_.resize(2 * lists * options_.sparse.max_blocks());
}

void Program::list_compressed(const StepView& step, int sequence) {
  const int first = step.starts[sequence], last = step.starts[sequence + 1];
  if (first == last || !options_.sparse.is_on()) return;
  for (int token = step.fresh ? step.fresh[sequence] : step.positions[first]; token <= step.positions[last - 1]; ++token)
    for (const bool is_coarse : {false, true})
      if (options_.sparse.completes(is_coarse, token)) new_compressed_.push_back({sequence, token, is_coarse});
}

// Of so many sparse rows of a sequence, how many are a task.
int Program::sparse_queries(int num_rows) const {
  const int most = kSparseFloatsPerTask / (options_.group_heads * kv_layer(0).padded_dim());
  return std::clamp(num_rows * options_.num_kv_heads / (kSparseTasks * pool_.size()), 1, std::max(1, most));
}

void Program::add_plan(const StepView& step, int sequence, int first_row, int last_row, bool is_sparse) {
  if (first_row == last_row) return;
  const bool is_alone = step.starts[sequence + 1] - step.starts[sequence] == 1;
  const int queries = is_sparse ? sparse_queries(last_row - first_row) : attend_queries(options_.group_heads), position = step.positions[last_row - 1];
  const int num_pages = is_sparse ? options_.sparse.num_blocks(position) : position / kPageTokens + 1;
  const int blocks = divide_up(last_row - first_row, queries), splits = is_alone ? divide_up(num_pages, kSplitPages) : 1;
  const int select_rows = std::clamp((last_row - first_row) * options_.num_kv_heads / (kSparseTasks * pool_.size()), 1, kSelectRows);
  plans_.push_back({sequence, first_row, last_row, is_sparse, queries, blocks, splits, select_rows, num_attend_tasks_, num_kv_splits_, num_sparse_rows_, num_select_tasks_});
  num_attend_tasks_ += blocks * splits * options_.num_kv_heads;
  if (splits > 1) num_kv_splits_ += splits;
  if (!is_sparse) return;
  num_sparse_rows_ += last_row - first_row;
  num_select_tasks_ += divide_up(last_row - first_row, plans_.back().select_rows) * options_.num_kv_heads;
}

float* Program::partial(int split, int head) {
  const size_t heads = static_cast<size_t>(options_.num_kv_heads) * options_.group_heads;
  return partials_.as<float>() + (split * heads + head) * partial_floats(static_cast<int>(round_up(options_.head_dim, 16)));
}

// What attention to a sequence has in common, whatever its rows, heads and pages.
AttendTask Program::attend_task(const Instruction& in, const StepView& step, const AttentionPlan& plan, int worker) {
  return {row(in.a, 0), in.out >= 0 ? row(in.out, 0) : nullptr, buffers_[in.a].stride, 0, 0, step.positions,
          step.pages + static_cast<size_t>(plan.sequence) * step.pages_stride, nullptr, 0, 0, 0, options_.group_heads, options_.code_bytes,
          scratch_[worker].as<float>(), nullptr};
}

void Program::run_attend_task(const Instruction& in, const StepView& step, int worker, int task) {
  const auto after = std::upper_bound(plans_.begin(), plans_.end(), task, [](int t, const AttentionPlan& plan) { return t < plan.first_task; });
  const AttentionPlan& plan = *(after - 1);
  const int heads = options_.num_kv_heads;
  task -= plan.first_task;
  const int split = task / heads % plan.num_splits;
  const int block = plan.num_blocks - 1 - task / heads / plan.num_splits;  // the longest first, so that none is left for the end
  AttendTask work = attend_task(in, step, plan, worker);
  work.kv_head = task % heads;
  work.first_row = plan.first_row + block * plan.queries;
  work.last_row = std::min(work.first_row + plan.queries, plan.last_row);
  work.last_page = step.positions[work.last_row - 1] / kPageTokens + 1;
  if (plan.is_sparse) {
    const size_t list = static_cast<size_t>(plan.first_sparse + work.first_row - plan.first_row) * heads + work.kv_head;
    int32_t* blocks = blocks_.data() + list * options_.sparse.max_blocks();
    if (work.last_row - work.first_row > 1) work.lists = {blocks, &block_counts_[list], heads, options_.sparse.max_blocks(), work.first_row};
    else work.blocks = blocks, work.last_page = block_counts_[list];
  }
  if (plan.num_splits > 1) {
    work.first_page = split * kSplitPages;
    work.last_page = std::min(work.first_page + kSplitPages, work.last_page);
    work.partial = partial(plan.first_split + split, work.kv_head * options_.group_heads);
  }
  kernels_.attend(kv_layer(in.layer), work);
}

void Program::run_select_task(const Instruction& in, const StepView& step, int worker, int task) {
  const auto after = std::upper_bound(plans_.begin(), plans_.end(), task, [](int t, const AttentionPlan& plan) { return t < plan.first_select; });
  const AttentionPlan& plan = *(after - 1);
  const int heads = options_.num_kv_heads, max_blocks = options_.sparse.max_blocks();
  task -= plan.first_select;
  AttendTask work = attend_task(in, step, plan, worker);
  work.kv_head = task % heads;
  work.first_row = plan.first_row + task / heads * plan.select_rows;
  work.last_row = std::min(work.first_row + plan.select_rows, plan.last_row);
  const size_t list = static_cast<size_t>(plan.first_sparse + work.first_row - plan.first_row) * heads + work.kv_head;
  kernels_.select(kv_layer(in.layer), sparse_layer(in.layer), work, step.positions[work.last_row - 1] / kPageTokens + 1,
                  {blocks_.data() + list * max_blocks, block_counts_.data() + list, heads, max_blocks, work.first_row});
}

void Program::run_compress_task(const Instruction& in, const StepView& step, int worker, int task) {
  const NewCompressedKey& key = new_compressed_[task];
  kernels_.compress(kv_layer(in.layer), sparse_layer(in.layer).compressed(key.is_coarse), step.pages + static_cast<size_t>(key.sequence) * step.pages_stride, key.last_token,
                    scratch_[worker].as<float>());
}

void Program::merge_row(const Instruction& in, const StepView&, int i) {
  const AttentionPlan& plan = *(std::upper_bound(plans_.begin(), plans_.end(), i, [](int row, const AttentionPlan& c) { return row < c.first_row; }) - 1);
  if (plan.num_splits == 1) return;
  const int num_heads = options_.num_kv_heads * options_.group_heads;
  const size_t stride = partial(1, 0) - partial(0, 0);
  for (int h = 0; h < num_heads; ++h)
    kernels_.merge_splits(partial(plan.first_split, h), stride, plan.num_splits, options_.head_dim, row(in.out, i) + static_cast<size_t>(h) * options_.head_dim);
}

}  // namespace minicpm4
