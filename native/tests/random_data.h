// Random weights and activations for tests of kernels, in the forms that kernels read.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../half.h"
#include "../kernels.h"
#include "../packing.h"

namespace minicpm4 {

inline std::mt19937 generator(7);

inline float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

inline std::vector<float> random_floats(size_t count) {
  std::vector<float> values(count);
  for (float& v : values) v = uniform(-2, 2);
  return values;
}

// 64-byte aligned bytes, as the executor allocates them.
struct Aligned {
  explicit Aligned(size_t size) : bytes(size + 64), data(bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64)) {}
  std::vector<uint8_t> bytes;
  uint8_t* data;
};

// Random stored blocks whose scales are ordinary numbers: every code occurs, no scale is infinite.
inline std::vector<uint8_t> random_stored(Format format, size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(generator());
  const auto put_half = [&](size_t at, float x) {
    const uint16_t half = f32_to_f16(x);
    std::memcpy(&bytes[at], &half, 2);
  };
  const size_t block = block_bytes(format);
  for (size_t at = 0; at < count; at += block) {
    switch (format) {
      case Format::f32: {
        const float x = uniform(-2, 2);
        std::memcpy(&bytes[at], &x, 4);
        break;
      }
      case Format::f16: put_half(at, uniform(-2, 2)); break;
      case Format::bf16: {
        const uint32_t bits = f32_to_bits(uniform(-2, 2));
        bytes[at] = static_cast<uint8_t>(bits >> 16), bytes[at + 1] = static_cast<uint8_t>(bits >> 24);
        break;
      }
      case Format::q4_1: case Format::q5_1: case Format::q4_k: case Format::q5_k:
        put_half(at, uniform(-0.1f, 0.1f)), put_half(at + 2, uniform(-1, 1));
        break;
      case Format::q6_k: case Format::tq1_0: case Format::tq2_0: case Format::ternary_g32: case Format::ternary_g64: case Format::ternary_g128: case Format::ternary_g256:
        put_half(at + block - 2, uniform(-0.1f, 0.1f)); break;
      default: put_half(at, uniform(-0.1f, 0.1f));
    }
  }
  return bytes;
}

// Room for the codes of some rows. code_bytes: 0 for none, 1, or 2.
struct CodeStore {
  CodeStore(int count, int columns, int code_bytes) : code_bytes(code_bytes), high(count * columns), low(high), scales(count * columns / 16), halves(scales) {}
  Codes view() {
    return {code_bytes ? high.data() : nullptr, code_bytes == 2 ? low.data() : nullptr, scales.data(), halves.data()};
  }
  int code(int at) const { return code_bytes == 2 ? kHighCode * high[at] + low[at] : high[at]; }
  double value(int at) const { return static_cast<double>(scales[at / 32]) * code(at); }

  int code_bytes;
  std::vector<int8_t> high, low;
  std::vector<float> scales, halves;
};

struct Activations {
  Activations(const Kernels& k, int count, int columns, int code_bytes) : stride(round_up(columns, 16)), values(count * stride), codes(count, columns, code_bytes) {
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < columns; ++c) values[i * stride + c] = uniform(-3, 3);
      if (code_bytes) k.quantize(&values[i * stride], columns, codes.view().from(static_cast<size_t>(i) * columns));
    }
  }
  Rows rows(int columns) { return {values.data(), stride, columns, codes.view(), {}}; }

  size_t stride;
  std::vector<float> values;
  CodeStore codes;
};

struct RandomWeight {
  RandomWeight(Format format, int rows, int columns)
      : view{kernel_format(format), rows, columns, tile_bytes_of(format, columns), nullptr}, packed(view.tile_bytes * view.num_tiles()) {
    const size_t row_bytes = columns / block_columns(format) * block_bytes(format);
    const std::vector<uint8_t> stored = random_stored(format, rows * row_bytes);
    view.data = packed.data;
    for (int t = 0; t < view.num_tiles(); ++t) pack_tile(format, stored.data(), row_bytes, rows, columns, t, packed.data + view.tile_bytes * t);
  }

  Weight view;
  Aligned packed;
};

}  // namespace minicpm4
