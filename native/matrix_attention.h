// Attention over an int8 cache by a unit that multiplies 8-bit matrices: 16 (query, head) pairs against a page. Keys lie as the unit reads them,
// values but for their sign. Sums are those of CodedMath, in integers, and so are the results to the bit.
#pragma once

namespace minicpm4::ISA {

constexpr int kMatrixDepth = 64;  // numbers that the unit multiplies and sums at once: dimensions of keys, tokens of values

template <int terms>
struct MatrixMath : CodedMath<terms> {
  using Base = CodedMath<terms>;
  using typename Base::Cache;
  static constexpr int most_rows = kMatrixRows;

  template <int rows>
  static void score(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, int num_pairs, const AttendRow* row, float (*scores)[kPageTokens]) {
    if constexpr (rows == kMatrixRows) score_whole(page, next, head_dim, row, scores);
    else Base::template score<rows>(page, next, head_dim, num_pairs, row, scores);
  }

  template <int rows>
  static void add_values(const PageData<Cache>& page, const PageData<Cache>& next, const AttendRow* row, float (*weights)[kPageTokens], const float* decay) {
    if constexpr (rows == kMatrixRows) add_whole_values(page, next, row, weights, decay);
    else Base::template add_values<rows>(page, next, row, weights, decay);
  }

 private:
  static void score_whole(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, const AttendRow* row, float (*scores)[kPageTokens]) {
    alignas(64) int32_t high[kMatrixRows][kPageTokens], low[terms == 2 ? kMatrixRows : 0][kPageTokens];
    for (int d = 0; d < head_dim; d += Cache::pack) unroll<kVectors>([&](auto j) { __builtin_prefetch(next.keys + key_at<Cache>(d, 16 * j)); });
    multiply_keys(page, head_dim, row[0].code.own_high, high);
    if constexpr (terms == 2) multiply_keys(page, head_dim, row[0].code.own_low, low);
    for (int r = 0; r < kMatrixRows; ++r) {
      const f32x16 scale = broadcast(row[r].code.scale), bias = broadcast(row[r].code.bias);
      unroll<kVectors>([&](auto j) {
        f32x16 total = to_f32(load_i32(high[r] + 16 * j));
        if constexpr (terms == 2) total = fma(total, broadcast(kHighCode), to_f32(load_i32(low[r] + 16 * j)));
        store(scores[r] + 16 * j, mul(mul(load(page.key_scales + 16 * j), scale), sub(total, bias)));
      });
    }
  }

  // products[pair][token] = the pair's codes . the token's key. codes: [16][head_dim], which is padded already.
  static void multiply_keys(const PageData<Cache>& page, int head_dim, const int8_t* codes, int32_t (*products)[kPageTokens]) {
    unroll<kVectors>([&](auto j) { clear_matrix<j>(); });
    for (int d = 0; d < head_dim; d += kMatrixDepth) {
      load_matrix<4>(codes + d, head_dim);
      unroll<kVectors>([&](auto j) {
        load_matrix<6 + j % 2>(page.keys + key_at<Cache>(d, 16 * j), kPageTokens * Cache::pack);
        add_matrix_product<j, 4, 6 + j % 2, false>();
      });
    }
    unroll<kVectors>([&](auto j) { store_matrix<j>(products[0] + 16 * j, sizeof products[0]); });
  }

  static void add_whole_values(const PageData<Cache>& page, const PageData<Cache>& next, const AttendRow* row, float (*weights)[kPageTokens], const float* decay) {
    static_assert(kPageTokens == kMatrixDepth && kVectors == 4);
    constexpr int columns = 16;  // dimensions of a product
    const int dim = row[0].partial.dim;
    alignas(64) uint8_t high[kMatrixRows][kPageTokens], low[kMatrixRows][kPageTokens], values[kPageTokens / Cache::pack][columns * Cache::pack];
    alignas(64) int32_t sums[2][kMatrixRows][columns];
    float unit[kMatrixRows];
    Base::template code_weights<kMatrixRows>(page.value_scales, row, weights, high, low, unit);  // bytes of 7 bits: no sign
    load_matrix<4>(high, kPageTokens);
    load_matrix<5>(low, kPageTokens);
    for (int d = 0; d < dim; d += columns) {
      for (int t = 0; t < kPageTokens; t += Cache::pack) {
        const size_t at = value_at<Cache>(d, t, dim);
        __builtin_prefetch(next.values + at);
        store_bytes(values[t / Cache::pack], flip_signs(load_bytes(page.values + at)));
      }
      load_matrix<6>(values, sizeof values[0]);
      clear_matrix<0>(), clear_matrix<1>();
      add_matrix_product<0, 4, 6, true>(), add_matrix_product<1, 5, 6, true>();
      store_matrix<0>(sums[0], sizeof sums[0][0]), store_matrix<1>(sums[1], sizeof sums[1][0]);
      for (int r = 0; r < kMatrixRows; ++r) {
        const f32x16 total = fma(to_f32(load_i32(sums[0][r])), broadcast(128.0f), to_f32(load_i32(sums[1][r])));
        float* sum = row[r].partial.sum + d;
        store(sum, fma(total, broadcast(unit[r]), mul(load(sum), broadcast(decay[r]))));
      }
    }
  }
};

// `attend`, with the unit where there are 16 pairs and heads of whole depths.
inline void attend_by_matrices(const KvLayer& layer, const AttendTask& task) {
  const bool fits = layer.head_dim % kMatrixDepth == 0 && (task.last_row - task.first_row) * task.group_heads >= kMatrixRows;
  with_math(layer, task, [&](auto math) {
    using Math = decltype(math);
    if constexpr (Math::code_bytes > 0) {
      if (fits) {
        const MatrixUnit unit(kWholeMatrices);
        return attend_pages<MatrixMath<Math::code_bytes>>(layer, task);
      }
    }
    attend_pages<Math>(layer, task);
  });
}

}  // namespace minicpm4::ISA
