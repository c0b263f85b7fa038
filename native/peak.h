// How fast the units that products use could compute: multiplications and additions that never leave the registers. Included once for
// each instruction set. Two vectors of weights times some rows of activations, enough that no sum waits for another.
#pragma once

namespace minicpm4::ISA {

constexpr int kPeakVectors = 2;
constexpr int kPeakChunks = 8;  // as many products as sets without a dot product add in 16 bits before they widen

// What is there may have changed and is wanted: nothing is left out, or computed once for all rounds.
inline void keep(const void* data) { asm volatile("" : : "r"(data) : "memory"); }

// Operations done in so many rounds. Loops over sums are unrolled by hand: an array that is indexed would lie in memory.
inline double peak_int8(size_t rounds) {
  constexpr int kSums = kPeakVectors * kPeakCodeRows;
  alignas(64) uint8_t weights[kPeakVectors][64] = {};
  alignas(64) int8_t x[kPeakCodeRows][4 * kPeakChunks] = {};
  i32x16 sums[kSums], result[kSums];
  unroll<kSums>([&](auto i) { sums[i] = broadcast_i32(0); });
  for (size_t round = 0; round < rounds; ++round) {
    keep(weights), keep(x);
    Dot<4> dots[kSums];
    unroll<kPeakChunks>([&](auto c) {
      unroll<kSums>([&](auto i) { dots[i].template add<c>(load_bytes(weights[i / kPeakCodeRows]), x[i % kPeakCodeRows] + 4 * c); });
    });
    unroll<kSums>([&](auto i) { sums[i] = add(sums[i], dots[i].total()); });
  }
  unroll<kSums>([&](auto i) { result[i] = sums[i]; });
  keep(result);
  return 2.0 * 64 * kPeakChunks * kSums * static_cast<double>(rounds);
}

inline double peak_f32(size_t rounds) {
  constexpr int kSums = kPeakVectors * kPeakFloatRows;
  alignas(64) float weights[kPeakVectors][16] = {}, x[kPeakFloatRows] = {};
  f32x16 sums[kSums], result[kSums];
  unroll<kSums>([&](auto i) { sums[i] = broadcast(0.0f); });
  for (size_t round = 0; round < rounds; ++round) {
    keep(weights), keep(x);
    unroll<kSums>([&](auto i) { sums[i] = fma(load(weights[i / kPeakFloatRows]), broadcast(x[i % kPeakFloatRows]), sums[i]); });
  }
  unroll<kSums>([&](auto i) { result[i] = sums[i]; });
  keep(result);
  return 2.0 * 16 * kSums * static_cast<double>(rounds);
}

}  // namespace minicpm4::ISA
