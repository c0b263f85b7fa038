// The packed form of a weight: what the kernels read. Stored formats (GGUF blocks) are repacked into it once at load.
//
// A weight [rows, columns] is cut into tiles of 16 rows; a tile holds all columns of its rows and is read from
// its first byte to its last: one stream, which is what memory is fastest at.
//
// Quantized: columns are taken in groups of 32. A group is 8 chunks of 4 columns; a chunk is 64 codes, code 4 r + j being
// row r, column 4 c + j. Chunks are laid in bit planes of 64 bytes, so that one shift and one mask yield 64 codes:
//   2 bits: 2 planes, chunk c in bits 2 (c % 4) of plane c / 4
//   4 bits: 4 planes, chunk c in bits 4 (c % 2) of plane c / 2
//   5 bits: the 4-bit planes, then 1 plane with bit 4 of chunk c in bit c
//   6 bits: the 4-bit planes, then 2 planes as in 2 bits with bits 4 and 5
//   8 bits: 8 planes, chunk c in plane c; signed codes are stored plus 128
// A group thus takes 64 * bits bytes. Up to 8 groups (256 columns) make a block: their codes, then what the block's columns
// share, then the scales of each group, or of each `scale_groups` of them; nearly every plane starts on a cache line. A value is
// scale * code + offset.
//
// Dense: values as stored (float32, half, bfloat16), column by column, 16 rows a column.
//
// Rows past the end are zeros.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minicpm4 {

constexpr int kTileRows = 16;
constexpr int kGroupColumns = 32;
constexpr int kSuperColumns = 256;  // columns that share the outer scale of the k formats

enum class Format { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, tq1_0, tq2_0, q2_0, q2_0_g128, ternary_g32, ternary_g64, ternary_g128, ternary_g256 };
constexpr int kNumFormats = 19;

// Where scale and offset of a group's 16 rows come from; sizes are bytes, all 16 rows.
enum class Scales {
  none,      // dense
  plain,     // scale_groups groups: half scale[16].                     offset = -zero * scale
  affine,    // a group: half scale[16], half offset[16]
  k_affine,  // 256 columns: half d[16], half m[16]; a group: uint8 s[16], uint8 o[16].   scale = d s, offset = -m o
  k_halves,  // 256 columns: half d[16]; a group: int8 s[2][16], one for each 16 columns. scale = d s, offset = -zero * scale
};

struct Layout {
  int bits;  // of a code; of a value for dense formats
  Scales scales;
  int zero;
  int scale_groups = 1;  // of plain scales: groups of a block that share them

  bool operator==(const Layout&) const = default;
};

constexpr Layout layout_of(Format format) {
  switch (format) {
    case Format::f32: return {32, Scales::none, 0};
    case Format::f16: return {16, Scales::none, 0};
    case Format::bf16: return {16, Scales::none, 0};
    case Format::q8_0: return {8, Scales::plain, 128};
    case Format::q4_0: return {4, Scales::plain, 8};
    case Format::q4_1: return {4, Scales::affine, 0};
    case Format::q5_0: return {5, Scales::plain, 16};
    case Format::q5_1: return {5, Scales::affine, 0};
    case Format::q4_k: return {4, Scales::k_affine, 0};
    case Format::q5_k: return {5, Scales::k_affine, 0};
    case Format::q6_k: return {6, Scales::k_halves, 32};
    case Format::ternary_g32: return {2, Scales::plain, 1, 1};
    case Format::q2_0:
    case Format::ternary_g64: return {2, Scales::plain, 1, 2};
    case Format::q2_0_g128:
    case Format::ternary_g128: return {2, Scales::plain, 1, 4};
    case Format::tq1_0:
    case Format::tq2_0:
    case Format::ternary_g256: return {2, Scales::plain, 1, 8};
  }
  return {0, Scales::none, 0};
}

// The format whose kernels read what is packed from `format`: the first one of the same layout.
constexpr Format kernel_format(Format format) {
  if (layout_of(format).scales == Scales::none) return format;
  int first = 0;
  while (layout_of(static_cast<Format>(first)) != layout_of(format)) ++first;
  return static_cast<Format>(first);
}

// Bytes of the scales of one group, or of the groups that share them; and of what 256 columns share.
constexpr size_t group_scale_bytes(Scales scales) {
  switch (scales) {
    case Scales::plain: return 32;
    case Scales::affine: return 64;
    case Scales::k_affine: return 32;
    case Scales::k_halves: return 32;
    default: return 0;
  }
}
constexpr size_t super_scale_bytes(Scales scales) {
  switch (scales) {
    case Scales::k_affine: return 64;
    case Scales::k_halves: return 32;
    default: return 0;
  }
}

constexpr int kBlockGroups = kSuperColumns / kGroupColumns;
constexpr size_t group_code_bytes(Layout layout) { return static_cast<size_t>(kGroupColumns) * kTileRows * layout.bits / 8; }
// The own scales of a block's groups [0, num_groups).
constexpr size_t own_scale_bytes(Layout layout, int num_groups) {
  return (num_groups + layout.scale_groups - 1) / layout.scale_groups * group_scale_bytes(layout.scales);
}
constexpr size_t tile_block_bytes(Layout layout, int num_groups) {
  return num_groups * group_code_bytes(layout) + super_scale_bytes(layout.scales) + own_scale_bytes(layout, num_groups);
}
constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A packed weight's view. `data` is 64-byte aligned.
struct Weight {
  Format format;  // a kernel_format
  int rows, columns;
  size_t tile_bytes;
  const uint8_t* data;

  int num_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  const uint8_t* tile(int index) const { return data + tile_bytes * index; }
};

// Whether `multiply_bf16` takes such a weight: all formats but float32, in whole groups of columns.
constexpr bool has_bf16_product(Format format, int columns) { return format != Format::f32 && columns % kGroupColumns == 0; }

constexpr size_t tile_bytes_of(Format format, int columns) {
  const Layout layout = layout_of(format);
  if (layout.scales == Scales::none) return round_up(static_cast<size_t>(columns) * kTileRows * layout.bits / 8, 64);
  const int groups = columns / kGroupColumns;
  return round_up(groups / kBlockGroups * tile_block_bytes(layout, kBlockGroups) + (groups % kBlockGroups ? tile_block_bytes(layout, groups % kBlockGroups) : 0), 64);
}

// Where a group of a tile lies.
struct GroupPlace {
  size_t codes, shared, own;  // bytes from the tile's start: its codes, what its block shares, its own scales
};

constexpr GroupPlace place_of(Layout layout, int columns, int group) {
  const int groups = columns / kGroupColumns, first = group / kBlockGroups * kBlockGroups, index = group - first;
  const int count = groups - first < kBlockGroups ? groups - first : kBlockGroups;
  const size_t block = first / kBlockGroups * tile_block_bytes(layout, kBlockGroups), shared = block + count * group_code_bytes(layout);
  return {block + index * group_code_bytes(layout), shared, shared + super_scale_bytes(layout.scales) + index / layout.scale_groups * group_scale_bytes(layout.scales)};
}

}  // namespace minicpm4
