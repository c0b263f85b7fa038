// Row-wise operations of the forward pass. Included once for each instruction set.
#pragma once

namespace minicpm4::ISA {

inline void quantize(const float* x, int columns, const Codes& out) {
  const float largest = kLargestCode[out.low != nullptr];
  for (int half = 0; half < columns / 16; half += 2) {
    const f32x16 values[2] = {load(x + 16 * half), load(x + 16 * half + 16)};
    // As whole numbers, bits of magnitudes are in order, NaN above all. x - x is 0, or NaN where x is not finite.
    const float top = bits_to_f32(max_lane(max(bits_of(abs(values[0])), bits_of(abs(values[1])))));
    const float scale = top / largest + (top - top);
    const f32x16 inverse = broadcast(scale >= __FLT_MIN__ ? 1.0f / scale : 0.0f);  // smaller ones have no finite reciprocal
    for (int i = half; i < half + 2; ++i) {
      const i32x16 code = round_i32(mul(values[i - half], inverse));
      store_codes(code, out.high + 16 * i, out.low ? out.low + 16 * i : nullptr);
      out.half_sums[i] = static_cast<float>(sum(code));
    }
    out.scales[half / 2] = scale;
  }
}

inline void rms_norm(const float* x, const float* weight, int columns, float eps, float* out, int n) {
  f32x16 squares = broadcast(0.0f);
  for (int i = 0; i < n; i += 16) {
    const f32x16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  const f32x16 inverse = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(columns) + eps));
  for (int i = 0; i < n; i += 16) store(out + i, mul(mul(load(x + i), inverse), load(weight + i)));
}

inline void add_scaled(const float* x, const float* y, float factor, float* out, int n) {
  const f32x16 f = broadcast(factor);
  for (int i = 0; i < n; i += 16) store(out + i, fma(load(y + i), f, load(x + i)));
}

inline void scale(const float* x, float factor, float* out, int n) {
  const f32x16 f = broadcast(factor);
  for (int i = 0; i < n; i += 16) store(out + i, mul(load(x + i), f));
}

inline void swiglu(const float* gate, const float* up, float* out, int n) {
  const f32x16 one = broadcast(1.0f), zero = broadcast(0.0f);
  for (int i = 0; i < n; i += 16) {
    const f32x16 g = load(gate + i);
    store(out + i, mul(div(g, add(one, exp(sub(zero, g)))), load(up + i)));
  }
}

inline void rope(const float* x, const float* cosines, const float* sines, int num_heads, int head_dim, float* out) {
  const int half = head_dim / 2;
  for (int h = 0; h < num_heads; ++h, x += head_dim, out += head_dim) {
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      out[i] = a * cosines[i] - b * sines[i];
      out[i + half] = b * cosines[i] + a * sines[i];
    }
  }
}

inline float read_all(const float* data, size_t count) {
  f32x16 total[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  for (size_t i = 0; i + 64 <= count; i += 64) unroll<4>([&](auto j) { total[j] = add(total[j], load(data + i + 16 * j)); });
  return sum(add(add(total[0], total[1]), add(total[2], total[3])));
}

}  // namespace minicpm4::ISA
