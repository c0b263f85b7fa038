// NEON with dot products: sdot multiplies each row of activations by itself.
#pragma once

#include "neon.h"

namespace minicpm4::ISA {

constexpr const char* kName = "neon";
constexpr bool kPairsRows = false;

// Sums of codes[4 r + j] * x[j] over the chunks of a group, a lane for each row r.
template <int width>
class Dot {
 public:
  template <int c>
  void add(u8x64 codes, const int8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, 4);
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t code = width == 8 ? veorq_u8(codes.v[i], vdupq_n_u8(128)) : codes.v[i];
      total_.v[i] = vdotq_s32(total_.v[i], vreinterpretq_s8_u8(code), four);
    }
  }
  i32x16 total() const { return total_; }

 private:
  i32x16 total_ = broadcast_i32(0);
};

}  // namespace minicpm4::ISA
