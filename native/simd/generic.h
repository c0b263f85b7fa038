// 16 lanes in plain C++, for any machine; the compiler may vectorize the loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "../half.h"

namespace minicpm4::generic {

constexpr const char* kName = "generic";
constexpr bool kSignedBytes = true;  // Dot<8> takes codes as code - 128
constexpr bool kPairsRows = false;

struct f32x16 { float v[16]; };
struct i32x16 { int32_t v[16]; };
struct u8x64 { uint8_t v[64]; };

template <class To, class F>
inline To each(F f) {
  To out;
  for (int i = 0; i < 16; ++i) out.v[i] = f(i);
  return out;
}

inline f32x16 load(const float* p) { return each<f32x16>([&](int i) { return p[i]; }); }
inline void store(float* p, const f32x16& a) { for (int i = 0; i < 16; ++i) p[i] = a.v[i]; }
inline f32x16 broadcast(float x) { return each<f32x16>([&](int) { return x; }); }
inline f32x16 add(const f32x16& a, const f32x16& b) { return each<f32x16>([&](int i) { return a.v[i] + b.v[i]; }); }
inline f32x16 sub(const f32x16& a, const f32x16& b) { return each<f32x16>([&](int i) { return a.v[i] - b.v[i]; }); }
inline f32x16 mul(const f32x16& a, const f32x16& b) { return each<f32x16>([&](int i) { return a.v[i] * b.v[i]; }); }
inline f32x16 div(const f32x16& a, const f32x16& b) { return each<f32x16>([&](int i) { return a.v[i] / b.v[i]; }); }
inline f32x16 max(const f32x16& a, const f32x16& b) { return each<f32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline f32x16 min(const f32x16& a, const f32x16& b) { return each<f32x16>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline f32x16 positive(const f32x16& a) { return max(a, broadcast(0.0f)); }  // zero where a is not above it, or NaN
inline f32x16 abs(const f32x16& a) { return each<f32x16>([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; }); }
inline f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) { return each<f32x16>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline float sum(const f32x16& a) {
  float total[8];
  for (int i = 0; i < 8; ++i) total[i] = a.v[i] + a.v[i + 8];
  for (int width = 4; width > 0; width /= 2) for (int i = 0; i < width; ++i) total[i] += total[i + width];
  return total[0];
}
inline float max_lane(const f32x16& a) {
  float best = a.v[0];
  for (int i = 1; i < 16; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}
inline bool any_above(const f32x16& a, const f32x16& b) {
  for (int i = 0; i < 16; ++i) if (a.v[i] > b.v[i]) return true;
  return false;
}
inline f32x16 keep_first(int n, const f32x16& a, const f32x16& rest) { return each<f32x16>([&](int i) { return i < n ? a.v[i] : rest.v[i]; }); }

inline f32x16 load_f16(const uint16_t* p) { return each<f32x16>([&](int i) { return f16_to_f32(p[i]); }); }
inline void store_f16(uint16_t* p, const f32x16& a) { for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(a.v[i]); }
inline f32x16 load_bf16(const uint16_t* p) { return each<f32x16>([&](int i) { return bf16_to_f32(p[i]); }); }

inline i32x16 broadcast_i32(int32_t x) { return each<i32x16>([&](int) { return x; }); }
inline i32x16 add(const i32x16& a, const i32x16& b) { return each<i32x16>([&](int i) { return a.v[i] + b.v[i]; }); }
inline i32x16 load_i32(const int32_t* p) { return each<i32x16>([&](int i) { return p[i]; }); }
inline i32x16 widen_u8(const uint8_t* p) { return each<i32x16>([&](int i) { return int32_t{p[i]}; }); }
inline i32x16 widen_i8(const int8_t* p) { return each<i32x16>([&](int i) { return int32_t{p[i]}; }); }
inline i32x16 bits_of(const f32x16& a) { return each<i32x16>([&](int i) { return static_cast<int32_t>(f32_to_bits(a.v[i])); }); }
inline i32x16 max(const i32x16& a, const i32x16& b) { return each<i32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline int32_t max_lane(const i32x16& a) {
  int32_t largest = a.v[0];
  for (int i = 1; i < 16; ++i) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest;
}
inline int32_t sum(const i32x16& a) {
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) total += a.v[i];
  return total;
}
inline f32x16 to_f32(const i32x16& a) { return each<f32x16>([&](int i) { return static_cast<float>(a.v[i]); }); }
inline i32x16 round_i32(const f32x16& a) { return each<i32x16>([&](int i) { return static_cast<int32_t>(::nearbyintf(a.v[i])); }); }
inline void store_i8(int8_t* p, const i32x16& a) { for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]); }
inline f32x16 round(const f32x16& a) { return each<f32x16>([&](int i) { return ::nearbyintf(a.v[i]); }); }
inline f32x16 times_power_of_two(const f32x16& a, const f32x16& whole) {
  return each<f32x16>([&](int i) { return ::ldexpf(a.v[i], static_cast<int>(whole.v[i])); });
}
template <int n>
inline i32x16 shift_right(const i32x16& a) { return each<i32x16>([&](int i) { return a.v[i] >> n; }); }
template <int mask>
inline i32x16 keep_bits(const i32x16& a) { return each<i32x16>([&](int i) { return a.v[i] & mask; }); }
inline void store_low_bytes(uint8_t* p, const i32x16 (&four)[4]) { for (int i = 0; i < 64; ++i) p[i] = static_cast<uint8_t>(four[i / 16].v[i % 16]); }

inline u8x64 load_bytes(const uint8_t* p) {
  u8x64 out;
  for (int i = 0; i < 64; ++i) out.v[i] = p[i];
  return out;
}
template <int shift, int mask>
inline u8x64 bits(const u8x64& a) {  // (byte >> shift) & mask, in every byte
  u8x64 out;
  for (int i = 0; i < 64; ++i) out.v[i] = (a.v[i] >> shift) & mask;
  return out;
}
template <int shift>
inline u8x64 join(const u8x64& low, const u8x64& high) {  // low | high << shift, where high << shift stays inside its byte
  u8x64 out;
  for (int i = 0; i < 64; ++i) out.v[i] = low.v[i] | static_cast<uint8_t>(high.v[i] << shift);
  return out;
}
inline u8x64 flip_signs(const u8x64& a) {  // bytes plus 128 become signed ones
  u8x64 out;
  for (int i = 0; i < 64; ++i) out.v[i] = a.v[i] ^ 128;
  return out;
}
template <int j>
inline f32x16 byte_as_f32(const u8x64& a) {  // byte j of each 32-bit lane
  return each<f32x16>([&](int i) { return static_cast<float>(a.v[4 * i + j]); });
}

// total + the sum of values[4 r + j] * x[j] over j in lane r; values are signed bytes, x at most 127.
inline i32x16 dot_four(i32x16 total, const u8x64& values, const uint8_t* x) {
  for (int r = 0; r < 16; ++r)
    for (int j = 0; j < 4; ++j) total.v[r] += static_cast<int8_t>(values.v[4 * r + j]) * x[j];
  return total;
}

// Sums of codes[4 r + j] * x[j] over the chunks of a group, a lane for each row r.
template <int width>
class Dot {
 public:
  template <int c>
  void add(const u8x64& codes, const int8_t* x) {
    constexpr int zero = width == 8 ? 128 : 0;
    for (int r = 0; r < 16; ++r)
      for (int j = 0; j < 4; ++j) total_.v[r] += (codes.v[4 * r + j] - zero) * x[j];
  }
  i32x16 total() const { return total_; }

 private:
  i32x16 total_ = {};
};

}  // namespace minicpm4::generic
