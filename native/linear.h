// Products with packed weights (layout.h), for matrix-vector and matrix-matrix alike: a tile of 16 rows stays in registers
// while up to kRowBlock rows of activations pass. Included once for each instruction set.
#pragma once

namespace minicpm4::ISA {

// Chunk c (4 columns of 16 rows) of a group's codes.
template <int width, int c>
inline u8x64 chunk(const uint8_t* planes) {
  if constexpr (width == 8) return load_bytes(planes + 64 * c);
  if constexpr (width == 2) return bits<2 * (c % 4), 3>(load_bytes(planes + 64 * (c / 4)));
  if constexpr (width == 4) return bits<4 * (c % 2), 15>(load_bytes(planes + 64 * (c / 2)));
  if constexpr (width == 5) return join<4>(chunk<4, c>(planes), bits<c, 1>(load_bytes(planes + 256)));
  if constexpr (width == 6) return join<4>(chunk<4, c>(planes), chunk<2, c>(planes + 256));
}

struct GroupScales {
  f32x16 scale[2], offset[2];  // value = scale * code + offset; [1] for columns 16..31 where halves differ
};

template <Scales kind, int zero>
inline GroupScales group_scales(const uint8_t* section, int group) {
  const uint8_t *own = section + scale_offset(kind, group), *shared = section + super_offset(kind, group);
  const auto halves = [](const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); };
  GroupScales s;
  if constexpr (kind == Scales::plain) s.scale[0] = halves(own);
  if constexpr (kind == Scales::shared) s.scale[0] = halves(shared);
  if constexpr (kind == Scales::affine) {
    s.scale[0] = halves(own);
    s.offset[0] = halves(own + 32);
  } else if constexpr (kind == Scales::k_affine) {
    s.scale[0] = mul(halves(shared), to_f32(widen_u8(own)));
    s.offset[0] = sub(broadcast(0.0f), mul(halves(shared + 32), to_f32(widen_u8(own + 16))));
  } else {
    if constexpr (kind == Scales::k_halves) {
      const f32x16 outer = halves(shared);
      s.scale[0] = mul(outer, to_f32(widen_i8(reinterpret_cast<const int8_t*>(own))));
      s.scale[1] = mul(outer, to_f32(widen_i8(reinterpret_cast<const int8_t*>(own + 16))));
      s.offset[1] = mul(s.scale[1], broadcast(-static_cast<float>(zero)));
    }
    s.offset[0] = mul(s.scale[0], broadcast(-static_cast<float>(zero)));
  }
  return s;
}

// A group against int8 activations: the codes' dot products are exact integers; offsets take the sums of activations.
template <int width, Scales kind, int zero, int rows>
inline void multiply_group(const uint8_t* planes, const uint8_t* section, int group, const Rows& x, int row, f32x16* acc) {
  constexpr bool is_halved = kind == Scales::k_halves, is_signed = width == 8 && kSignedBytes;
  constexpr int effective_zero = is_signed ? zero - 128 : zero;
  const size_t groups = x.columns / kGroupColumns;
  Dot<width> dot[rows][2];  // [1] for columns 16..31 where halves differ
  unroll<8>([&](auto c) {
    constexpr int half = is_halved && c >= 4;
    const u8x64 codes = chunk<width, c>(planes);
    for (int r = 0; r < rows; ++r)
      dot[r][half].template add<is_halved ? c % 4 : c()>(codes, x.codes + static_cast<size_t>(row + r) * x.columns + kGroupColumns * group + 4 * c);
  });
  const GroupScales s = group_scales<kind, effective_zero>(section, group);
  for (int r = 0; r < rows; ++r) {
    const size_t at = (row + r) * groups + group;
    const f32x16 scale = broadcast(x.scales[at]);
    acc[r] = fma(mul(s.scale[0], scale), to_f32(dot[r][0].total()), acc[r]);
    if constexpr (is_halved) {
      acc[r] = fma(mul(s.scale[1], scale), to_f32(dot[r][1].total()), acc[r]);
      acc[r] = fma(s.offset[0], broadcast(x.half_sums[2 * at]), acc[r]);
      acc[r] = fma(s.offset[1], broadcast(x.half_sums[2 * at + 1]), acc[r]);
    } else if constexpr (effective_zero != 0 || kind == Scales::affine || kind == Scales::k_affine) {
      acc[r] = fma(s.offset[0], broadcast(x.sums[at]), acc[r]);
    }
  }
}

// A group against float32 activations: the weights are decoded, four columns at a time.
template <int width, Scales kind, int zero, int rows>
inline void multiply_group_f32(const uint8_t* planes, const uint8_t* section, int group, const Rows& x, int row, f32x16* acc) {
  const GroupScales s = group_scales<kind, zero>(section, group);
  unroll<8>([&](auto c) {
    constexpr int half = kind == Scales::k_halves && c >= 4;
    const u8x64 codes = chunk<width, c>(planes);
    unroll<4>([&](auto j) {
      const f32x16 weight = fma(s.scale[half], byte_as_f32<j>(codes), s.offset[half]);
      for (int r = 0; r < rows; ++r) {
        acc[r] = fma(weight, broadcast(x.values[(row + r) * x.stride + kGroupColumns * group + 4 * c + j]), acc[r]);
      }
    });
  });
}

template <Format format, bool is_int8, int rows>
void multiply_quantized(const uint8_t* tile, const Rows& x, int row, float* out, size_t out_stride) {
  constexpr Layout layout = layout_of(format);
  const uint8_t* section = tile + code_bytes(layout, x.columns);
  f32x16 acc[rows];
  for (int r = 0; r < rows; ++r) acc[r] = broadcast(0.0f);
  for (int g = 0; g < x.columns / kGroupColumns; ++g) {
    const uint8_t* planes = tile + static_cast<size_t>(64) * layout.bits * g;
    if constexpr (is_int8) multiply_group<layout.bits, layout.scales, layout.zero, rows>(planes, section, g, x, row, acc);
    else multiply_group_f32<layout.bits, layout.scales, layout.zero, rows>(planes, section, g, x, row, acc);
  }
  for (int r = 0; r < rows; ++r) store(out + (row + r) * out_stride, acc[r]);
}

template <Format format>
inline f32x16 load_dense(const uint8_t* p) {
  if constexpr (format == Format::f32) return load(reinterpret_cast<const float*>(p));
  if constexpr (format == Format::f16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (format == Format::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
}

template <Format format, bool, int rows>
void multiply_dense(const uint8_t* tile, const Rows& x, int row, float* out, size_t out_stride) {
  constexpr size_t column_bytes = kTileRows * layout_of(format).bits / 8;
  f32x16 acc[rows][4];  // columns by their index modulo 4: four chains hide the latency of one
  for (int r = 0; r < rows; ++r) for (auto& chain : acc[r]) chain = broadcast(0.0f);
  const auto step = [&](int k, int chain) {
    const f32x16 weight = load_dense<format>(tile + k * column_bytes);
    for (int r = 0; r < rows; ++r) acc[r][chain] = fma(weight, broadcast(x.values[(row + r) * x.stride + k]), acc[r][chain]);
  };
  int k = 0;
  for (; k + 4 <= x.columns; k += 4) unroll<4>([&](auto j) { step(k + j, j); });
  for (; k < x.columns; ++k) step(k, k % 4);
  for (int r = 0; r < rows; ++r) store(out + (row + r) * out_stride, add(add(acc[r][0], acc[r][1]), add(acc[r][2], acc[r][3])));
}

template <Format format, bool is_int8, int rows>
inline void multiply_tile(const uint8_t* tile, const Rows& x, int row, float* out, size_t out_stride) {
  if constexpr (layout_of(format).scales == Scales::none) multiply_dense<format, is_int8, rows>(tile, x, row, out, out_stride);
  else multiply_quantized<format, is_int8, rows>(tile, x, row, out, out_stride);
}

// Blocks of rows outside, tiles inside: the caller keeps the tiles few enough to stay in cache.
template <Format format, bool is_int8>
void multiply_block(const Weight& w, int first_tile, int last_tile, const Rows& x, int row, int last_row, float* out, size_t out_stride) {
  constexpr int block = is_int8 ? kRowBlock : kRowBlock / 2;  // float products need more registers a row
  const auto run = [&](auto rows) {
    for (; row + rows <= last_row; row += rows)
      for (int t = first_tile; t < last_tile; ++t) multiply_tile<format, is_int8, rows>(w.tile(t), x, row, out + kTileRows * t, out_stride);
  };
  if constexpr (block >= 8) run(std::integral_constant<int, 8>{});
  if constexpr (block >= 4) run(std::integral_constant<int, 4>{});
  if constexpr (block >= 2) run(std::integral_constant<int, 2>{});
  run(std::integral_constant<int, 1>{});
}

inline void multiply(const Weight& w, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out, size_t out_stride) {
  unroll<kNumFormats>([&](auto index) {
    constexpr Format format = static_cast<Format>(index());
    if (w.format != format) return;
    if constexpr (layout_of(format).scales != Scales::none)
      if (x.codes) return multiply_block<format, true>(w, first_tile, last_tile, x, first_row, last_row, out, out_stride);
    multiply_block<format, false>(w, first_tile, last_tile, x, first_row, last_row, out, out_stride);
  });
}

}  // namespace minicpm4::ISA
