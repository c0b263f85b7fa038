// Attention over an int8 cache by a unit that multiplies 8-bit matrices: 16 (query, head) pairs against a page, whose keys and values lie as
// the unit reads them. Sums are those of CodedMath, in integers, and so are the results to the bit.
#pragma once

namespace minicpm4::ISA {

template <int terms>
struct MatrixMath : CodedMath<terms> {
  using Base = CodedMath<terms>;
  using typename Base::Cache;
  static constexpr int most_rows = kMatrixRows, depth = 64;  // numbers that the unit sums at once

  template <int rows>
  static void score(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, int num_pairs, const AttendRow* row, float (*scores)[kPageTokens]) {
    if constexpr (rows < kMatrixRows) return Base::template score<rows>(page, next, head_dim, num_pairs, row, scores);
    alignas(64) int32_t high[kMatrixRows][kPageTokens], low[terms == 2 ? kMatrixRows : 0][kPageTokens];
    for (int d = 0; d < head_dim; d += 4) __builtin_prefetch(next.keys + key_at<Cache>(d, 0)), __builtin_prefetch(next.keys + key_at<Cache>(d, 32));
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

  template <int rows>
  static void add_values(const PageData<Cache>& page, const PageData<Cache>& next, const AttendRow* row, float (*weights)[kPageTokens], const float* decay) {
    if constexpr (rows < kMatrixRows) return Base::template add_values<rows>(page, next, row, weights, decay);
    const int dim = row[0].partial.dim;
    alignas(64) uint8_t high[kMatrixRows][kPageTokens], low[kMatrixRows][kPageTokens], values[kPageTokens / 4][64];
    alignas(64) int32_t sums[2][kMatrixRows][kTileRows];
    float unit[kMatrixRows];
    Base::template code_weights<kMatrixRows>(page.value_scales, row, weights, high, low, unit);
    load_matrix<4>(high, kPageTokens);
    load_matrix<5>(low, kPageTokens);
    for (int d = 0; d < dim; d += kTileRows) {
      for (int t = 0; t < kPageTokens; t += 4) {
        const size_t at = value_at<Cache>(d, t, dim);
        __builtin_prefetch(next.values + at);
        store_bytes(values[t / 4], flip_signs(load_bytes(page.values + at)));
      }
      load_matrix<6>(values, 64);
      clear_matrix<0>(), clear_matrix<1>();
      add_matrix_product<0, 4, 6, false, true>();
      add_matrix_product<1, 5, 6, false, true>();
      store_matrix<0>(sums[0], 64);
      store_matrix<1>(sums[1], 64);
      for (int r = 0; r < kMatrixRows; ++r) {
        const f32x16 total = fma(to_f32(load_i32(sums[0][r])), broadcast(128.0f), to_f32(load_i32(sums[1][r])));
        float* sum = row[r].partial.sum + d;
        store(sum, fma(total, broadcast(unit[r]), mul(load(sum), broadcast(decay[r]))));
      }
    }
  }

 private:
  // products[pair][token] = the pair's codes . the token's key.
  static void multiply_keys(const PageData<Cache>& page, int head_dim, const int8_t* codes, int32_t (*products)[kPageTokens]) {
    clear_matrix<0>(), clear_matrix<1>(), clear_matrix<2>(), clear_matrix<3>();
    for (int d = 0; d < head_dim; d += depth) {
      load_matrix<4>(codes + d, head_dim);
      unroll<kVectors>([&](auto j) {
        load_matrix<6 + j % 2>(page.keys + key_at<Cache>(d, 16 * j), kPageTokens * Cache::pack);
        add_matrix_product<j, 4, 6 + j % 2, true, false>();
      });
    }
    unroll<kVectors>([&](auto j) { store_matrix<j>(products[0] + 16 * j, sizeof products[0]); });
  }
};

// `attend`, with the unit where there are 16 pairs and heads of whole depths.
inline void attend_by_matrices(const KvLayer& layer, const AttendTask& task) {
  const bool fits = layer.head_dim % 64 == 0 && (task.last_row - task.first_row) * task.group_heads >= kMatrixRows;
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
