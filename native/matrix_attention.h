// Attention over an int8 cache by a unit that multiplies 8-bit matrices: up to 16 (query, head) pairs against a page, or against kernels in its
// order. Keys and values lie as the unit reads them. Sums are those of CodedMath, in integers, and so are the results to the bit.
#pragma once

namespace minicpm4::ISA {

constexpr int kMatrixDepth = 64;  // numbers that the unit multiplies and sums at once: dimensions of keys, tokens of values

template <int terms>
struct MatrixMath : CodedMath<terms> {
  using Base = CodedMath<terms>;
  using typename Base::Cache;
  static constexpr int most_rows = kMatrixRows;
  static constexpr bool needs_neighbours = false;

  template <int rows>
  static void score(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, int, const AttendRow* row, float* scores, size_t stride) {
    alignas(64) int32_t high[kMatrixRows][kPageTokens], low[terms == 2 ? kMatrixRows : 0][kPageTokens];
    const bool asks = next.keys != page.keys;
    multiply_keys<rows, &QueryCode::own_high>(page, head_dim, row, high);
    if constexpr (terms == 2) multiply_keys<rows, &QueryCode::own_low>(page, head_dim, row, low);
    for (int r = 0; r < rows; ++r) {
      const f32x16 scale = broadcast(row[r].code->scale), bias = broadcast(row[r].code->bias);
      if (asks) ask<rows>(next.keys, head_dim, r);
      unroll<kVectors>([&](auto j) {
        f32x16 total = to_f32(load_i32(high[r] + 16 * j));
        if constexpr (terms == 2) total = fma(total, broadcast(kHighCode), to_f32(load_i32(low[r] + 16 * j)));
        store(scores + r * stride + 16 * j, mul(mul(load(page.key_scales + 16 * j), scale), sub(total, bias)));
      });
    }
  }

  // The weights' high bytes are the unit's first rows, low bytes the next; of up to 8 pairs all are in one register. Values are bytes plus 128, as
  // they lie: what that adds, 128 times the sum of the weights, is the product with a page of -128, and taken off again.
  template <int rows>
  static void add_values(const PageData<Cache>& page, const PageData<Cache>& next, const AttendRow* row, float (*weights)[kPageTokens], const float* decay) {
    static_assert(kPageTokens == kMatrixDepth && kVectors == 4);
    constexpr int columns = 16, parts = 2 * rows > kMatrixRows ? 2 : 1, low = rows;  // columns: dimensions of a product
    constexpr int steps = kMatrixDepth / columns;                                     // products before their sums are looked at
    static constexpr Offset offset;
    const int dim = row[0].partial.dim;
    const bool asks = next.values != page.values;
    alignas(64) uint8_t codes[parts * kMatrixRows][kPageTokens];
    alignas(64) int32_t sums[steps + 1][parts * kMatrixRows][columns];  // the last: what is taken off
    float unit[rows];
    Base::template code_weights<rows>(page.value_scales, row, weights, codes, codes + low, unit);  // bytes of 7 bits: no sign
    const auto multiply = [&](auto first, auto values, auto are_signed, auto& out) {
      unroll<parts>([&](auto part) {
        clear_matrix<first + part>();
        add_matrix_product<first + part, 4 + part, values, are_signed>();
      });
      unroll<parts>([&](auto part) { store_matrix<first + part>(out[part * kMatrixRows], sizeof out[0]); });
    };
    load_matrix<6>(offset.bytes, sizeof offset.bytes[0]);
    unroll<parts>([&](auto part) { load_matrix<4 + part>(codes[part * kMatrixRows], kPageTokens); });
    multiply(std::integral_constant<int, 0>{}, std::integral_constant<int, 6>{}, std::true_type{}, sums[steps]);
    for (int d = 0; d < dim; d += kMatrixDepth) {
      unroll<steps>([&](auto i) {
        constexpr int values = 7 - i % 2;
        load_matrix<values>(page.values + value_at<Cache>(d + i * columns, 0, dim), static_cast<size_t>(dim) * Cache::pack);
        multiply(std::integral_constant<int, 2 - i % 2 * 2>{}, std::integral_constant<int, values>{}, std::false_type{}, sums[i]);
      });
      for (int r = 0; r < rows; ++r) {
        const i32x16 taken_off = join(load_i32(sums[steps][r]), load_i32(sums[steps][low + r]));
        if (asks && d == 0) ask<rows>(next.values, dim, r);
        float* sum = row[r].partial.sum + d;
        unroll<steps>([&](auto i) {
          const f32x16 total = to_f32(add(join(load_i32(sums[i][r]), load_i32(sums[i][low + r])), taken_off));
          store(sum + i * columns, fma(total, broadcast(unit[r]), mul(load(sum + i * columns), broadcast(decay[r]))));
        });
      }
    }
  }

 private:
  // Asks for part r of `rows` of a page's elements: a few at a time, for what memory is asked for at once is limited.
  template <int rows>
  static void ask(const uint8_t* elements, int dim, int r) {
    const int bytes = dim * kPageTokens;
    for (int line = bytes / rows * r / 64 * 64, last = bytes / rows * (r + 1); line < last; line += 64) __builtin_prefetch(elements + line);
  }

  // products[pair][token] = the pair's codes . the token's key. head_dim: padded already.
  template <int rows, const int8_t* QueryCode::*part>
  static void multiply_keys(const PageData<Cache>& page, int head_dim, const AttendRow* row, int32_t (*products)[kPageTokens]) {
    alignas(64) int8_t codes[kMatrixRows][kMatrixDepth];  // whatever is behind the pairs
    const int8_t* first = row[0].code->*part;
    const bool lie_together = rows == kMatrixRows && row[rows - 1].code->*part == first + (rows - 1) * head_dim;
    unroll<kVectors>([&](auto j) { clear_matrix<j>(); });
    for (int d = 0; d < head_dim; d += kMatrixDepth) {
      if (lie_together) {
        load_matrix<4>(first + d, head_dim);
      } else {
        for (int r = 0; r < rows; ++r) std::memcpy(codes[r], row[r].code->*part + d, kMatrixDepth);
        load_matrix<4>(codes, kMatrixDepth);
      }
      unroll<kVectors>([&](auto j) {
        load_matrix<6 + j % 2>(page.keys + key_at<Cache>(d, 16 * j), kPageTokens * Cache::pack);
        add_matrix_product<j, 4, 6 + j % 2, false>();
      });
    }
    unroll<kVectors>([&](auto j) { store_matrix<j>(products[0] + 16 * j, sizeof products[0]); });
  }

  static i32x16 join(i32x16 high, i32x16 low) { return add(shift_left<7>(high), low); }  // of sums of weights' bytes

  struct alignas(64) Offset {
    uint8_t bytes[kMatrixRows][64];
    constexpr Offset() : bytes() {
      for (auto& row : bytes) for (uint8_t& byte : row) byte = 0x80;
    }
  };
};

// Calls f with arithmetic that uses the unit, while it is ready, where the pairs fill it and heads are whole depths; else as with_math. A lone row of
// 8 heads decodes as fast without: choosing blocks by half a unit made a step at 128K 2 % slower (a Xeon, 2026-11-26).
template <class F>
inline void with_matrices(const KvLayer& layer, const AttendTask& task, int num_pairs, F f) {
  with_math(layer, task, [&](auto math) {
    using Math = decltype(math);
    if constexpr (Math::code_bytes > 0) {
      if (layer.head_dim % kMatrixDepth == 0 && num_pairs >= kMatrixRows) {
        const MatrixUnit unit(kWholeMatrices);
        return f(MatrixMath<Math::code_bytes>{});
      }
    }
    f(math);
  });
}

inline void attend_by_matrices(const KvLayer& layer, const AttendTask& task) {
  with_matrices(layer, task, (task.last_row - task.first_row) * task.group_heads, [&](auto math) { attend_task<decltype(math)>(layer, task); });
}

inline void select_by_matrices(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int num_pages, const BlockLists& lists) {
  const int rows = task.last_row - task.first_row;
  with_matrices(layer, task, (rows < kSelectTogether ? rows : kSelectTogether) * task.group_heads,
                [&](auto math) { select_rows<decltype(math)>(layer, sparse, task, num_pages, lists); });
}

}  // namespace minicpm4::ISA
