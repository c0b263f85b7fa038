// NEON with products of 8-bit matrices: usmmla multiplies [2 weight rows x 8 columns] with [8 columns x 2 rows of activations].
// Weight codes stay unsigned; where 8-bit ones mean code - 128, the sums of activations are taken 128 times from the totals, which
// costs an instruction where changing the codes costs four. All is in exact integers, so results are neon_dotprod.h's to the bit.
#pragma once

#include "neon.h"

namespace minicpm4::ISA {

constexpr const char* kName = "neon_i8mm";
constexpr bool kPairsRows = true;

// Sums of codes[4 r + j] * x[j] over the chunks of a group, a lane for each row r.
template <int width>
class Dot {
 public:
  template <int c>
  void add(u8x64 codes, const int8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, 4);
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
    for (int i = 0; i < 4; ++i) total_.v[i] = vusdotq_s32(total_.v[i], codes.v[i], four);
    if constexpr (width == 8) shift_ = vdotq_s32(shift_, vdupq_n_s8(-128), four);
  }
  i32x16 total() const {
    if constexpr (width != 8) return total_;
    return each<i32x16>([&](int i) { return vaddq_s32(total_.v[i], shift_); });
  }

 private:
  i32x16 total_ = broadcast_i32(0);
  int32x4_t shift_ = vdupq_n_s32(0);  // the same in every lane
};

// The same for two rows of activations, two chunks at a time.
template <int width>
class PairDot {
 public:
  template <int c>
  void add(u8x64 codes, const int8_t* x0, const int8_t* x1) {
    if constexpr (c % 2 == 0) {
      even_ = codes;
    } else {
      const int8x16_t pair = vcombine_s8(vld1_s8(x0 - 4), vld1_s8(x1 - 4));  // from the even chunk's columns on
      for (int i = 0; i < 4; ++i) {
        const uint32x4_t even = vreinterpretq_u32_u8(even_.v[i]), odd = vreinterpretq_u32_u8(codes.v[i]);
        total_[2 * i] = vusmmlaq_s32(total_[2 * i], vreinterpretq_u8_u32(vzip1q_u32(even, odd)), pair);
        total_[2 * i + 1] = vusmmlaq_s32(total_[2 * i + 1], vreinterpretq_u8_u32(vzip2q_u32(even, odd)), pair);
      }
      if constexpr (width == 8) shift_ = vmmlaq_s32(shift_, vdupq_n_s8(-128), pair);
    }
  }
  // index: 0 or 1, of the row of activations.
  i32x16 total(int index) const {
    const auto lanes_of = [&](int32x4_t a, int32x4_t b) { return index == 0 ? vuzp1q_s32(a, b) : vuzp2q_s32(a, b); };
    const i32x16 total = each<i32x16>([&](int i) { return lanes_of(total_[2 * i], total_[2 * i + 1]); });
    if constexpr (width != 8) return total;
    const int32x4_t shift = lanes_of(shift_, shift_);
    return each<i32x16>([&](int i) { return vaddq_s32(total.v[i], shift); });
  }

 private:
  u8x64 even_;                        // codes of the last even chunk
  int32x4_t total_[8] = {};           // of weight rows a = 2 i, b = a + 1: {a x0, a x1, b x0, b x1}
  int32x4_t shift_ = vdupq_n_s32(0);  // {of x0, of x1, of x0, of x1}
};

}  // namespace minicpm4::ISA
