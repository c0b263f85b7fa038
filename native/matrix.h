// Products with packed weights by a unit that multiplies 8-bit matrices: 16 rows of activations against the 16 rows of a tile, a
// group at a time, in integers; then scaled and summed in the same order, and so to the same bits, as linear.h does.
#pragma once

// Lambdas that touch accumulators: as calls, they would keep these in memory.
#define INLINED __attribute__((always_inline))

namespace minicpm4::ISA {

constexpr int kTilesTogether = 4;  // that share a block's activations while these are in the first cache
// The unit works on this group while sums of the one so many groups before are scaled: those were written long enough ago to be read
// without waiting (Xeon with AMX, 2026-11-25: 880 Gop/s a core with 2, 810 with 3, 750 with 1 or all 8).
constexpr int kGroupsAhead = 2, kSumsKept = 4;

// A block's groups of a tile, decoded: codes as the unit reads them, scales as floats.
template <int parts>
struct DecodedBlock {
  alignas(64) uint8_t codes[kBlockGroups][kGroupColumns * kTileRows];
  alignas(64) float scales[kBlockGroups][parts][kTileRows], offsets[kBlockGroups][kTileRows];
};

template <Format format, int terms>
struct MatrixProduct {
  static constexpr Layout layout = layout_of(format);
  // Codes lose their zero when they are decoded, if sums with it and without stay below 2^24, where float32 is exact.
  static constexpr bool is_centred = layout.zero != 0 && (terms == 1 || layout.bits <= 4);
  static constexpr int zero = is_centred ? 0 : layout.zero;
  using Coded = CodedRows<layout.scales, zero, terms, kMatrixRows>;
  static constexpr int parts = Coded::parts;
  using Block = DecodedBlock<parts>;

  // Sums of codes of one group: [part][row of activations][16 lanes].
  struct Sums {
    alignas(64) int32_t high[parts][kMatrixRows][kTileRows], low[terms == 2 ? parts : 0][kMatrixRows][kTileRows];
  };

  // Decodes `count` groups of the tile from group `first` on.
  static void decode(const uint8_t* tile, int columns, int first, int count, Block& out) {
    for (int i = 0; i < count; ++i) {
      const GroupPlace place = place_of(layout, columns, first + i);
      unroll<8>([&](auto c) {
        const u8x64 codes = chunk<layout.bits, c>(tile + place.codes);
        store_bytes(out.codes[i] + 64 * c, is_centred ? subtract_bytes<layout.zero>(codes) : codes);
      });
      const GroupScales s = group_scales<layout.scales, 0>(tile + place.shared, tile + place.own);
      unroll<parts>([&](auto part) { store(out.scales[i][part], s.scale[part]); });
      if constexpr (Coded::is_affine) store(out.offsets[i], s.offset[0]);
    }
  }

  // stride: bytes between rows of activations; column: the group's first.
  ALWAYS_INLINE static void multiply_codes(const Coded& x, size_t stride, size_t column, const uint8_t* codes, Sums& out) {
    constexpr int width = kGroupColumns / parts;
    unroll<parts>([&](auto part) INLINED {
      const size_t at = column + width * part;
      multiply_matrix<width, is_centred>(x.high[0] + at, stride, codes + width * kTileRows * part, out.high[part][0]);
      if constexpr (terms == 2) multiply_matrix<width, is_centred>(x.low[0] + at, stride, codes + width * kTileRows * part, out.low[part][0]);
    });
  }

  // index: of the group in its block.
  ALWAYS_INLINE static void add_scaled_sums(const Sums& sums, const Coded& x, int index, const Block& block, f32x16* acc) {
    unroll<parts>([&](auto part) INLINED {
      const f32x16 scale = load(block.scales[index][part]);
      unroll<kMatrixRows>([&](auto r) INLINED {
        f32x16 total = to_f32(load_i32(sums.high[part][r]));
        if constexpr (terms == 2) total = fma(total, broadcast(kHighCode), to_f32(load_i32(sums.low[part][r])));
        if constexpr (zero != 0) total = sub(total, broadcast(x.sums[r][parts * index + part]));
        acc[r] = fma(mul(scale, broadcast(x.scales[r][index])), total, acc[r]);
      });
    });
    if constexpr (Coded::is_affine) {
      const f32x16 offset = load(block.offsets[index]);
      unroll<kMatrixRows>([&](auto r) INLINED { acc[r] = fma(offset, broadcast(x.sums[r][index]), acc[r]); });
    }
  }

  // Adds a block's part of the product to 16 rows of out, or begins it.
  ALWAYS_INLINE static void add_block(const Coded& x, size_t stride, int first_group, int count, const Block& block, float* out, size_t out_stride) {
    f32x16 acc[kMatrixRows];
    unroll<kMatrixRows>([&](auto r) INLINED { acc[r] = first_group == 0 ? broadcast(0.0f) : load(out + r * out_stride); });
    Sums sums[kSumsKept];
    const auto run = [&](int i) INLINED {
      multiply_codes(x, stride, static_cast<size_t>(first_group + i) * kGroupColumns, block.codes[i], sums[i % kSumsKept]);
    };
    const auto scale = [&](int i) INLINED { add_scaled_sums(sums[i % kSumsKept], x, i, block, acc); };
    if (count == kBlockGroups) {
      unroll<kBlockGroups + kGroupsAhead>([&](auto i) INLINED {
        if constexpr (i < kBlockGroups) run(i);
        if constexpr (i >= kGroupsAhead) scale(i - kGroupsAhead);
      });
    } else {
      for (int i = 0; i < count; ++i) run(i), scale(i);
    }
    unroll<kMatrixRows>([&](auto r) INLINED { store(out + r * out_stride, acc[r]); });
  }

  // Asks memory for some of the lines of what is decoded next, a share with every 16 rows.
  ALWAYS_INLINE static void ask_for_next_block(const Weight& w, int tile, int tiles, int first_group, int columns, int share) {
    constexpr int lines = (tile_block_bytes(layout, kBlockGroups) + 63) / 64, lines_at_once = (lines + 7) / 8;
    const bool is_last = first_group + kBlockGroups >= columns / kGroupColumns;
    const size_t at = is_last ? 0 : place_of(layout, columns, first_group + kBlockGroups).codes;
    for (int t = 0; t < tiles; ++t) {
      const uint8_t* next = w.tile(tile + t + (is_last ? tiles : 0)) + at;
      for (int i = share * lines_at_once; i < (share + 1) * lines_at_once && i < lines; ++i) __builtin_prefetch(next + 64 * i);
    }
  }

  // Rows [row, last_row), a multiple of 16 of them.
  static void run(const Weight& w, int first_tile, int last_tile, const Rows& x, int row, int last_row, float* out, size_t out_stride) {
    const MatrixUnit unit;
    const int groups = x.columns / kGroupColumns;
    Block blocks[kTilesTogether];
    for (int tile = first_tile; tile < last_tile; tile += kTilesTogether) {
      const int tiles = last_tile - tile < kTilesTogether ? last_tile - tile : kTilesTogether;
      for (int first = 0; first < groups; first += kBlockGroups) {
        const int count = groups - first < kBlockGroups ? groups - first : kBlockGroups;
        for (int t = 0; t < tiles; ++t) decode(w.tile(tile + t), x.columns, first, count, blocks[t]);
        for (int r = row; r < last_row; r += kMatrixRows) {
          ask_for_next_block(w, tile, tiles, first, x.columns, (r - row) / kMatrixRows);
          Coded coded(x, r);
          coded.reach_block(first, count);
          for (int t = 0; t < tiles; ++t) add_block(coded, x.columns, first, count, blocks[t], out + r * out_stride + kTileRows * (tile + t), out_stride);
        }
      }
    }
  }
};

// `multiply`, with the unit for as many whole 16 rows as there are.
inline void multiply_by_matrices(const Weight& w, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out,
                                 size_t out_stride, const uint8_t* next) {
  const int whole = x.codes.high ? first_row + (last_row - first_row) / kMatrixRows * kMatrixRows : first_row;
  int done = first_row;
  unroll<kNumFormats>([&](auto index) {
    constexpr Format format = static_cast<Format>(index());
    if constexpr (kernel_format(format) != format || layout_of(format).scales == Scales::none) return;
    else if (w.format == format && whole > first_row) {
      if (x.codes.low) MatrixProduct<format, 2>::run(w, first_tile, last_tile, x, first_row, whole, out, out_stride);
      else MatrixProduct<format, 1>::run(w, first_tile, last_tile, x, first_row, whole, out, out_stride);
      done = whole;
    }
  });
  if (done < last_row) multiply(w, first_tile, last_tile, x, done, last_row, out, out_stride, next);
}

}  // namespace minicpm4::ISA
