// 16 lanes on AArch64 NEON: four registers a vector. All but the products of bytes, which differ between the units that include this;
// each defines ISA first, so that no code made for the one is linked into the other.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace minicpm4::ISA {

constexpr bool kSignedBytes = true;  // Dot<8> takes codes as code - 128

struct f32x16 { float32x4_t v[4]; };
struct i32x16 { int32x4_t v[4]; };
struct u8x64 { uint8x16_t v[4]; };

template <class To, class F>
inline To each(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline f32x16 load(const float* p) { return each<f32x16>([&](int i) { return vld1q_f32(p + 4 * i); }); }
inline void store(float* p, f32x16 a) { for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]); }
inline f32x16 broadcast(float x) { return each<f32x16>([&](int) { return vdupq_n_f32(x); }); }
inline f32x16 add(f32x16 a, f32x16 b) { return each<f32x16>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
inline f32x16 sub(f32x16 a, f32x16 b) { return each<f32x16>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
inline f32x16 mul(f32x16 a, f32x16 b) { return each<f32x16>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
inline f32x16 div(f32x16 a, f32x16 b) { return each<f32x16>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
inline f32x16 max(f32x16 a, f32x16 b) { return each<f32x16>([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); }); }
inline f32x16 min(f32x16 a, f32x16 b) { return each<f32x16>([&](int i) { return vminq_f32(a.v[i], b.v[i]); }); }
// Zero where a is not above it, or NaN.
inline f32x16 positive(f32x16 a) { return each<f32x16>([&](int i) { return vmaxnmq_f32(a.v[i], vdupq_n_f32(0.0f)); }); }
inline f32x16 abs(f32x16 a) { return each<f32x16>([&](int i) { return vabsq_f32(a.v[i]); }); }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return each<f32x16>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); }); }
inline float sum(f32x16 a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
inline float max_lane(f32x16 a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
inline bool any_above(f32x16 a, f32x16 b) {
  const auto above = [&](int i) { return vcgtq_f32(a.v[i], b.v[i]); };
  return vmaxvq_u32(vorrq_u32(vorrq_u32(above(0), above(1)), vorrq_u32(above(2), above(3)))) != 0;
}
inline f32x16 keep_first(int n, f32x16 a, f32x16 rest) {  // lanes >= n come from rest
  const int32_t lanes[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(lanes);
  return each<f32x16>([&](int i) { return vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n - 4 * i)), a.v[i], rest.v[i]); });
}

inline f32x16 load_f16(const uint16_t* p) {
  return each<f32x16>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline void store_f16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
inline f32x16 load_bf16(const uint16_t* p) {
  return each<f32x16>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}

inline i32x16 broadcast_i32(int32_t x) { return each<i32x16>([&](int) { return vdupq_n_s32(x); }); }
inline i32x16 add(i32x16 a, i32x16 b) { return each<i32x16>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); }); }
inline i32x16 load_i32(const int32_t* p) { return each<i32x16>([&](int i) { return vld1q_s32(p + 4 * i); }); }
inline i32x16 widen_words(int16x8_t low, int16x8_t high) {
  return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
inline i32x16 widen_u8(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  return widen_words(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))), vreinterpretq_s16_u16(vmovl_high_u8(bytes)));
}
inline i32x16 widen_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  return widen_words(vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
}
inline i32x16 bits_of(f32x16 a) { return each<i32x16>([&](int i) { return vreinterpretq_s32_f32(a.v[i]); }); }
inline i32x16 max(i32x16 a, i32x16 b) { return each<i32x16>([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); }); }
inline int32_t max_lane(i32x16 a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3]))); }
inline int32_t sum(i32x16 a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
inline f32x16 to_f32(i32x16 a) { return each<f32x16>([&](int i) { return vcvtq_f32_s32(a.v[i]); }); }
inline i32x16 round_i32(f32x16 a) { return each<i32x16>([&](int i) { return vcvtnq_s32_f32(a.v[i]); }); }  // ties to even
inline void store_i8(int8_t* p, i32x16 a) {
  const int16x8_t low = vqmovn_high_s32(vqmovn_s32(a.v[0]), a.v[1]), high = vqmovn_high_s32(vqmovn_s32(a.v[2]), a.v[3]);
  vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(low), high));
}
inline f32x16 round(f32x16 a) { return each<f32x16>([&](int i) { return vrndnq_f32(a.v[i]); }); }
inline f32x16 times_power_of_two(f32x16 a, f32x16 whole) {
  return each<f32x16>([&](int i) {
    return vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(whole.v[i]), vdupq_n_s32(127)), 23)));
  });
}
template <int n>
inline i32x16 shift_right(i32x16 a) { return each<i32x16>([&](int i) { return vshrq_n_s32(a.v[i], n); }); }
template <int mask>
inline i32x16 keep_bits(i32x16 a) { return each<i32x16>([&](int i) { return vandq_s32(a.v[i], vdupq_n_s32(mask)); }); }
inline void store_low_bytes(uint8_t* p, const i32x16 (&four)[4]) {  // of lanes below 128
  for (int i = 0; i < 4; ++i) store_i8(reinterpret_cast<int8_t*>(p + 16 * i), four[i]);
}

inline u8x64 load_bytes(const uint8_t* p) { return each<u8x64>([&](int i) { return vld1q_u8(p + 16 * i); }); }
template <int shift, int mask>
inline u8x64 bits(u8x64 a) {  // (byte >> shift) & mask, in every byte
  return each<u8x64>([&](int i) {
    uint8x16_t v = a.v[i];
    if constexpr (shift > 0) v = vshrq_n_u8(v, shift);
    return vandq_u8(v, vdupq_n_u8(mask));
  });
}
template <int shift>
inline u8x64 join(u8x64 low, u8x64 high) {  // low | high << shift, where high << shift stays inside its byte
  return each<u8x64>([&](int i) { return vorrq_u8(low.v[i], vshlq_n_u8(high.v[i], shift)); });
}
inline u8x64 flip_signs(u8x64 a) {  // bytes plus 128 become signed ones
  return each<u8x64>([&](int i) { return veorq_u8(a.v[i], vdupq_n_u8(128)); });
}
template <int j>
inline f32x16 byte_as_f32(u8x64 a) {  // byte j of each 32-bit lane
  return each<f32x16>([&](int i) {
    uint32x4_t lanes = vreinterpretq_u32_u8(a.v[i]);
    if constexpr (j > 0) lanes = vshrq_n_u32(lanes, 8 * j);
    return vcvtq_f32_u32(vandq_u32(lanes, vdupq_n_u32(0xff)));
  });
}

// total + the sum of values[4 r + j] * x[j] over j in lane r; values are signed bytes, x at most 127.
inline i32x16 dot_four(i32x16 total, u8x64 values, const uint8_t* x) {
  int32_t bytes;
  __builtin_memcpy(&bytes, x, 4);
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
  return each<i32x16>([&](int i) { return vdotq_s32(total.v[i], vreinterpretq_s8_u8(values.v[i]), four); });
}

}  // namespace minicpm4::ISA
