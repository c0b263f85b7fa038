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

// How far ahead of the codes in work memory is asked for. A core then reads 25 to 31 GB/s of 4-bit weights instead of 12, and 23 or
// more of other formats (EPYC with AVX-512 VNNI, 2026-11-24; 1024 is up to 30 % slower, 8192 the same).
constexpr size_t kPrefetchBytes = 4096;

// What a thread reads: up to `end`, and then from `next` on.
struct Stream {
  const uint8_t *end, *next;

  const uint8_t* ahead_of(const uint8_t* at) const {
    at += kPrefetchBytes;
    return at < end ? at : next + (at - end);
  }
};

struct GroupScales {
  f32x16 scale[2], offset[2];  // value = scale * code + offset; [1] for columns 16..31 where halves differ
};

template <Scales kind, int zero>
inline GroupScales group_scales(const uint8_t* shared, const uint8_t* own) {
  const auto halves = [](const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); };
  GroupScales s;
  if constexpr (kind == Scales::plain) s.scale[0] = halves(own);
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

// A row's dot products with a group, in lanes of weight rows; code bytes are summed as exact integers. terms: bytes of a code.
template <int width, int terms>
struct GroupDot {
  Dot<width> high, low;

  template <int c>
  void add(u8x64 weights, const Codes& x, size_t at) {
    high.template add<c>(weights, x.high + at);
    if constexpr (terms == 2) low.template add<c>(weights, x.low + at);
  }
  f32x16 total() const {
    if constexpr (terms == 2) return fma(to_f32(high.total()), broadcast(kHighCode), to_f32(low.total()));
    return to_f32(high.total());
  }
};

// A group against coded activations; offsets take the sums of activations.
template <int width, Scales kind, int zero, int terms, int rows>
inline void multiply_group(const uint8_t* planes, const uint8_t* shared, const uint8_t* own, int group, const Rows& x, int row, f32x16* acc) {
  constexpr bool is_halved = kind == Scales::k_halves, is_signed = width == 8 && kSignedBytes;
  constexpr int effective_zero = is_signed ? zero - 128 : zero;
  const size_t groups = x.columns / kGroupColumns;
  GroupDot<width, terms> dot[rows][2];  // [1] for columns 16..31 where halves differ
  unroll<8>([&](auto c) {
    constexpr int half = is_halved && c >= 4;
    const u8x64 weights = chunk<width, c>(planes);
    for (int r = 0; r < rows; ++r)
      dot[r][half].template add<is_halved ? c % 4 : c()>(weights, x.codes, static_cast<size_t>(row + r) * x.columns + kGroupColumns * group + 4 * c);
  });
  const GroupScales s = group_scales<kind, effective_zero>(shared, own);
  for (int r = 0; r < rows; ++r) {
    const size_t at = (row + r) * groups + group;
    const f32x16 scale = broadcast(x.codes.scales[at]);
    acc[r] = fma(mul(s.scale[0], scale), dot[r][0].total(), acc[r]);
    if constexpr (is_halved) {
      acc[r] = fma(mul(s.scale[1], scale), dot[r][1].total(), acc[r]);
      acc[r] = fma(s.offset[0], broadcast(x.codes.half_sums[2 * at]), acc[r]);
      acc[r] = fma(s.offset[1], broadcast(x.codes.half_sums[2 * at + 1]), acc[r]);
    } else if constexpr (effective_zero != 0 || kind == Scales::affine || kind == Scales::k_affine) {
      acc[r] = fma(s.offset[0], broadcast(x.codes.sums[at]), acc[r]);
    }
  }
}

// A group against float32 activations: the weights are decoded, four columns at a time.
template <int width, Scales kind, int zero, int rows>
inline void multiply_group_f32(const uint8_t* planes, const uint8_t* shared, const uint8_t* own, int group, const Rows& x, int row, f32x16* acc) {
  const GroupScales s = group_scales<kind, zero>(shared, own);
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

template <Format format, int terms, int rows>
void multiply_quantized(const uint8_t* tile, const Stream& stream, const Rows& x, int row, float* out, size_t out_stride) {
  constexpr Layout layout = layout_of(format);
  f32x16 acc[rows];
  for (int r = 0; r < rows; ++r) acc[r] = broadcast(0.0f);
  const int groups = x.columns / kGroupColumns;
  for (int first = 0; first < groups; first += kBlockGroups) {
    const int count = groups - first < kBlockGroups ? groups - first : kBlockGroups;
    const uint8_t *shared = tile + count * group_code_bytes(layout), *own = shared + super_scale_bytes(layout.scales);
    const uint8_t* block = tile;
    constexpr size_t step = round_up(tile_block_bytes(layout, kBlockGroups) / kBlockGroups, 64);
    for (int i = 0; i < count; ++i) {
      const uint8_t* ahead = stream.ahead_of(block + i * step);
      for (size_t line = 0; line < step; line += 64) __builtin_prefetch(ahead + line);
      const uint8_t* scales = own + i / layout.scale_groups * group_scale_bytes(layout.scales);
      if constexpr (terms > 0) multiply_group<layout.bits, layout.scales, layout.zero, terms, rows>(tile, shared, scales, first + i, x, row, acc);
      else multiply_group_f32<layout.bits, layout.scales, layout.zero, rows>(tile, shared, scales, first + i, x, row, acc);
      tile += group_code_bytes(layout);
    }
    tile = own + own_scale_bytes(layout, count);
  }
  for (int r = 0; r < rows; ++r) store(out + (row + r) * out_stride, acc[r]);
}

template <Format format>
inline f32x16 load_dense(const uint8_t* p) {
  if constexpr (format == Format::f32) return load(reinterpret_cast<const float*>(p));
  if constexpr (format == Format::f16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (format == Format::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
}

template <Format format, int rows>
void multiply_dense(const uint8_t* tile, const Stream& stream, const Rows& x, int row, float* out, size_t out_stride) {
  constexpr size_t column_bytes = kTileRows * layout_of(format).bits / 8;
  f32x16 acc[rows][4];  // columns by their index modulo 4: four chains hide the latency of one
  for (int r = 0; r < rows; ++r) for (auto& chain : acc[r]) chain = broadcast(0.0f);
  const auto step = [&](int k, int chain) {
    const f32x16 weight = load_dense<format>(tile + k * column_bytes);
    for (int r = 0; r < rows; ++r) acc[r][chain] = fma(weight, broadcast(x.values[(row + r) * x.stride + k]), acc[r][chain]);
  };
  int k = 0;
  for (; k + 4 <= x.columns; k += 4) {
    const uint8_t* ahead = stream.ahead_of(tile + k * column_bytes);
    for (size_t line = 0; line < 4 * column_bytes; line += 64) __builtin_prefetch(ahead + line);
    unroll<4>([&](auto j) { step(k + j, j); });
  }
  for (; k < x.columns; ++k) step(k, k % 4);
  for (int r = 0; r < rows; ++r) store(out + (row + r) * out_stride, add(add(acc[r][0], acc[r][1]), add(acc[r][2], acc[r][3])));
}

// terms: bytes of the activations' codes, 0 for float32 activations.
template <Format format, int terms, int rows>
inline void multiply_tile(const uint8_t* tile, const Stream& stream, const Rows& x, int row, float* out, size_t out_stride) {
  if constexpr (layout_of(format).scales == Scales::none) multiply_dense<format, rows>(tile, stream, x, row, out, out_stride);
  else multiply_quantized<format, terms, rows>(tile, stream, x, row, out, out_stride);
}

// Blocks of rows outside, tiles inside: the caller keeps the tiles few enough to stay in cache.
template <Format format, int terms>
void multiply_block(const Weight& w, int first_tile, int last_tile, const Rows& x, int row, int last_row, float* out, size_t out_stride,
                    const uint8_t* next) {
  const Stream stream{w.tile(last_tile), next};
  constexpr int block = terms == 1 ? kRowBlock : kRowBlock / 2;  // two bytes, and float products, need more registers a row
  const auto run = [&](auto rows) {
    for (; row + rows <= last_row; row += rows)
      for (int t = first_tile; t < last_tile; ++t) multiply_tile<format, terms, rows>(w.tile(t), stream, x, row, out + kTileRows * t, out_stride);
  };
  if constexpr (block >= 8) run(std::integral_constant<int, 8>{});
  if constexpr (block >= 4) run(std::integral_constant<int, 4>{});
  if constexpr (block >= 2) run(std::integral_constant<int, 2>{});
  run(std::integral_constant<int, 1>{});
}

template <Format format>
void multiply_as(const Weight& w, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out, size_t out_stride,
                 const uint8_t* next) {
  if constexpr (layout_of(format).scales != Scales::none) {
    if (x.codes.low) return multiply_block<format, 2>(w, first_tile, last_tile, x, first_row, last_row, out, out_stride, next);
    if (x.codes.high) return multiply_block<format, 1>(w, first_tile, last_tile, x, first_row, last_row, out, out_stride, next);
  }
  multiply_block<format, 0>(w, first_tile, last_tile, x, first_row, last_row, out, out_stride, next);
}

inline void multiply(const Weight& w, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out, size_t out_stride,
                     const uint8_t* next) {
  unroll<kNumFormats>([&](auto index) {
    constexpr Format format = static_cast<Format>(index());
    if constexpr (kernel_format(format) != format) return;
    else if (w.format == format) multiply_as<format>(w, first_tile, last_tile, x, first_row, last_row, out, out_stride, next);
  });
}

}  // namespace minicpm4::ISA
