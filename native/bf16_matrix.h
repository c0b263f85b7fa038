// Products in bfloat16 by a unit that multiplies matrices of it: weights are decoded and rounded as activations were, the product of two
// is exact, and sums are float32, column by column in their order. So a row's result does not depend on which other rows are computed with
// it; it is not, to the bit, that of linear.h.
#pragma once

namespace minicpm4::ISA {

constexpr int kBf16Groups = 16;  // decoded together: those of two tiles stay in the first cache while rows pass

// Groups of a tile, decoded: of each [16 pairs of columns][16 rows][2].
struct Bf16Tile {
  alignas(64) uint16_t values[kBf16Groups][kGroupColumns * kTileRows];
};

// Memory that is read next, a part of each of two tiles; it is asked for in shares.
struct Ahead {
  const uint8_t* parts[2];
  size_t bytes;  // of a part

  void ask(int share, int num_shares) const {
    const size_t lines = (bytes + 63) / 64, first = lines * share / num_shares, last = lines * (share + 1) / num_shares;
    for (const uint8_t* part : parts) for (size_t line = first; line < last; ++line) __builtin_prefetch(part + 64 * line, 0, 2);
  }
};

template <Format format>
struct Bf16Product {
  static constexpr Layout layout = layout_of(format);

  // Groups [first, first + count). stream: what is asked for meanwhile, or null.
  static void decode(const uint8_t* tile, int columns, int first, int count, const Stream* stream, Bf16Tile& out) {
    constexpr size_t group_bytes = tile_block_bytes(layout, kBlockGroups) / kBlockGroups;
    for (int i = 0; i < count; ++i) {
      if (stream) {
        const uint8_t* ahead = stream->ahead_of(tile + group_bytes * (first + i), layout.bits);
        for (size_t line = 0; line < group_bytes; line += 64) __builtin_prefetch(ahead + line);
      }
      if constexpr (layout.scales == Scales::none) decode_dense(tile + group_bytes * (first + i), out.values[i]);
      else decode_codes(tile, place_of(layout, columns, first + i), out.values[i]);
    }
  }

  static void decode_dense(const uint8_t* group, uint16_t* pairs) {
    constexpr size_t column_bytes = kTileRows * layout.bits / 8;
    for (int c = 0; c < kGroupColumns; c += 2)
      store_bf16_pairs(pairs + kTileRows * c, load_dense<format>(group + c * column_bytes), load_dense<format>(group + (c + 1) * column_bytes));
  }

  ALWAYS_INLINE static void decode_codes(const uint8_t* tile, const GroupPlace& place, uint16_t* pairs) {
    const GroupScales s = group_scales<layout.scales, layout.zero>(tile + place.shared, tile + place.own);
    unroll<8>([&](auto c) {
      constexpr int half = layout.scales == Scales::k_halves && c >= 4;
      const u8x64 codes = chunk<layout.bits, c>(tile + place.codes);
      const auto column = [&](auto j) { return fma(s.scale[half], byte_as_f32<j>(codes), s.offset[half]); };
      uint16_t* four = pairs + 2 * kTileRows * 2 * c;
      store_bf16_pairs(four, column(std::integral_constant<int, 0>{}), column(std::integral_constant<int, 1>{}));
      store_bf16_pairs(four + 2 * kTileRows, column(std::integral_constant<int, 2>{}), column(std::integral_constant<int, 3>{}));
    });
  }

  // Adds some groups' part of the product to 16 * blocks rows of out, or begins it. x: of the first row and group.
  template <int blocks, int tiles>
  static void add_groups(const uint16_t* x, size_t panel_stride, int count, const Bf16Tile* weights, bool begins, float* out, size_t out_stride) {
    const auto each_sum = [&](auto f) { unroll<blocks * tiles>([&](auto i) { f(i, out + i / tiles * kMatrixRows * out_stride + i % tiles * kTileRows); }); };
    each_sum([&](auto i, const float* at) {
      if (begins) clear_matrix<i>();
      else load_passing_matrix<i>(at, out_stride * sizeof(float));
    });
    for (int g = 0; g < count; ++g) {
      unroll<blocks>([&](auto b) { load_passing_matrix<4 + b>(x + g * panel_stride + b * kMatrixRows * kGroupColumns, kGroupColumns * sizeof(uint16_t)); });
      unroll<tiles>([&](auto t) { load_matrix<6 + t>(weights[t].values[g], 2 * kTileRows * sizeof(uint16_t)); });
      unroll<blocks * tiles>([&](auto i) { add_bf16_product<i, 4 + i / tiles, 6 + i % tiles>(); });
    }
    each_sum([&](auto i, float* at) { store_matrix<i>(at, out_stride * sizeof(float)); });
  }

  // Fewer than 16 rows, whose sums lie in a copy, so that nothing past the last one is written. Of more rows there are values, whatever they are.
  template <int tiles>
  static void add_groups_of_few(const uint16_t* x, size_t panel_stride, int count, const Bf16Tile* weights, bool begins, int num_rows, float* out, size_t out_stride) {
    constexpr size_t width = tiles * kTileRows;
    alignas(64) float sums[kMatrixRows * width];
    for (int r = 0; r < num_rows && !begins; ++r) std::memcpy(sums + r * width, out + r * out_stride, width * sizeof(float));
    add_groups<1, tiles>(x, panel_stride, count, weights, begins, sums, width);
    for (int r = 0; r < num_rows; ++r) std::memcpy(out + r * out_stride, sums + r * width, width * sizeof(float));
  }

  template <int tiles>
  static void run_rows(const Bf16Rows& x, int first_group, int count, const Bf16Tile* weights, int row, int last_row, const Ahead* ahead, float* out,
                       size_t out_stride) {
    const int first_row = row, num_shares = (last_row - row) / (2 * kMatrixRows);
    const bool begins = first_group == 0;
    const auto at = [&](int r) { return x.at(r, first_group * kGroupColumns); };
    const auto run = [&](auto blocks) {
      for (constexpr int rows = blocks * kMatrixRows; row + rows <= last_row; row += rows) {
        if (blocks == 2 && ahead) ahead->ask((row - first_row) / rows, num_shares);
        add_groups<blocks, tiles>(at(row), x.panel_stride, count, weights, begins, out + row * out_stride, out_stride);
      }
    };
    run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
    if (row < last_row) add_groups_of_few<tiles>(at(row), x.panel_stride, count, weights, begins, last_row - row, out + row * out_stride, out_stride);
  }

  // next: what is read after these tiles. Where rows stay near, all groups of two tiles, then the next two, as memory has them, and asked for in
  // this order. Else some groups of all tiles, then the next groups, so that a part of the rows stays near meanwhile.
  static void run(const Weight& w, int first_tile, int last_tile, const Rows& x, int row, int last_row, float* out, size_t out_stride, const uint8_t* next) {
    const MatrixUnit unit(kWholeMatrices);
    const int groups = x.columns / kGroupColumns, blocks = (groups + kBf16Groups - 1) / kBf16Groups, pairs = (last_tile - first_tile + 1) / 2;
    const bool is_by_tiles = last_row - row < 2 * kMatrixRows || static_cast<size_t>(last_row - row) * x.columns <= kNearValues;
    const size_t bytes = tile_block_bytes(layout, kBlockGroups) * kBf16Groups / kBlockGroups;
    const auto tile_of = [&](int part) { return first_tile + 2 * (is_by_tiles ? part / blocks : part % pairs); };
    const auto block_of = [&](int part) { return is_by_tiles ? part % blocks : part / pairs; };
    Bf16Tile weights[2];
    for (int part = 0; part < blocks * pairs; ++part) {
      const int tile = tile_of(part), first = block_of(part) * kBf16Groups, count = groups - first < kBf16Groups ? groups - first : kBf16Groups;
      const uint8_t* at = part + 1 < blocks * pairs ? w.tile(tile_of(part + 1)) + bytes * block_of(part + 1) : next;
      const Ahead ahead{{at, at + w.tile_bytes}, bytes};
      const auto run_tiles = [&](auto tiles) {
        for (int t = 0; t < tiles; ++t) {
          const Stream stream{w.tile(tile + t + 1), tile + 2 < last_tile ? w.tile(tile + t + 2) : next + t * w.tile_bytes};
          decode(w.tile(tile + t), x.columns, first, count, is_by_tiles ? &stream : nullptr, weights[t]);
        }
        run_rows<tiles>(x.bf16, first, count, weights, row, last_row, is_by_tiles ? nullptr : &ahead, out + kTileRows * tile, out_stride);
      };
      if (tile + 1 < last_tile) run_tiles(std::integral_constant<int, 2>{});
      else run_tiles(std::integral_constant<int, 1>{});
    }
  }
};

inline void round_to_bf16(const float* x, int columns, const Bf16Rows& out, int row, int column) {
  for (int c = 0; c < columns; c += kGroupColumns) store_bf16(out.at(row, column + c), load(x + c), load(x + c + 16));
}

// `multiply_bf16` of kernels.h.
inline void multiply_bf16(const Weight& w, int first_tile, int last_tile, const Rows& x, int first_row, int last_row, float* out, size_t out_stride,
                          const uint8_t* next) {
  unroll<kNumFormats>([&](auto index) {
    constexpr Format format = static_cast<Format>(index());
    if constexpr (kernel_format(format) != format || format == Format::f32) return;
    else if (w.format == format) Bf16Product<format>::run(w, first_tile, last_tile, x, first_row, last_row, out, out_stride, next);
  });
}

}  // namespace minicpm4::ISA
