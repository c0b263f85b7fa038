// Pieces that linear.h, attention.h and elementwise.h share. Included once for each instruction set, inside its namespace ISA.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))  // where accumulators must stay in registers

namespace minicpm4::ISA {

template <class F, int... c>
ALWAYS_INLINE void unroll(F f, std::integer_sequence<int, c...>) {
  (f(std::integral_constant<int, c>{}), ...);
}
template <int n, class F>
ALWAYS_INLINE void unroll(F f) {
  unroll(f, std::make_integer_sequence<int, n>{});
}

// e^x to 2 ulp for x in [-87, 88], clamped outside: Cody-Waite reduction, a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
inline f32x16 exp(f32x16 x) {
  x = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
  const f32x16 whole = round(mul(x, broadcast(1.44269504f)));
  const f32x16 r = fma(whole, broadcast(2.12194440e-4f), fma(whole, broadcast(-0.693359375f), x));
  f32x16 p = broadcast(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, broadcast(c));
  return times_power_of_two(p, whole);
}

// 2^x to 2 ulp for x in [-126, 0], clamped below, NaN of NaN: the Taylor polynomial of degree 6 on [-1/2, 1/2].
inline f32x16 exp2(f32x16 x) {
  x = max(broadcast(-126.0f), x);  // of a NaN and a number, x86 gives the second
  const f32x16 whole = round(x), r = sub(x, whole);
  f32x16 p = broadcast(1.540353039e-4f);
  for (const float c : {1.333355815e-3f, 9.618129108e-3f, 5.550410866e-2f, 2.402265070e-1f, 6.931471806e-1f, 1.0f}) p = fma(p, r, broadcast(c));
  return times_power_of_two(p, whole);
}

// Codes as their bytes; low is null where a code is one byte. See Codes.
inline void store_codes(i32x16 code, int8_t* high, int8_t* low) {
  if (!low) return store_i8(high, code);
  const f32x16 whole = to_f32(code), upper = round(mul(whole, broadcast(1.0f / kHighCode)));
  store_i8(high, round_i32(upper));
  store_i8(low, round_i32(sub(whole, mul(upper, broadcast(kHighCode)))));
}

}  // namespace minicpm4::ISA
