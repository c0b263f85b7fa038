// 16 lanes on AVX2 with FMA and F16C: two registers a vector.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace minicpm4::avx2 {

constexpr const char* kName = "avx2";
constexpr bool kSignedBytes = true;  // Dot<8> takes codes as code - 128
constexpr bool kPairsRows = false;

struct f32x16 { __m256 a, b; };
struct i32x16 { __m256i a, b; };
struct u8x64 { __m256i a, b; };

inline const __m256i* as_256(const void* p) { return reinterpret_cast<const __m256i*>(p); }

inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, f32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline f32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32x16 add(f32x16 x, f32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline f32x16 sub(f32x16 x, f32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline f32x16 mul(f32x16 x, f32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline f32x16 div(f32x16 x, f32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline f32x16 max(f32x16 x, f32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline f32x16 min(f32x16 x, f32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline f32x16 positive(f32x16 x) { return max(x, broadcast(0.0f)); }  // zero where x is not above it, or NaN
inline f32x16 abs(f32x16 x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline f32x16 fma(f32x16 x, f32x16 y, f32x16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline float sum(f32x16 x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float max_lane(f32x16 x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline bool any_above(f32x16 x, f32x16 y) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))) != 0;
}
inline f32x16 keep_first(int n, f32x16 x, f32x16 rest) {  // lanes >= n come from rest
  const __m256i count = _mm256_set1_epi32(n), low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  return {_mm256_blendv_ps(rest.a, x.a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low))),
          _mm256_blendv_ps(rest.b, x.b, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, high)))};
}

inline __m128i load_128(const void* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline f32x16 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))}; }
inline void store_f16(uint16_t* p, f32x16 x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, nearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, nearest));
}
inline __m256 widen_bf16(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline f32x16 load_bf16(const uint16_t* p) { return {widen_bf16(load_128(p)), widen_bf16(load_128(p + 8))}; }

inline i32x16 broadcast_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline i32x16 add(i32x16 x, i32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline i32x16 load_i32(const int32_t* p) { return {_mm256_loadu_si256(as_256(p)), _mm256_loadu_si256(as_256(p + 8))}; }
inline i32x16 widen_u8(const uint8_t* p) {
  const __m128i bytes = load_128(p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline i32x16 widen_i8(const int8_t* p) {
  const __m128i bytes = load_128(p);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
inline i32x16 bits_of(f32x16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline i32x16 max(i32x16 x, i32x16 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline int32_t max_lane(i32x16 x) {
  const __m256i eight = _mm256_max_epi32(x.a, x.b);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline int32_t sum(i32x16 x) {
  const __m256i eight = _mm256_add_epi32(x.a, x.b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline f32x16 to_f32(i32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline i32x16 round_i32(f32x16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }  // to nearest, ties to even
inline void store_i8(int8_t* p, i32x16 x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline f32x16 round(f32x16 x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline __m256 power_of_two(__m256 whole) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23));
}
inline f32x16 times_power_of_two(f32x16 x, f32x16 whole) {
  return {_mm256_mul_ps(x.a, power_of_two(whole.a)), _mm256_mul_ps(x.b, power_of_two(whole.b))};
}
template <int n>
inline i32x16 shift_right(i32x16 x) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
template <int mask>
inline i32x16 keep_bits(i32x16 x) { return {_mm256_and_si256(x.a, _mm256_set1_epi32(mask)), _mm256_and_si256(x.b, _mm256_set1_epi32(mask))}; }
inline void store_low_bytes(uint8_t* p, const i32x16 (&four)[4]) {  // of lanes below 128
  for (int i = 0; i < 4; ++i) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(four[i].a, four[i].b), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16 * i), _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
}

inline u8x64 load_bytes(const uint8_t* p) { return {_mm256_loadu_si256(as_256(p)), _mm256_loadu_si256(as_256(p + 32))}; }
template <int shift, int mask>
inline u8x64 bits(u8x64 x) {  // (byte >> shift) & mask, in every byte
  if constexpr (shift > 0) x = {_mm256_srli_epi32(x.a, shift), _mm256_srli_epi32(x.b, shift)};
  const __m256i m = _mm256_set1_epi8(mask);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
template <int shift>
inline u8x64 join(u8x64 low, u8x64 high) {  // low | high << shift, where high << shift stays inside its byte
  return {_mm256_or_si256(low.a, _mm256_slli_epi32(high.a, shift)), _mm256_or_si256(low.b, _mm256_slli_epi32(high.b, shift))};
}
inline u8x64 flip_signs(u8x64 x) {  // bytes plus 128 become signed ones
  const __m256i flip = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(x.a, flip), _mm256_xor_si256(x.b, flip)};
}
template <int j>
inline f32x16 byte_as_f32(u8x64 x) {  // byte j of each 32-bit lane
  const __m256i m = _mm256_set1_epi32(0xff);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * j), m)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.b, 8 * j), m))};
}

inline __m256i broadcast_four(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

// total + the sum of values[4 r + j] * x[j] over j in lane r; values are signed bytes, x at most 127, so that pairs fit 16 bits.
inline i32x16 dot_four(i32x16 total, u8x64 values, const uint8_t* x) {
  const __m256i four = broadcast_four(reinterpret_cast<const int8_t*>(x)), ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(total.a, _mm256_madd_epi16(_mm256_maddubs_epi16(four, values.a), ones)),
          _mm256_add_epi32(total.b, _mm256_madd_epi16(_mm256_maddubs_epi16(four, values.b), ones))};
}

// Sums of codes[4 r + j] * x[j] over the chunks of a group, a lane for each row r. Products are added in 16 bits for as many
// chunks as cannot overflow (2 * largest code * 127 each), then widened.
template <int width>
class Dot {
 public:
  template <int c>
  void add(u8x64 codes, const int8_t* x) {
    __m256i four_a = broadcast_four(x), four_b = four_a;
    if constexpr (width == 8) {  // signed codes: |code| * (x with the code's sign)
      codes = flip_signs(codes);
      four_a = _mm256_sign_epi8(four_a, codes.a), four_b = _mm256_sign_epi8(four_b, codes.b);
      codes = {_mm256_abs_epi8(codes.a), _mm256_abs_epi8(codes.b)};
    }
    const __m256i a = _mm256_maddubs_epi16(codes.a, four_a), b = _mm256_maddubs_epi16(codes.b, four_b);
    pairs_ = c % kChunks == 0 ? i32x16{a, b} : i32x16{_mm256_add_epi16(pairs_.a, a), _mm256_add_epi16(pairs_.b, b)};
    if constexpr (c % kChunks == kChunks - 1) {
      const __m256i ones = _mm256_set1_epi16(1);
      const i32x16 wide = {_mm256_madd_epi16(pairs_.a, ones), _mm256_madd_epi16(pairs_.b, ones)};
      total_ = c < kChunks ? wide : minicpm4::avx2::add(total_, wide);
    }
  }
  i32x16 total() const { return total_; }

 private:
  static constexpr int kChunks = width <= 4 ? 8 : width == 5 ? 4 : width == 6 ? 2 : 1;
  i32x16 pairs_, total_;
};

}  // namespace minicpm4::avx2
