// AMX: products of 8-bit matrices of 16 rows, [16 x K] . [K x 16] for K = 64, 32 or 16, with exact integer results; and of bfloat16, K = 32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minicpm4::ISA {

// The shapes of the eight registers, as the processor reads them. kMatrixShapes: 0 holds sums, 2 and 4 what is multiplied, 6 and 7 halves of
// it. kWholeMatrices: all have 16 rows of 64 bytes.
struct alignas(64) MatrixShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 32, 32, 64, 64, 16, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 8, 8, 16, 4};
};
inline constexpr MatrixShapes kMatrixShapes;
inline constexpr MatrixShapes kWholeMatrices{.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

}  // namespace minicpm4::ISA

#if defined(MINICPM4_EMULATED)
#include "../tests/emulated_amx.h"
#else
namespace minicpm4::ISA {

// The instructions by themselves: GCC's intrinsics want the register's number as a word of the source.
inline void configure_matrices(const MatrixShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
inline void release_matrices() { asm volatile("tilerelease"); }
template <int n>
inline void clear_matrix() {
  asm volatile("tilezero %%tmm%c0" : : "i"(n));
}
template <int n>
inline void load_matrix(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(n) : "memory");
}
// The same of what is not looked at again soon, and should not drive out of the first cache what is.
template <int n>
inline void load_passing_matrix(const void* from, size_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(n) : "memory");
}
template <int n>
inline void store_matrix(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(n) : "memory");
}
// Register `sums` += rows . columns; the bytes of rows are signed, those of columns by choice.
template <int sums, int rows, int columns, bool are_signed>
inline void add_matrix_product() {
  if constexpr (are_signed) asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(rows), "i"(columns));
  else asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(rows), "i"(columns));
}
// The same of bfloat16, with sums in float32.
template <int sums, int rows, int columns>
inline void add_bf16_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(rows), "i"(columns));
}

// 32 values rounded to the nearest, ties to even, subnormals to zero: those of `first`, then those of `second` ...
inline void store_bf16(uint16_t* p, f32x16 first, f32x16 second) {
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
}
// ... and one of `even`, one of `odd`, in turn.
inline void store_bf16_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i apart = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.v, even.v));
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), apart));
}

}  // namespace minicpm4::ISA
#endif

namespace minicpm4::ISA {

constexpr int kMatrixRows = 16;

// While it lives, this thread's matrix registers have their shapes.
class MatrixUnit {
 public:
  explicit MatrixUnit(const MatrixShapes& shapes = kMatrixShapes) { configure_matrices(shapes); }
  ~MatrixUnit() { release_matrices(); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;
};

// out[i][n] = the sum over k < K of x[i][k] * weights[k / 4][n][k % 4], for 16 rows of x, `stride` bytes apart, and n < 16.
// are_signed: whether the weights' bytes are.
template <int K, bool are_signed>
inline void multiply_matrix(const int8_t* x, size_t stride, const uint8_t* weights, int32_t* out) {
  static_assert(K == 32 || K == 16);
  constexpr int sums = 0, rows = K == 32 ? 2 : 6, columns = K == 32 ? 4 : 7;
  clear_matrix<sums>();
  load_matrix<rows>(x, stride);
  load_matrix<columns>(weights, 64);
  add_matrix_product<sums, rows, columns, are_signed>();
  store_matrix<sums>(out, 64);
}

// How fast the unit could compute, see peak.h: products of whole registers, four sums that do not wait for each other.
template <bool are_bf16>
double peak_matrices(size_t rounds) {
  const MatrixUnit unit(kWholeMatrices);
  const uint8_t codes[16 * 64] = {};
  load_matrix<4>(codes, 64), load_matrix<5>(codes, 64), load_matrix<6>(codes, 64), load_matrix<7>(codes, 64);
  clear_matrix<0>(), clear_matrix<1>(), clear_matrix<2>(), clear_matrix<3>();
  for (size_t round = 0; round < rounds; ++round) {
    if constexpr (are_bf16) {
      add_bf16_product<0, 4, 6>(), add_bf16_product<1, 4, 7>(), add_bf16_product<2, 5, 6>(), add_bf16_product<3, 5, 7>();
    } else {
      add_matrix_product<0, 4, 6, true>(), add_matrix_product<1, 4, 7, true>();
      add_matrix_product<2, 5, 6, true>(), add_matrix_product<3, 5, 7, true>();
    }
  }
  return 4 * 2.0 * 16 * (are_bf16 ? 32 : 64) * 16 * static_cast<double>(rounds);
}

}  // namespace minicpm4::ISA
