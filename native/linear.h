// Products with packed weights (layout.h), for matrix-vector and matrix-matrix alike: a tile of 16 rows stays in registers
// while up to kRowBlock rows of activations pass. Included once for each instruction set.
#pragma once

namespace minicpm4::ISA {

// Chunk c (4 columns of 16 rows) of a group's codes.
template <int width, int c>
ALWAYS_INLINE u8x64 chunk(const uint8_t* planes) {
  if constexpr (width == 8) return load_bytes(planes + 64 * c);
  if constexpr (width == 2) return bits<2 * (c % 4), 3>(load_bytes(planes + 64 * (c / 4)));
  if constexpr (width == 4) return bits<4 * (c % 2), 15>(load_bytes(planes + 64 * (c / 2)));
  if constexpr (width == 5) return join<4>(chunk<4, c>(planes), bits<c, 1>(load_bytes(planes + 256)));
  if constexpr (width == 6) return join<4>(chunk<4, c>(planes), chunk<2, c>(planes + 256));
}

// How far ahead of the codes in work memory is asked for.
constexpr size_t prefetch_bytes(int bits) { return bits == 8 ? kPrefetchOfBytes : kPrefetch; }

// What a thread reads: up to `end`, and then from `next` on.
struct Stream {
  const uint8_t *end, *next;

  const uint8_t* ahead_of(const uint8_t* at, int bits) const {
    at += prefetch_bytes(bits);
    return at < end ? at : next + (at - end);
  }
};

struct GroupScales {
  f32x16 scale[2], offset[2];  // value = scale * code + offset; [1] for columns 16..31 where halves differ
};

template <Scales kind, int zero>
ALWAYS_INLINE GroupScales group_scales(const uint8_t* shared, const uint8_t* own) {
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

// What Dot<width> is to a row, for two rows at once; only where kPairsRows.
template <int width>
class PairDot;
template <int rows>
constexpr bool kIsPaired = kPairsRows && rows % 2 == 0;

// Dot products with a group, in lanes of weight rows; code bytes are summed as exact integers. Sums: the Dot of a row, or the PairDot
// of two, which says one total at a time. terms: bytes of a code.
template <class Sums, int terms, int num_rows = 1>
struct GroupDot {
  Sums high, low;

  // x_high, x_low: each row's codes, from `at` on; x_low is not read where a code is one byte.
  template <int c>
  ALWAYS_INLINE void add(u8x64 weights, const int8_t* const* x_high, const int8_t* const* x_low, size_t at) {
    add_bytes<c>(high, weights, x_high, at);
    if constexpr (terms == 2) add_bytes<c>(low, weights, x_low, at);
  }
  f32x16 total(auto... index) const {
    if constexpr (terms == 2) return fma(to_f32(high.total(index...)), broadcast(kHighCode), to_f32(low.total(index...)));
    return to_f32(high.total(index...));
  }

 private:
  template <int c>
  ALWAYS_INLINE static void add_bytes(Sums& sums, u8x64 weights, const int8_t* const* x, size_t at) {
    if constexpr (num_rows == 2) sums.template add<c>(weights, x[0] + at, x[1] + at);
    else sums.template add<c>(weights, x[0] + at);
  }
};

// Coded activations of some rows, within reach: where each row's codes are, and a block's scales and sums. The sums are, of formats with a
// zero, what the zero adds to the dot products, so that it is taken off before they are scaled; of those with offsets, the sums of
// activations. One a group, or of k_halves one a half.
template <Scales kind, int zero, int terms, int rows>
struct CodedRows {
  static constexpr bool is_affine = kind == Scales::affine || kind == Scales::k_affine;
  static constexpr int parts = kind == Scales::k_halves ? 2 : 1;
  const int8_t *high[rows], *low[terms == 2 ? rows : 1];
  const float *all_scales, *all_sums;
  size_t groups;
  float scales[rows][kBlockGroups], sums[rows][kBlockGroups * parts];

  CodedRows(const Rows& x, int row) : groups(x.columns / kGroupColumns) {
    const size_t at = static_cast<size_t>(row) * x.columns;
    for (int r = 0; r < rows; ++r) {
      high[r] = x.codes.high + at + static_cast<size_t>(r) * x.columns;
      if constexpr (terms == 2) low[r] = x.codes.low + at + static_cast<size_t>(r) * x.columns;
    }
    all_scales = x.codes.scales + row * groups;
    all_sums = x.codes.half_sums + 2 * row * groups;
  }

  void reach_block(int first_group, int count) {
    if (count == kBlockGroups) return reach<kBlockGroups>(first_group, 0);
    for (int i = 0; i < count; ++i) reach<1>(first_group + i, i);
  }

 private:
  template <int count>
  void reach(int first_group, int at) {
    for (int r = 0; r < rows; ++r) {
      const float *scale = all_scales + r * groups + first_group, *halves = all_sums + 2 * (r * groups + first_group);
      for (int i = 0; i < count; ++i) scales[r][at + i] = scale[i];
      if constexpr (parts == 2 && zero != 0) {
        for (int i = 0; i < 2 * count; ++i) sums[r][2 * at + i] = zero * halves[i];
      } else if constexpr (is_affine || (parts == 1 && zero != 0)) {
        for (int i = 0; i < count; ++i) sums[r][at + i] = (is_affine ? scale[i] : zero) * (halves[2 * i] + halves[2 * i + 1]);
      }
    }
  }
};

// A group against coded activations.
template <int width, Scales kind, int zero, int terms, int rows>
ALWAYS_INLINE void multiply_group(const uint8_t* planes, const uint8_t* shared, const uint8_t* own, int group,
                                  const CodedRows<kind, zero, terms, rows>& x, f32x16* acc) {
  using Coded = CodedRows<kind, zero, terms, rows>;
  constexpr int parts = Coded::parts, together = kIsPaired<rows> ? 2 : 1;
  const size_t column = static_cast<size_t>(group) * kGroupColumns;
  using Sums = std::conditional_t<together == 2, PairDot<width>, Dot<width>>;
  GroupDot<Sums, terms, together> dot[rows / together][parts];
  unroll<8>([&](auto c) {
    constexpr int half = parts == 2 && c >= 4;
    const u8x64 weights = chunk<width, c>(planes);
    unroll<rows / together>([&](auto i) {
      dot[i][half].template add<parts == 2 ? c % 4 : c()>(weights, x.high + together * i, x.low + (terms == 2 ? together * i : 0), column + 4 * c);
    });
  });
  const auto total_of = [&](int r, int half) {
    if constexpr (together == 2) return dot[r / 2][half].total(r % 2);
    else return dot[r][half].total();
  };
  const GroupScales s = group_scales<kind, 0>(shared, own);
  const int index = group % kBlockGroups;
  unroll<rows>([&](auto r) {
    const f32x16 scale = broadcast(x.scales[r][index]);
    unroll<parts>([&](auto half) {
      f32x16 total = total_of(r, half);
      if constexpr (zero != 0) total = sub(total, broadcast(x.sums[r][parts * index + half]));
      acc[r] = fma(mul(s.scale[half], scale), total, acc[r]);
    });
    if constexpr (Coded::is_affine) acc[r] = fma(s.offset[0], broadcast(x.sums[r][index]), acc[r]);
  });
}

// A group against float32 activations: the weights are decoded, four columns at a time.
template <int width, Scales kind, int zero, int rows>
ALWAYS_INLINE void multiply_group_f32(const uint8_t* planes, const uint8_t* shared, const uint8_t* own, int group, const Rows& x, int row, f32x16* acc) {
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

// Calls block(first group, groups) for each block of a tile, and group(codes, shared scales, own scales, index) for each group of it.
template <Format format, class Block, class Group>
ALWAYS_INLINE void each_group(const uint8_t* tile, const Stream& stream, int columns, Block block, Group group) {
  constexpr Layout layout = layout_of(format);
  constexpr size_t step = round_up(tile_block_bytes(layout, kBlockGroups) / kBlockGroups, 64);
  const int groups = columns / kGroupColumns;
  for (int first = 0; first < groups; first += kBlockGroups) {
    const int count = groups - first < kBlockGroups ? groups - first : kBlockGroups;
    const uint8_t *shared = tile + count * group_code_bytes(layout), *own = shared + super_scale_bytes(layout.scales);
    const uint8_t* start = tile;
    block(first, count);
    for (int i = 0; i < count; ++i) {
      const uint8_t* ahead = stream.ahead_of(start + i * step, layout.bits);
      for (size_t line = 0; line < step; line += 64) __builtin_prefetch(ahead + line);
      group(tile, shared, own + i / layout.scale_groups * group_scale_bytes(layout.scales), first + i);
      tile += group_code_bytes(layout);
    }
    tile = own + own_scale_bytes(layout, count);
  }
}

// terms: bytes of the activations' codes, 0 for float32 activations.
template <Format format, int terms, int rows>
void multiply_quantized(const uint8_t* tile, const Stream& stream, const Rows& x, int row, float* out, size_t out_stride) {
  constexpr Layout layout = layout_of(format);
  constexpr int zero = layout.bits == 8 && kSignedBytes ? layout.zero - 128 : layout.zero;  // of the codes that Dot sums
  f32x16 acc[rows];
  unroll<rows>([&](auto r) { acc[r] = broadcast(0.0f); });
  if constexpr (terms > 0) {
    CodedRows<layout.scales, zero, terms, rows> coded(x, row);
    each_group<format>(
        tile, stream, x.columns, [&](int first, int count) { coded.reach_block(first, count); },
        [&](const uint8_t* codes, const uint8_t* shared, const uint8_t* own, int group) {
          multiply_group<layout.bits, layout.scales, zero, terms, rows>(codes, shared, own, group, coded, acc);
        });
  } else {
    each_group<format>(tile, stream, x.columns, [](int, int) {}, [&](const uint8_t* codes, const uint8_t* shared, const uint8_t* own, int group) {
      multiply_group_f32<layout.bits, layout.scales, layout.zero, rows>(codes, shared, own, group, x, row, acc);
    });
  }
  unroll<rows>([&](auto r) { store(out + (row + r) * out_stride, acc[r]); });
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
    const uint8_t* ahead = stream.ahead_of(tile + k * column_bytes, layout_of(format).bits);
    for (size_t line = 0; line < 4 * column_bytes; line += 64) __builtin_prefetch(ahead + line);
    unroll<4>([&](auto j) { step(k + j, j); });
  }
  for (; k < x.columns; ++k) step(k, k % 4);
  for (int r = 0; r < rows; ++r) store(out + (row + r) * out_stride, add(add(acc[r][0], acc[r][1]), add(acc[r][2], acc[r][3])));
}

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
