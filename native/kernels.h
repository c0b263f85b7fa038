// The table of kernels that every instruction set provides, and what they work on. No state, no threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace minicpm4 {

constexpr int kPageTokens = 64;

// Activations as integers, in groups of 32 columns, by the rule of minicpm4/quant/activations.py: value = scale * code.
// A code is one byte, or two: code = 254 * high + low.
struct Codes {
  int8_t* high;      // [rows][columns]
  int8_t* low;       // the same, or null where codes are one byte
  float* scales;     // [rows][columns / 32]
  float* half_sums;  // [rows][columns / 16]: the sum of codes of each half of a group

  // The same from a cell on: row * columns + column, a multiple of 32.
  Codes from(size_t at) const {
    return {high + at, low ? low + at : nullptr, scales + at / 32, half_sums + at / 16};
  }
};
constexpr int kHighCode = 254;                          // what a high byte counts
constexpr float kLargestCode[2] = {127, 127 * kHighCode + 126};  // of one byte, of two

// Activations rounded to bfloat16, in panels of 32 columns: [columns / 32][rows][32]. After the last row there is room for 15 more, which are
// read and go nowhere.
struct Bf16Rows {
  uint16_t* values;
  size_t panel_stride;  // values from a panel to the next

  // The value of a row and column, a multiple of 32; those of 31 more columns follow, then the same columns of the next row.
  uint16_t* at(int row, int column) const { return values + column / 32 * panel_stride + static_cast<size_t>(row) * 32; }
};

constexpr size_t kNearValues = 1 << 19;  // of rows: so few that all stay in the second cache, 1 MB of its 2, whatever else passes

// Activations [rows, columns]. Quantized weights are multiplied with codes where there are codes, else with values; by multiply_bf16
// with those in bfloat16, which `multiply` does not look at.
struct Rows {
  const float* values;  // [rows][stride]
  size_t stride;        // floats between rows; a multiple of 16, zeros past the columns
  int columns;
  Codes codes;          // high is null where there are none
  Bf16Rows bf16 = {};
};

// How keys and values are stored. int8: a code plus 128 for each element and a float32 scale for each token of each head, by the rule
// of minicpm4/quant/cache.py.
enum class KvFormat { f32, f16, bf16, int8 };
constexpr size_t element_bytes_of(KvFormat format) { return format == KvFormat::f32 ? 4 : format == KvFormat::int8 ? 1 : 2; }

// One layer's keys and values, in pages of 64 tokens. A page of keys is [kv heads][padded head dim][64 tokens], so that 16
// tokens' scores are one vector; a page of values is [kv heads][64 tokens][padded head dim]. Of int8, four neighbours along the dimension that
// is summed lie together: keys are [head dim / 4][64][4], values [64 / 4][head dim][4]; and after either come the scales,
// [kv heads][64 tokens]. All layers of a page lie together, so that memory is touched as tokens come.
struct KvLayer {
  uint8_t *keys, *values;  // of page 0
  size_t page_stride;      // bytes from a page to the next
  KvFormat format;
  int num_kv_heads, head_dim;

  int padded_dim() const { return static_cast<int>(round_up(head_dim, 16)); }
  size_t element_bytes() const { return element_bytes_of(format); }
  size_t head_elements() const { return static_cast<size_t>(padded_dim()) * kPageTokens; }  // of a page
  size_t scale_bytes() const { return format == KvFormat::int8 ? static_cast<size_t>(num_kv_heads) * kPageTokens * sizeof(float) : 0; }
  size_t scales_at() const { return num_kv_heads * head_elements() * element_bytes(); }
  size_t page_bytes() const { return scales_at() + scale_bytes(); }  // of keys, or of values

  uint8_t* key_page(int page) const { return keys + page_stride * page; }
  uint8_t* value_page(int page) const { return values + page_stride * page; }
  float* key_scales(int page) const { return reinterpret_cast<float*>(key_page(page) + scales_at()); }
  float* value_scales(int page) const { return reinterpret_cast<float*>(value_page(page) + scales_at()); }
};

// Compressed keys: each the mean of `size` keys in a row, one beginning every `stride` tokens. It is kept beside the page
// of its last token, where there are `places`; with a stride of several pages, only every so many of them has one.
struct CompressedShape {
  int size, stride;

  int count(int num_tokens) const { return num_tokens < size ? 0 : (num_tokens - size) / stride + 1; }
  bool ends_at(int position) const { return position + 1 >= size && (position + 1 - size) % stride == 0; }
  int places() const { return stride < kPageTokens ? kPageTokens / stride : 1; }
  int place(int last_token) const { return last_token % kPageTokens / stride; }
  // All places of a sequence in their order are its entries; a compressed key's is its number plus `before`.
  int before() const { return size / stride - 1; }
  // Which page of the sequence has the entries from number * places on.
  int page_at(int number) const { return stride > kPageTokens ? (number + 1) * (stride / kPageTokens) - 1 : number; }
};

// The numbers of InfLLM v2, see SparseConfig in minicpm4/model/config.py; without blocks, all attention is dense.
struct SparseRule {
  int kernel_size, kernel_stride, init_blocks, local_blocks, best_blocks, dense_len;
  bool has_coarse_lse;

  int max_blocks() const { return init_blocks + local_blocks + best_blocks; }
  bool is_on() const { return max_blocks() > 0; }
  bool is_sparse(int position) const { return is_on() && position + 1 > dense_len; }
  CompressedShape fine() const { return {kernel_size, kernel_stride}; }
  CompressedShape coarse() const { return {4 * kernel_size, 4 * kernel_stride}; }  // COARSE of minicpm4/model/sparse.py
  bool completes(bool is_coarse, int position) const { return is_on() && (is_coarse ? has_coarse_lse && coarse().ends_at(position) : fine().ends_at(position)); }
  int first_local(int position) const { return position / kPageTokens - local_blocks + 1; }  // may be negative
  int num_blocks(int position) const {
    const int total = position / kPageTokens + 1;
    return total < max_blocks() ? total : max_blocks();
  }
};

// One layer's compressed keys of a shape, in the cache's format: of a page and kv head [padded head dim][places], of int8
// [head dim / 4][places][4], then its scales [places]. Heads come before pages, so that those of a sequence lie together.
struct CompressedLayer {
  uint8_t* data;
  int num_pages;
  KvFormat format;
  int padded_dim;
  CompressedShape shape;

  size_t scales_at() const { return shape.places() * padded_dim * element_bytes_of(format); }
  size_t head_bytes() const { return scales_at() + (format == KvFormat::int8 ? shape.places() * sizeof(float) : 0); }
  uint8_t* page(int page, int head) const { return data + head_bytes() * (static_cast<size_t>(head) * num_pages + page); }
  float* scales(uint8_t* page) const { return reinterpret_cast<float*>(page + scales_at()); }
};

// What a layer's rows choose their blocks by; coarse: not looked at without has_coarse_lse.
struct SparseLayer {
  SparseRule rule;
  CompressedLayer fine, coarse;

  const CompressedLayer& compressed(bool is_coarse) const { return is_coarse ? coarse : fine; }
};

// What sparse rows attend to with one kv head: list(row) has count(row) blocks, ascending, of at most max_blocks. The lists of neighbouring rows
// are `heads` lists apart; `of_first`, `count_of_first`: of row first_row.
struct BlockLists {
  int32_t *of_first, *count_of_first;
  int heads, max_blocks, first_row;

  int32_t* list(int row) const { return of_first + static_cast<size_t>(row - first_row) * heads * max_blocks; }
  int32_t* count(int row) const { return count_of_first + static_cast<size_t>(row - first_row) * heads; }
};

// Queries of consecutive rows of one sequence against one kv head, over pages [first_page, last_page) of the sequence; of a sparse row,
// which is alone in its task, over that part of the blocks that it attends to; or of several sparse rows, each over all of its own, of which
// `lists` tells: then blocks and partial are null and first_page is 0.
//
// The cache is read in splits of kSplitPages. Each is attended to by itself and then merged with those before it, in
// order, so that a row's result is the same whether one thread reads all of them or several share them.
struct AttendTask {
  const float* queries;      // [rows][stride], all heads
  float* out;                // the same shape
  size_t stride;
  int first_row, last_row;
  const int32_t* positions;  // [rows]
  const int32_t* pages;      // page ids of the sequence
  const int32_t* blocks;     // which of these pages, ascending; null for all
  int first_page, last_page;
  int kv_head, group_heads;  // query heads of this kv head
  int code_bytes;            // of activations, 0 for none: with an int8 cache, queries get codes too
  float* scratch;            // attend_scratch_floats; with lists sparse_scratch_floats, to select select_scratch_floats
  float* partial;            // where the split goes if it is one of several of a single row: [group_heads][partial_floats]; or null
  BlockLists lists = {};     // of several sparse rows, whose last_page is of the sequence

  int block(int index) const { return blocks ? blocks[index] : index; }
  // The query of pair i of (row, head).
  const float* query(const KvLayer& layer, int i) const {
    return queries + (first_row + i / group_heads) * stride + static_cast<size_t>(kv_head * group_heads + i % group_heads) * layer.head_dim;
  }
};

constexpr int kSplitPages = 16;

// A partial result of one (row, head): sums of weighted values [padded dim], sums of weights [16], largest score.
constexpr size_t partial_floats(int padded_dim) { return padded_dim + 32; }
constexpr size_t attend_scratch_floats(int rows, int group_heads, int padded_dim) {
  // Of each pair two partial results, two bytes of codes in two orders, and a QueryCode.
  return static_cast<size_t>(rows) * group_heads * (2 * partial_floats(padded_dim) + padded_dim + 16);
}

// The same for several sparse rows: also which of them attend to a page, and how far each is.
constexpr size_t sparse_scratch_floats(int rows, int group_heads, int padded_dim, int num_pages, int max_blocks) {
  return attend_scratch_floats(rows, group_heads, padded_dim) + num_pages + static_cast<size_t>(rows) * (max_blocks + 1);
}

// Computes for so many rounds in registers alone, to measure the units' speed; returns the multiplications and additions done.
using PeakFunction = double (*)(size_t rounds);

// Up to kSelectRows rows that choose blocks are a task, which gathers what they choose by once, if it then stays in the second cache; they go
// through it kSelectTogether at a time.
constexpr int kSelectRows = 16, kSelectTogether = 2;
constexpr size_t kGatheredBytes = 2 << 20;
// Places for the compressed keys of so many pages, in whole pages of 64; floats from one pair's scores of them to the next one's, a page more, so that
// they do not compete for the same cache lines; and the memory that `select` needs. places: of a page.
constexpr size_t select_entries(int num_pages, int places) { return round_up(static_cast<size_t>(num_pages) * places, kPageTokens); }
constexpr size_t select_stride(int num_pages, int places) { return select_entries(num_pages, places) + kPageTokens; }
inline size_t gathered_page_floats(const KvLayer& layer) { return layer.head_elements() * layer.element_bytes() / sizeof(float) + kPageTokens; }
// Pages of gathered compressed keys, fine and coarse.
inline size_t gathered_pages(const SparseRule& rule, int num_pages) {
  return (select_entries(num_pages, rule.fine().places()) + (rule.has_coarse_lse ? select_entries(num_pages, rule.coarse().places()) : 0)) / kPageTokens;
}
inline size_t select_scratch_floats(const KvLayer& layer, const SparseRule& rule, int group_heads, int num_pages) {
  const size_t pairs = static_cast<size_t>(kSelectTogether) * group_heads, stride = select_stride(num_pages, rule.fine().places());
  const size_t page = gathered_page_floats(layer), kept = gathered_pages(rule, num_pages) * page, room = kept * sizeof(float) < kGatheredBytes ? kept : kGatheredBytes / sizeof(float);
  return attend_scratch_floats(kSelectTogether, group_heads, layer.padded_dim()) + (room > 2 * page ? room : 2 * page) + (pairs + 1) * stride + 2 * kPageTokens +
         2 * pairs;
}

struct Kernels {
  const char* name;

  // out[row][16 * tile ..] = x[row] . weight, for tiles [first_tile, last_tile) and rows [first_row, last_row).
  // next: what the thread will read after these tiles; memory is asked for it before they are done. Any address will do.
  // A row's result does not depend on which other rows are computed with it.
  void (*multiply)(const Weight& weight, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out, size_t out_stride,
                   const uint8_t* next);

  // The same in bfloat16, for weights of which `has_bf16_product` is true: activations and weights are rounded to it, the product of two is exact
  // and sums are float32. Null where no unit multiplies such matrices, and then there is no `to_bf16` either.
  void (*multiply_bf16)(const Weight& weight, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out, size_t out_stride,
                           const uint8_t* next);
  // Columns of a row, both multiples of 32, from `column` on, to the nearest, ties to even; subnormals to zero.
  void (*to_bf16)(const float* x, int columns, const Bf16Rows& out, int row, int column);

  // One row; the scale of a group that is not finite is NaN.
  void (*quantize)(const float* x, int columns, const Codes& out);

  // Element-wise rows; n is a multiple of 16.
  void (*rms_norm)(const float* x, const float* weight, int columns, float eps, float* out, int n);
  void (*add_scaled)(const float* x, const float* y, float factor, float* out, int n);
  void (*scale)(const float* x, float factor, float* out, int n);
  void (*swiglu)(const float* gate, const float* up, float* out, int n);
  void (*rope)(const float* x, const float* cosines, const float* sines, int num_heads, int head_dim, float* out);

  // A row's kv heads [first_head, last_head), which begin at `row`, into a slot.
  void (*store_keys)(const KvLayer& layer, const float* row, int first_head, int last_head, int slot);
  void (*store_values)(const KvLayer& layer, const float* row, int first_head, int last_head, int slot);
  void (*attend)(const KvLayer& layer, const AttendTask& task);
  // Puts the partial results of `count` splits, `stride` floats apart, together into out[head_dim].
  void (*merge_splits)(const float* partials, size_t stride, int count, int head_dim, float* out);

  // The compressed key that ends with a token of the sequence, from its keys as they are stored; scratch: a head's floats.
  void (*compress)(const KvLayer& layer, const CompressedLayer& compressed, const int32_t* pages, int last_token, float* scratch);
  // The blocks, ascending, that each of the task's rows attends to. num_pages: of its sequence, at least up to the last row.
  // The task's scratch: select_scratch_floats.
  void (*select)(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int num_pages, const BlockLists& lists);

  float (*read_all)(const float* data, size_t count);  // a plain read of memory, to measure its speed
  PeakFunction peak_int8, peak_f32, peak_bf16;         // the same for the units of products; null as multiply_bf16 is
};

// The table of an instruction set, or null where it was not built for this architecture.
const Kernels* kernels_generic();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();
const Kernels* kernels_neon();
const Kernels* kernels_neon_i8mm();

PeakFunction peak_bf16_dot();  // null where this machine or this build has no dot product of bf16

}  // namespace minicpm4
