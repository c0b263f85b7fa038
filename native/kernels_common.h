// Pieces that linear.h, attention.h and elementwise.h share. Included once for each instruction set, inside its namespace ISA.
#pragma once

namespace minicpm4::ISA {

template <class F, int... c>
inline void unroll(F f, std::integer_sequence<int, c...>) {
  (f(std::integral_constant<int, c>{}), ...);
}
template <int n, class F>
inline void unroll(F f) {
  unroll(f, std::make_integer_sequence<int, n>{});
}

// e^x to 2 ulp for x in [-87, 88], clamped outside: Cody-Waite reduction, a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
inline f32x16 exp(f32x16 x) {
  x = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
  const i32x16 n = round_i32(mul(x, broadcast(1.44269504f)));
  const f32x16 whole = to_f32(n);
  const f32x16 r = fma(whole, broadcast(2.12194440e-4f), fma(whole, broadcast(-0.693359375f), x));
  f32x16 p = broadcast(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, broadcast(c));
  return times_power_of_two(p, n);
}

}  // namespace minicpm4::ISA
