// 16 lanes on AVX-512 with VNNI (F, BW, DQ, VL, VNNI): one register a vector. Included once for each unit that has them.
#pragma once

#if defined(MINICPM4_EMULATED)
#include "../tests/emulated_avx512.h"
#else
#include <immintrin.h>
#endif

#include <cstdint>

namespace minicpm4::ISA {

constexpr bool kSignedBytes = false;  // Dot<8> takes codes as 0..255
constexpr bool kPairsRows = false;

struct f32x16 { __m512 v; };
struct i32x16 { __m512i v; };
struct u8x64 { __m512i v; };

inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
inline f32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline f32x16 positive(f32x16 a) { return max(a, broadcast(0.0f)); }  // zero where a is not above it, or NaN
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline float sum(f32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float max_lane(f32x16 a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline bool any_above(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
inline f32x16 keep_first(int n, f32x16 a, f32x16 rest) {  // lanes >= n come from rest
  const __mmask16 mask = n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
  return {_mm512_mask_blend_ps(mask, rest.v, a.v)};
}

inline f32x16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline f32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

inline i32x16 broadcast_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline i32x16 add(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline i32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline i32x16 widen_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline i32x16 widen_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline i32x16 bits_of(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline i32x16 max(i32x16 a, i32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t max_lane(i32x16 a) {
  const __m256i eight = _mm256_max_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline int32_t sum(i32x16 a) {
  const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline i32x16 round_i32(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest, ties to even
inline void store_i8(int8_t* p, i32x16 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v)); }
inline f32x16 round(f32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline f32x16 times_power_of_two(f32x16 a, f32x16 whole) { return {_mm512_scalef_ps(a.v, whole.v)}; }
template <int n>
inline i32x16 shift_right(i32x16 a) { return {_mm512_srli_epi32(a.v, n)}; }
template <int n>
inline i32x16 shift_left(i32x16 a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int mask>
inline i32x16 keep_bits(i32x16 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(mask))}; }
// Of lanes below 128: pairs of vectors become one, within each quarter; then quarters' pieces come into order.
inline void store_low_bytes(uint8_t* p, const i32x16 (&four)[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i words = _mm512_packs_epi32(four[0].v, four[1].v), more_words = _mm512_packs_epi32(four[2].v, four[3].v);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(words, more_words)));
}

inline u8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int shift, int mask>
inline u8x64 bits(u8x64 a) {  // (byte >> shift) & mask, in every byte
  __m512i v = a.v;
  if constexpr (shift > 0) v = _mm512_srli_epi32(v, shift);
  return {_mm512_and_si512(v, _mm512_set1_epi8(mask))};
}
template <int shift>
inline u8x64 join(u8x64 low, u8x64 high) {  // low | high << shift, where high << shift stays inside its byte
  return {_mm512_or_si512(low.v, _mm512_slli_epi32(high.v, shift))};
}
inline u8x64 flip_signs(u8x64 a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(-128))}; }  // bytes plus 128 become signed ones
template <int n>
inline u8x64 subtract_bytes(u8x64 a) { return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(n - (n > 127 ? 256 : 0)))}; }
inline void store_bytes(uint8_t* p, u8x64 a) { _mm512_storeu_si512(p, a.v); }
template <int j>
inline f32x16 byte_as_f32(u8x64 a) {  // byte j of each 32-bit lane
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * j), _mm512_set1_epi32(0xff)))};
}

// total + the sum of values[4 r + j] * x[j] over j in lane r; values are signed bytes, x at most 127.
inline i32x16 dot_four(i32x16 total, u8x64 values, const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return {_mm512_dpbusd_epi32(total.v, _mm512_set1_epi32(four), values.v)};
}

// Sums of codes[4 r + j] * x[j] over the chunks of a group, a lane for each row r.
template <int width>
class Dot {
 public:
  template <int c>
  void add(u8x64 codes, const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    total_ = {_mm512_dpbusd_epi32(total_.v, codes.v, _mm512_set1_epi32(four))};
  }
  i32x16 total() const { return total_; }

 private:
  i32x16 total_ = {_mm512_setzero_si512()};
};

}  // namespace minicpm4::ISA
