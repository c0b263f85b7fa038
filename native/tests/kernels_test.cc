// Checks every kernel table that this program was linked with and that the machine runs, against plain double arithmetic.
// Prints one line an instruction set and exits with 1 if anything failed; with any argument, only names them. Needs nothing but the
// kernels, so that it can be cross-compiled and run under an emulator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "../cpu.h"
#include "../half.h"
#include "../kernels.h"
#include "random_data.h"

namespace minicpm4 {
// Tables that were not linked are null: a build for another machine has only its own.
const Kernels* kernels_generic() __attribute__((weak));
const Kernels* kernels_avx2() __attribute__((weak));
const Kernels* kernels_avx512() __attribute__((weak));
const Kernels* kernels_amx() __attribute__((weak));
const Kernels* kernels_neon() __attribute__((weak));
const Kernels* kernels_neon_i8mm() __attribute__((weak));
}  // namespace minicpm4

using namespace minicpm4;

namespace {

int failures = 0;

void expect(bool is_right, const char* isa, const char* what, double got, double wanted) {
  if (is_right) return;
  if (++failures <= 20) std::printf("%s %s: got %.9g, expected %.9g\n", isa, what, got, wanted);
}

void expect_near(double got, double wanted, double tolerance, const char* isa, const char* what) {
  expect(std::fabs(got - wanted) <= tolerance, isa, what, got, wanted);
}

void check_multiply(const Kernels& k, Format format, int rows, int columns, int count, int code_bytes) {
  const RandomWeight random(format, rows, columns);
  const Weight& w = random.view;
  Activations x(k, count, columns, code_bytes);
  const size_t out_stride = w.num_tiles() * kTileRows;
  std::vector<float> out(count * out_stride), alone(out);
  const Rows view = x.rows(columns);
  k.multiply(w, 0, w.num_tiles(), view, 0, count, out.data(), out_stride, w.data);
  for (int i = 0; i < count; ++i) k.multiply(w, 0, w.num_tiles(), view, i, i + 1, alone.data(), out_stride, w.data);

  std::vector<float> weights(columns);
  for (int r = 0; r < rows; ++r) {
    unpack_row(w, r, weights.data());
    for (int i = 0; i < count; ++i) {
      double wanted = 0, size = 0;
      for (int c = 0; c < columns; ++c) {
        const double value = code_bytes ? x.codes.value(i * columns + c) : x.values[i * x.stride + c];
        wanted += weights[c] * value;
        size += std::fabs(weights[c] * value) + 200 * std::fabs(value) * 1e-3;
      }
      const float got = out[i * out_stride + r];
      expect_near(got, wanted, 1e-6 * size * std::sqrt(columns), k.name, code_bytes ? "coded product" : "float product");
      expect(got == alone[i * out_stride + r], k.name, "a row alone and in a batch", got, alone[i * out_stride + r]);
    }
  }
  for (size_t r = rows; r < out_stride; ++r) expect(out[r] == 0, k.name, "rows past the end", out[r], 0);
}

// Products in bfloat16 of rows [first, count), against what activations and weights are rounded to; a weight that lies between two such values
// may have gone to the other.
void check_multiply_bf16(const Kernels& k, Format format, int rows, int columns, int first, int count) {
  const RandomWeight random(format, rows, columns);
  const Weight& w = random.view;
  Activations x(k, count, columns, 0);
  Rows view = x.rows(columns);
  std::vector<uint16_t> rounded(static_cast<size_t>(count + 15) * columns, 0xffff);  // NaN
  view.bf16 = {rounded.data(), static_cast<size_t>(count + 15) * 32};
  for (int i = 0; i < count; ++i) for (int c = 0; c < columns; c += 32) k.to_bf16(&x.values[i * x.stride + c], 32, view.bf16, i, c);
  const size_t out_stride = w.num_tiles() * kTileRows;
  std::vector<float> out(count * out_stride, 7.0f), alone(out);
  k.multiply_bf16(w, 0, w.num_tiles(), view, first, count, out.data(), out_stride, w.data);
  for (int i = first; i < count; ++i) for (int t = 0; t < w.num_tiles(); ++t) k.multiply_bf16(w, t, t + 1, view, i, i + 1, alone.data(), out_stride, w.data);
  for (size_t i = 0; i < out.size(); ++i) expect(f32_to_bits(out[i]) == f32_to_bits(alone[i]), k.name, "a bf16 row alone and in a batch", out[i], alone[i]);
  for (size_t i = 0; i < first * out_stride; ++i) expect(out[i] == 7.0f, k.name, "rows before the first", out[i], 7);

  std::vector<float> weights(columns);
  for (int r = 0; r < rows; ++r) {
    unpack_row(w, r, weights.data());
    for (float& weight : weights) weight = bf16_to_f32(f32_to_bf16(weight));
    for (int i = first; i < count; ++i) {
      double wanted = 0, size = 0, largest = 0;
      for (int c = 0; c < columns; ++c) {
        const double term = static_cast<double>(weights[c]) * bf16_to_f32(f32_to_bf16(x.values[i * x.stride + c]));
        wanted += term, size += std::fabs(term), largest = std::max(largest, std::fabs(term));
      }
      const double between = layout_of(format).scales == Scales::plain || layout_of(format).scales == Scales::none ? 0 : largest / 128;
      expect_near(out[i * out_stride + r], wanted, 1e-6 * size + between, k.name, "rounded product");
    }
  }
}

// Two units whose products are the same to the bit, whatever the number of rows: the second takes rows in pairs where it can.
void check_same_products(const Kernels& k, const Kernels& other) {
  const int before = failures;
  for (int f = 0; f < kNumFormats; ++f) {
    const Format format = static_cast<Format>(f);
    if (block_columns(format) == 1) continue;
    for (const int rows : {1, 33}) for (const int blocks : {1, 3, block_columns(format) == kSuperColumns ? 2 : 9}) for (const int count : {1, 2, 3, 4, 5, 7, 8, 9, 16, 35}) for (const int code_bytes : {1, 2}) {
      const int columns = blocks * block_columns(format);
      const RandomWeight random(format, rows, columns);
      const Weight& w = random.view;
      Activations x(k, count, columns, code_bytes);
      const size_t out_stride = w.num_tiles() * kTileRows;
      std::vector<float> out(count * out_stride), wanted(out);
      k.multiply(w, 0, w.num_tiles(), x.rows(columns), 0, count, out.data(), out_stride, w.data);
      other.multiply(w, 0, w.num_tiles(), x.rows(columns), 0, count, wanted.data(), out_stride, w.data);
      for (size_t i = 0; i < out.size(); ++i) expect(f32_to_bits(out[i]) == f32_to_bits(wanted[i]), k.name, "the same bits", out[i], wanted[i]);
    }
  }
  std::printf("%s: %s as %s\n", k.name, failures == before ? "the same products" : "not the same products", other.name);
}

void check_rows(const Kernels& k) {
  const int n = 48, columns = 40;
  std::vector<float> a = random_floats(n), b = random_floats(n), out(n), one(n, 1.0f);
  for (int i = columns; i < n; ++i) a[i] = b[i] = 0;
  k.add_scaled(a.data(), b.data(), 0.25f, out.data(), n);
  for (int i = 0; i < n; ++i) expect_near(out[i], a[i] + 0.25 * b[i], 1e-6, k.name, "add_scaled");
  k.scale(a.data(), 3, out.data(), n);
  for (int i = 0; i < n; ++i) expect_near(out[i], 3.0 * a[i], 1e-6, k.name, "scale");
  double squares = 0;
  for (float v : a) squares += static_cast<double>(v) * v;
  k.rms_norm(a.data(), b.data(), columns, 1e-5f, out.data(), n);
  for (int i = 0; i < n; ++i) expect_near(out[i], a[i] / std::sqrt(squares / columns + 1e-5) * b[i], 1e-5, k.name, "rms_norm");
  for (float x = -100; x <= 100; x += 1.7f) {
    std::vector<float> gate(16, x), up(16, 1.0f), y(16);
    k.swiglu(gate.data(), up.data(), y.data(), 16);
    const double wanted = x / (1 + std::exp(-static_cast<double>(x)));
    expect_near(y[5], wanted, 1e-6 * std::fabs(wanted) + 1e-30, k.name, "swiglu");
  }
  const int dim = 6;
  std::vector<float> angles = {0.1f, 1.2f, 2.3f}, cosines, sines, x = random_floats(2 * dim), turned(2 * dim);
  for (float angle : angles) cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
  k.rope(x.data(), cosines.data(), sines.data(), 2, dim, turned.data());
  for (int h = 0; h < 2; ++h) for (int i = 0; i < 3; ++i) {
    const double low = x[h * dim + i], high = x[h * dim + 3 + i];
    expect_near(turned[h * dim + i], low * std::cos(angles[i]) - high * std::sin(angles[i]), 1e-6, k.name, "rope");
    expect_near(turned[h * dim + 3 + i], high * std::cos(angles[i]) + low * std::sin(angles[i]), 1e-6, k.name, "rope");
  }
}

void check_quantize(const Kernels& k, int code_bytes) {
  std::vector<float> x = random_floats(192);
  for (int i = 32; i < 64; ++i) x[i] = 0;              // a group of zeros
  for (int i = 64; i < 96; ++i) x[i] = 1e-42f * i;     // its scale has no finite reciprocal: codes are 0
  x[133] = std::numeric_limits<float>::quiet_NaN();
  x[170] = -std::numeric_limits<float>::infinity();
  CodeStore out(1, 192, code_bytes);
  k.quantize(x.data(), 192, out.view());
  for (int i = 64; i < 96; ++i) expect(out.code(i) == 0, k.name, "a tiny group's code", out.code(i), 0);
  for (int g : {4, 5}) expect(std::isnan(out.scales[g]), k.name, "a group that is not finite", out.scales[g], NAN);
  for (int g : {0, 1, 3}) {
    double sum = 0;
    int largest = 0;
    for (int i = 32 * g; i < 32 * g + 32; ++i) {
      expect(std::fabs(out.value(i) - x[i]) <= out.scales[g] * 0.5001f + 1e-7, k.name, "quantize", out.value(i), x[i]);
      sum += out.code(i);
      largest = std::max(largest, std::abs(out.code(i)));
    }
    if (g != 1) expect(largest == kLargestCode[code_bytes - 1], k.name, "the largest code", largest, kLargestCode[code_bytes - 1]);
    expect_near(out.halves[2 * g] + out.halves[2 * g + 1], sum, 0, k.name, "half sums");
  }
}

// Rounds heads as the cache stores them.
void round_cache(KvFormat format, int head_dim, std::vector<float>& values) {
  for (size_t head = 0; head < values.size(); head += head_dim) {
    float largest = 0;
    for (int d = 0; d < head_dim; ++d) largest = std::max(largest, std::fabs(values[head + d]));
    for (int d = 0; d < head_dim; ++d) {
      float& v = values[head + d];
      if (format == KvFormat::f16) v = f16_to_f32(f32_to_f16(v));
      if (format == KvFormat::bf16) v = bf16_to_f32(f32_to_bf16(v));
      if (format == KvFormat::int8) v = std::nearbyint(v * (1 / (largest / 127))) * (largest / 127);
    }
  }
}

// The last row once more, each split by itself and then merged: the same to the bit.
void check_stretches(const Kernels& k, const KvLayer& layer, const std::vector<float>& q, const std::vector<float>& out, int stride,
                     const std::vector<int32_t>& positions, const std::vector<int32_t>& pages, int used_pages, int group, int code_bytes) {
  const int dim = layer.padded_dim(), row = static_cast<int>(positions.size()) - 1;
  const size_t split = group * partial_floats(dim);
  const int count = (used_pages + kSplitPages - 1) / kSplitPages;
  std::vector<float> partials(count * split), scratch(attend_scratch_floats(1, group, dim)), merged(layer.head_dim);
  for (int g = 0; g < layer.num_kv_heads; ++g) {
    for (int i = 0; i < count; ++i) {
      const int first = i * kSplitPages, last = std::min(first + kSplitPages, used_pages);
      k.attend(layer, {q.data(), nullptr, static_cast<size_t>(stride), row, row + 1, positions.data(), pages.data(), nullptr, first, last, g, group, code_bytes,
                       scratch.data(), &partials[i * split]});
    }
    for (int h = 0; h < group; ++h) {
      k.merge_splits(&partials[h * partial_floats(dim)], split, count, layer.head_dim, merged.data());
      for (int d = 0; d < layer.head_dim; ++d) {
        const float wanted = out[row * stride + (g * group + h) * layer.head_dim + d];
        expect(merged[d] == wanted, k.name, "splits apart and together", merged[d], wanted);
      }
    }
  }
}

// What a later token holds, a larger value or none at all, changes nothing in the rows that do not see it, to the bit.
void check_future(const Kernels& k, const KvLayer& layer, const AttendTask& task, const std::vector<float>& wanted) {
  const int last = task.last_row - 1, token = task.positions[last], slot = task.pages[token / kPageTokens] * kPageTokens + token % kPageTokens;
  std::vector<float> out(wanted.size());
  AttendTask again = task;
  again.out = out.data();
  for (const float poison : {1000.0f, std::numeric_limits<float>::quiet_NaN()}) {
    const std::vector<float> row(layer.num_kv_heads * layer.head_dim, poison);
    k.store_keys(layer, row.data(), 0, layer.num_kv_heads, slot);
    k.store_values(layer, row.data(), 0, layer.num_kv_heads, slot);
    k.attend(layer, again);
    for (int i = 0; i <= last; ++i) for (int h = 0; h < task.group_heads; ++h) {
      const size_t at = task.query(layer, i * task.group_heads + h) - task.queries;
      for (int d = 0; d < layer.head_dim; ++d) {
        if (i < last) expect(out[at + d] == wanted[at + d], k.name, "what a row does not see", out[at + d], wanted[at + d]);
        else if (poison != poison) expect(std::isnan(out[at + d]), k.name, "a row that sees NaN", out[at + d], NAN);
      }
    }
  }
}

// Sparse rows in one task attend as each alone does, to the bit, whichever blocks they have in common.
void check_lists(const Kernels& k, const KvLayer& layer, const AttendTask& task) {
  const int num_rows = task.last_row, num_pages = task.last_page;
  std::vector<int32_t> blocks(num_rows * num_pages), counts(num_rows);
  std::vector<float> apart(task.stride * num_rows), together(apart), scratch(sparse_scratch_floats(num_rows, task.group_heads, layer.padded_dim(), num_pages, num_pages));
  const auto poison = [&] { std::fill(scratch.begin(), scratch.end(), std::numeric_limits<float>::quiet_NaN()); };
  AttendTask all = task, one = task;
  all.scratch = one.scratch = scratch.data(), all.out = together.data(), one.out = apart.data();
  all.lists = {blocks.data(), counts.data(), 1, num_pages, 0};
  for (const float share : {0.0f, 0.6f, 1.0f}) {
    for (int r = 0; r < num_rows; ++r) {
      counts[r] = 0;
      for (int b = 0, own = task.positions[r] / kPageTokens; b <= own; ++b) if (b == own || uniform(0, 1) < share) all.lists.list(r)[counts[r]++] = b;
      one.first_row = r, one.last_row = r + 1, one.blocks = all.lists.list(r), one.last_page = counts[r];
      poison();
      k.attend(layer, one);
    }
    poison();
    k.attend(layer, all);
    for (size_t i = 0; i < apart.size(); ++i) expect(f32_to_bits(together[i]) == f32_to_bits(apart[i]), k.name, "sparse rows together", together[i], apart[i]);
  }
}

// Rounds queries as codes of `code_bytes` bytes, one scale a head.
void round_queries(int code_bytes, int head_dim, std::vector<float>& queries) {
  for (size_t head = 0; head + head_dim <= queries.size(); head += head_dim) {
    float largest = 0;
    for (int d = 0; d < head_dim; ++d) largest = std::max(largest, std::fabs(queries[head + d]));
    const float scale = largest / kLargestCode[code_bytes - 1];
    for (int d = 0; d < head_dim; ++d) queries[head + d] = std::nearbyint(queries[head + d] * (1 / scale)) * scale;
  }
}

void check_attend(const Kernels& k, KvFormat format, int code_bytes, int head_dim, int group, int num_kv_heads, int length, int queries) {
  KvLayer layer{nullptr, nullptr, 0, format, num_kv_heads, head_dim};
  const int num_pages = (length + kPageTokens - 1) / kPageTokens + 1;
  layer.page_stride = 2 * layer.page_bytes();
  Aligned cache(layer.page_stride * num_pages);
  std::memset(cache.data, 0xff, layer.page_stride * num_pages);  // NaN everywhere: whatever is read without having been written shows
  layer.keys = cache.data, layer.values = cache.data + layer.page_bytes();
  std::vector<int32_t> pages(num_pages), positions(queries);
  for (int p = 0; p < num_pages; ++p) pages[p] = num_pages - 1 - p;
  for (int i = 0; i < queries; ++i) positions[i] = length - queries + i;

  const int width = num_kv_heads * head_dim, heads = num_kv_heads * group, stride = static_cast<int>(round_up(heads * head_dim, 16));
  std::vector<float> key = random_floats(length * width), value = random_floats(length * width), q = random_floats(queries * stride), out(queries * stride);
  for (auto* stored : {&key, &value}) round_cache(format, head_dim, *stored);
  for (int t = 0; t < length; ++t) {
    const int slot = pages[t / kPageTokens] * kPageTokens + t % kPageTokens;
    k.store_keys(layer, &key[t * width], 0, num_kv_heads, slot);
    for (int g = 0; g < num_kv_heads; ++g) k.store_values(layer, &value[t * width + g * head_dim], g, g + 1, slot);
  }
  std::vector<float> scratch(attend_scratch_floats(queries, group, layer.padded_dim()));
  const int used_pages = (length + kPageTokens - 1) / kPageTokens;
  const auto task_of = [&](int kv_head) {
    return AttendTask{q.data(), out.data(), static_cast<size_t>(stride), 0, queries, positions.data(), pages.data(), nullptr, 0, used_pages, kv_head, group, code_bytes,
                      scratch.data(), nullptr};
  };
  for (int g = 0; g < num_kv_heads; ++g) k.attend(layer, task_of(g));
  check_stretches(k, layer, q, out, stride, positions, pages, used_pages, group, code_bytes);
  check_lists(k, layer, task_of(num_kv_heads - 1));
  check_future(k, layer, task_of(num_kv_heads - 1), out);
  const bool is_coded = code_bytes > 0 && format == KvFormat::int8;
  if (is_coded) for (int i = 0; i < queries; ++i) {
    std::vector<float> row(q.begin() + i * stride, q.begin() + i * stride + heads * head_dim);
    round_queries(code_bytes, head_dim, row);
    std::copy(row.begin(), row.end(), q.begin() + i * stride);
  }

  for (int i = 0; i < queries; ++i) for (int h = 0; h < heads; ++h) {
    std::vector<double> weights(positions[i] + 1);
    double total = 0, largest = 0;
    for (int t = 0; t <= positions[i]; ++t) {
      double dot = 0;
      for (int d = 0; d < head_dim; ++d) dot += static_cast<double>(q[i * stride + h * head_dim + d]) * key[t * width + h / group * head_dim + d];
      total += weights[t] = std::exp(dot / std::sqrt(head_dim));
      largest = std::max(largest, weights[t]);
    }
    // A coded weight is off by half a step of 1 / 16383 of what the largest could be, for values up to 2.
    const double tolerance = 2e-5 + (is_coded ? 2 * 0.5 / 16383 * weights.size() * largest / total : 0);
    for (int d = 0; d < head_dim; ++d) {
      double wanted = 0;
      for (int t = 0; t <= positions[i]; ++t) wanted += weights[t] / total * value[t * width + h / group * head_dim + d];
      expect_near(out[i * stride + h * head_dim + d], wanted, tolerance, k.name, "attend");
    }
  }
}

// 2^(product with each kernel / sqrt(dim)), of the mean keys of the kernels that the first `length` tokens complete.
std::vector<double> kernel_weights(const CompressedShape& shape, KvFormat format, const std::vector<float>& keys, const float* query, int head_dim, int length) {
  std::vector<double> weights(shape.count(length));
  for (size_t j = 0; j < weights.size(); ++j) {
    std::vector<float> mean(head_dim);
    for (int t = 0; t < shape.size; ++t) for (int d = 0; d < head_dim; ++d) mean[d] += keys[(j * shape.stride + t) * head_dim + d];
    for (float& m : mean) m *= 1.0f / shape.size;
    round_cache(format, head_dim, mean);
    double dot = 0;
    for (int d = 0; d < head_dim; ++d) dot += static_cast<double>(query[d]) * mean[d];
    weights[j] = std::exp(dot / std::sqrt(head_dim));
  }
  return weights;
}

// The last `num_rows` tokens of a random sequence choose blocks, which `lists` has then: [row][max_blocks], -1 behind.
struct RandomChoice {
  RandomChoice(const Kernels& k, KvFormat format, const SparseRule& rule, int head_dim, int group, int length, int num_rows)
      : layer{nullptr, nullptr, 0, format, 1, head_dim}, num_pages((length + kPageTokens - 1) / kPageTokens), group(group),
        stride(static_cast<int>(round_up(group * head_dim, 16))), cache(2 * layer.page_bytes() * num_pages),
        sparse{rule, {nullptr, num_pages, format, layer.padded_dim(), rule.fine()}, {nullptr, num_pages, format, layer.padded_dim(), rule.coarse()}},
        fine(sparse.fine.head_bytes() * num_pages), coarse(sparse.coarse.head_bytes() * num_pages), pages(num_pages), positions(num_rows),
        keys(random_floats(length * head_dim)), queries(random_floats(num_rows * stride)) {
    for (Aligned* memory : {&cache, &fine, &coarse}) std::memset(memory->bytes.data(), 0xff, memory->bytes.size());
    layer.page_stride = 2 * layer.page_bytes();
    layer.keys = cache.data, layer.values = cache.data + layer.page_bytes(), sparse.fine.data = fine.data, sparse.coarse.data = coarse.data;
    for (int p = 0; p < num_pages; ++p) pages[p] = (p * 5 + 2) % num_pages;  // 5 divides no number of pages here
    std::iota(positions.begin(), positions.end(), length - num_rows);
    std::vector<float> scratch(head_dim);
    round_cache(format, head_dim, keys);
    for (int t = 0; t < length; ++t) {
      k.store_keys(layer, &keys[t * head_dim], 0, 1, pages[t / kPageTokens] * kPageTokens + t % kPageTokens);
      for (const bool is_coarse : {false, true}) if (rule.completes(is_coarse, t)) k.compress(layer, sparse.compressed(is_coarse), pages.data(), t, scratch.data());
    }
  }

  // Of rows [first, last), in one task.
  std::vector<int32_t> lists(const Kernels& k, int code_bytes, int first, int last) {
    std::vector<float> room(select_scratch_floats(layer, sparse.rule, group, num_pages), std::numeric_limits<float>::quiet_NaN());
    const int max_blocks = sparse.rule.max_blocks();
    std::vector<int32_t> blocks((last - first) * max_blocks), counts(last - first);
    const AttendTask task{queries.data(), nullptr, static_cast<size_t>(stride), first, last, positions.data(), pages.data(), nullptr, 0, 0, 0, group, code_bytes, room.data(), nullptr};
    k.select(layer, sparse, task, positions[last - 1] / kPageTokens + 1, {blocks.data(), counts.data(), 1, max_blocks, first});
    for (int i = 0; i < last - first; ++i) std::fill(blocks.begin() + i * max_blocks + counts[i], blocks.begin() + (i + 1) * max_blocks, -1);
    return blocks;
  }

  KvLayer layer;
  int num_pages, group, stride;
  Aligned cache;
  SparseLayer sparse;
  Aligned fine, coarse;
  std::vector<int32_t> pages, positions;
  std::vector<float> keys, queries;
};

// The blocks that a row chooses, against scores in double precision; where they differ, the two scores must nearly be equal. It chooses the same
// whatever rows are before it in its task.
void check_select(const Kernels& k, KvFormat format, int code_bytes, const SparseRule& rule, int head_dim, int group, int length) {
  const int num_rows = std::min(length, 3), max_blocks = rule.max_blocks();
  RandomChoice choice(k, format, rule, head_dim, group, length, num_rows);
  const int num_pages = choice.num_pages;
  const std::vector<int32_t> all = choice.lists(k, code_bytes, 0, num_rows);
  for (int i = 0; i < num_rows; ++i) {
    const std::vector<int32_t> alone = choice.lists(k, code_bytes, i, i + 1);
    expect(std::equal(alone.begin(), alone.end(), all.begin() + i * max_blocks), k.name, "a row that chooses alone", i, i);
  }
  const std::vector<int32_t> blocks(all.end() - max_blocks, all.end());
  const int count = static_cast<int>(std::find(blocks.begin(), blocks.end(), -1) - blocks.begin());
  std::vector<float> q(choice.queries.end() - choice.stride, choice.queries.end()), &keys = choice.keys;
  if (code_bytes > 0) round_queries(code_bytes, head_dim, q);
  const int num_kernels = rule.fine().count(length);
  std::vector<double> shares(num_kernels);
  for (int h = 0; h < group; ++h) {
    const auto weights_by = [&](const CompressedShape& shape) { return kernel_weights(shape, format, keys, &q[h * head_dim], head_dim, length); };
    const std::vector<double> weights = weights_by(rule.fine()), over = rule.has_coarse_lse && rule.coarse().count(length) > 0 ? weights_by(rule.coarse()) : weights;
    const double total = std::accumulate(over.begin(), over.end(), 0.0);
    for (int j = 0; j < num_kernels; ++j) shares[j] += weights[j] / total;
  }
  const auto score_of = [&](int block) {
    double best = 0;
    for (int j = 0; j < num_kernels; ++j) {
      const int first = j * rule.kernel_stride, last = first + rule.kernel_size - 1;
      if (first < (block + 1) * kPageTokens && last >= block * kPageTokens) best = std::max(best, shares[j]);
    }
    return best;
  };
  expect(count == rule.num_blocks(length - 1), k.name, "number of blocks", count, rule.num_blocks(length - 1));
  double least_taken = 1e9, most_left = 0;
  for (int b = 0; b < num_pages; ++b) {
    const bool is_taken = std::count(blocks.begin(), blocks.begin() + count, b) == 1, is_between = b >= rule.init_blocks && b < rule.first_local(length - 1);
    if (!is_between) expect(is_taken, k.name, "a block that is always seen", is_taken, b);
    else if (is_taken) least_taken = std::min(least_taken, score_of(b));
    else most_left = std::max(most_left, score_of(b));
  }
  expect(most_left <= least_taken * (1 + 1e-5), k.name, "the best blocks", most_left, least_taken);
  expect(std::is_sorted(blocks.begin(), blocks.begin() + count), k.name, "blocks in order", 0, 0);
}

// Two units whose sums of products of bytes are the same attend and choose the same, to the bit.
void check_same_attention(const Kernels& k, const Kernels& other) {
  const int before = failures;
  for (const int code_bytes : {1, 2}) for (const int head_dim : {64, 128}) for (const int group : {3, 8, 16}) for (const int num_rows : {1, 2, 5}) {
    for (const int best_blocks : {1, 12}) for (const bool has_coarse_lse : {false, true}) {
      RandomChoice choice(other, KvFormat::int8, {32, 16, 1, 2, best_blocks, 0, has_coarse_lse}, head_dim, group, 2111, num_rows);
      expect(choice.lists(k, code_bytes, 0, num_rows) == choice.lists(other, code_bytes, 0, num_rows), k.name, "the same choice", 0, 0);
    }
    RandomChoice sequence(other, KvFormat::int8, {32, 16, 1, 2, 3, 0, false}, head_dim, group, 1100, num_rows);
    for (int t = 0; t < 1100; ++t) other.store_values(sequence.layer, &sequence.keys[t * head_dim], 0, 1, sequence.pages[t / kPageTokens] * kPageTokens + t % kPageTokens);
    std::vector<float> scratch(attend_scratch_floats(num_rows, group, head_dim)), out(num_rows * sequence.stride), wanted(out);
    AttendTask task{sequence.queries.data(), out.data(), static_cast<size_t>(sequence.stride), 0, num_rows, sequence.positions.data(), sequence.pages.data(), nullptr, 0,
                    sequence.num_pages, 0, group, code_bytes, scratch.data(), nullptr};
    k.attend(sequence.layer, task);
    task.out = wanted.data();
    other.attend(sequence.layer, task);
    for (size_t i = 0; i < out.size(); ++i) expect(f32_to_bits(out[i]) == f32_to_bits(wanted[i]), k.name, "the same attention", out[i], wanted[i]);
  }
  std::printf("%s: %s as %s\n", k.name, failures == before ? "the same attention" : "not the same attention", other.name);
}

void check(const Kernels& k) {
  const int before = failures;
  for (int f = 0; f < kNumFormats; ++f) {
    const Format format = static_cast<Format>(f);
    const int unit = block_columns(format) == 1 ? 7 : block_columns(format);
    for (const int rows : {1, 16, 33}) for (const int blocks : {1, 3, unit == kSuperColumns ? 2 : 10}) for (const int count : {1, 2, 3, 5, 9, 17, 33}) {
      for (const int code_bytes : {0, 1, 2})
        if (code_bytes == 0 || block_columns(format) > 1) check_multiply(k, format, rows, unit * blocks, count, code_bytes);
    }
  }
  for (int f = 0; f < kNumFormats && k.multiply_bf16; ++f) {
    const Format format = static_cast<Format>(f);
    if (format == Format::f32) continue;
    const int unit = std::max(block_columns(format), kGroupColumns);
    for (const int rows : {1, 33}) for (const int blocks : {1, 3, unit == kGroupColumns ? 17 : 2}) for (const int count : {1, 15, 16, 17, 33, 70}) check_multiply_bf16(k, format, rows, unit * blocks, count / 3, count);
  }
  if (k.multiply_bf16) check_multiply_bf16(k, Format::q4_0, 33, 1056, 0, 500);  // more values of rows than stay near
  check_rows(k);
  for (const int code_bytes : {1, 2}) check_quantize(k, code_bytes);
  for (const KvFormat format : {KvFormat::f32, KvFormat::f16, KvFormat::bf16, KvFormat::int8}) {
    for (const int code_bytes : {0, 1, 2}) {
      if (code_bytes > 0 && format != KvFormat::int8) continue;  // the others never have codes
      check_attend(k, format, code_bytes, 6, 1, 1, 1, 1);
      check_attend(k, format, code_bytes, 24, 3, 2, 130, 5);
      check_attend(k, format, code_bytes, 64, 8, 2, 64, 1);
      check_attend(k, format, code_bytes, 64, 8, 2, 1089, 4);   // two splits, and rows on both sides of a page's end
      check_attend(k, format, code_bytes, 128, 16, 1, 140, 3);
      check_attend(k, format, code_bytes, 192, 4, 1, 130, 4);
      check_attend(k, format, code_bytes, 128, 5, 1, 200, 4);  // 20 pairs
      check_attend(k, format, code_bytes, 80, 5, 1, 200, 70);
      check_attend(k, format, code_bytes, 16, 8, 1, 2100, 3);
      check_attend(k, format, code_bytes, 64, 8, 1, 2112, 3);  // three splits, the last of one page
      for (const int length : {1, 255, 300, 1023, 2111}) for (const bool has_coarse_lse : {false, true}) {
        check_select(k, format, code_bytes, {32, 16, 1, 2, 3, 0, has_coarse_lse}, 24, 5, length);
        check_select(k, format, code_bytes, {16, 8, 2, 1, 8, 0, has_coarse_lse}, 10, 3, length);
        check_select(k, format, code_bytes, {64, 32, 1, 1, 5, 0, has_coarse_lse}, 16, 8, length);  // a coarse kernel every other page
        check_select(k, format, code_bytes, {64, 64, 1, 1, 5, 0, has_coarse_lse}, 6, 2, length);   // every fourth
        check_select(k, format, code_bytes, {32, 16, 1, 1, 0, 0, has_coarse_lse}, 64, 16, length);
      }
    }
  }
  std::printf("%s: %s\n", k.name, failures == before ? "passed" : "failed");
}

}  // namespace

int main(int argc, char**) {
  std::vector<const Kernels*> tables;
  const auto add = [&](const Kernels* (*table)(), bool is_usable) {
    if (table && is_usable && table()) tables.push_back(table());
  };
  const Cpu cpu = this_cpu();
#if defined(MINICPM4_EMULATED)
  const bool is_emulated = true;
#else
  const bool is_emulated = false;
#endif
  add(kernels_generic, true);
  add(kernels_avx2, cpu.avx2);
  add(kernels_avx512, cpu.avx512 || is_emulated);
  add(kernels_amx, cpu.amx || is_emulated);
  add(kernels_neon, cpu.neon);
  add(kernels_neon_i8mm, cpu.neon_i8mm);
  if (argc > 1) {
    for (const Kernels* kernels : tables) std::printf("%s\n", kernels->name);
    return 0;
  }
  for (const Kernels* kernels : tables) check(*kernels);
  const bool has_both = (cpu.amx || is_emulated) && kernels_avx512 && kernels_amx && kernels_amx();
  if (has_both) check_same_attention(*kernels_amx(), *kernels_avx512());
  if (has_both && !is_emulated) check_same_products(*kernels_amx(), *kernels_avx512());
  if (cpu.neon_i8mm && kernels_neon && kernels_neon_i8mm && kernels_neon_i8mm()) check_same_products(*kernels_neon_i8mm(), *kernels_neon());
  std::printf("%d failures\n", failures);
  return failures > 0 || tables.empty();
}
