#include "packing.h"

#include <cstring>

#include "half.h"

namespace minicpm4 {
namespace {

// One group of one row as stored: 32 codes and its scales, in the terms of layout.h.
struct Group {
  uint8_t codes[kGroupColumns];
  uint16_t scale, offset;  // half bits: of the group, or of what 256 columns share
  uint8_t fine[2];         // k formats: (scale, offset) or the two halves' signed scales
};

uint16_t read_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

uint32_t read_u32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, 4);
  return value;
}

// Element i is the low nibble of byte i, element i + 16 its high nibble.
void split_nibbles(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = bytes[i] & 15;
    codes[i + 16] = bytes[i] >> 4;
  }
}

void add_fifth_bits(uint32_t bits, uint8_t* codes) {
  for (int i = 0; i < kGroupColumns; ++i) codes[i] |= (bits >> i & 1) << 4;
}

// 6-bit scale and offset of sub-block j out of the 12 bytes that q4_k and q5_k share.
void read_k_scales(const uint8_t* packed, int j, uint8_t* fine) {
  if (j < 4) {
    fine[0] = packed[j] & 63;
    fine[1] = packed[j + 4] & 63;
  } else {
    fine[0] = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    fine[1] = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

void read_q4_k(const uint8_t* block, int j, Group& group) {  // half d, half m, 12 scale bytes, 128 nibble bytes
  group.scale = read_u16(block);
  group.offset = read_u16(block + 2);
  read_k_scales(block + 4, j, group.fine);
  const uint8_t* nibbles = block + 16 + 32 * (j / 2);
  for (int i = 0; i < kGroupColumns; ++i) group.codes[i] = nibbles[i] >> 4 * (j % 2) & 15;
}

void read_q5_k(const uint8_t* block, int j, Group& group) {  // as q4_k with 32 bytes of fifth bits before the nibbles
  group.scale = read_u16(block);
  group.offset = read_u16(block + 2);
  read_k_scales(block + 4, j, group.fine);
  const uint8_t *fifth = block + 16, *nibbles = block + 48 + 32 * (j / 2);
  for (int i = 0; i < kGroupColumns; ++i) group.codes[i] = (nibbles[i] >> 4 * (j % 2) & 15) | (fifth[i] >> j & 1) << 4;
}

void read_q6_k(const uint8_t* block, int j, Group& group) {  // 128 low nibbles, 64 high pairs, 16 int8 scales, half d
  const int half = j / 4, part = j % 4;                       // each half of 128 columns has 64 + 32 bytes
  const uint8_t *low = block + 64 * half + 32 * (part % 2), *high = block + 128 + 32 * half;
  for (int i = 0; i < kGroupColumns; ++i) group.codes[i] = (low[i] >> 4 * (part / 2) & 15) | (high[i] >> 2 * part & 3) << 4;
  group.fine[0] = block[192 + 2 * j];
  group.fine[1] = block[192 + 2 * j + 1];
  group.scale = read_u16(block + 208);
}

void read_tq2_0(const uint8_t* block, int j, Group& group) {  // 64 bytes of pairs, half d; 128 columns use 32 bytes
  const uint8_t* pairs = block + 32 * (j / 4);
  for (int i = 0; i < kGroupColumns; ++i) group.codes[i] = pairs[i] >> 2 * (j % 4) & 3;
  group.scale = read_u16(block + 64);
}

// Trit n of a byte that holds (base-3 number * 256 + 242) / 243, most significant first.
uint8_t read_trit(uint8_t byte, int n) {
  static constexpr uint8_t powers[5] = {1, 3, 9, 27, 81};
  return static_cast<uint8_t>(byte * powers[n]) * 3 >> 8;
}

void read_tq1_0(const uint8_t* block, int j, Group& group) {  // 48 bytes of 5 trits, 4 bytes of 4 trits, half d
  for (int i = 0; i < kGroupColumns; ++i) {
    const int e = kGroupColumns * j + i;
    if (e < 160) group.codes[i] = read_trit(block[e % 32], e / 32);
    else if (e < 240) group.codes[i] = read_trit(block[32 + (e - 160) % 16], (e - 160) / 16);
    else group.codes[i] = read_trit(block[48 + (e - 240) % 4], (e - 240) / 4);
  }
  group.scale = read_u16(block + 52);
}

// A block of g columns: g / 4 bytes of codes and half d, one of them first. Column c's code is bits 2 (c % 4) and up of byte c / 4.
void read_ternary(const uint8_t* codes, const uint8_t* scale, int j, Group& group) {
  for (int i = 0; i < kGroupColumns; ++i) group.codes[i] = codes[8 * j + i / 4] >> 2 * (i % 4) & 3;
  group.scale = read_u16(scale);
}

// Group `index` of a stored row.
void read_group(Format format, const uint8_t* row, int index, Group& group) {
  const uint8_t* block = row + index * kGroupColumns / block_columns(format) * block_bytes(format);
  const int j = index % 8;
  switch (format) {
    case Format::q8_0:  // half d, 32 int8
      group.scale = read_u16(block);
      for (int i = 0; i < kGroupColumns; ++i) group.codes[i] = block[2 + i] ^ 0x80;
      return;
    case Format::q4_0:  // half d, 16 nibble bytes
      group.scale = read_u16(block);
      return split_nibbles(block + 2, group.codes);
    case Format::q4_1:  // half d, half m, 16 nibble bytes
      group.scale = read_u16(block);
      group.offset = read_u16(block + 2);
      return split_nibbles(block + 4, group.codes);
    case Format::q5_0:  // half d, 4 bytes of fifth bits, 16 nibble bytes
      group.scale = read_u16(block);
      split_nibbles(block + 6, group.codes);
      return add_fifth_bits(read_u32(block + 2), group.codes);
    case Format::q5_1:  // half d, half m, 4 bytes of fifth bits, 16 nibble bytes
      group.scale = read_u16(block);
      group.offset = read_u16(block + 2);
      split_nibbles(block + 8, group.codes);
      return add_fifth_bits(read_u32(block + 4), group.codes);
    case Format::q4_k: return read_q4_k(block, j, group);
    case Format::q5_k: return read_q5_k(block, j, group);
    case Format::q6_k: return read_q6_k(block, j, group);
    case Format::tq1_0: return read_tq1_0(block, j, group);
    case Format::tq2_0: return read_tq2_0(block, j, group);
    case Format::ternary_g32:
    case Format::ternary_g64:
    case Format::ternary_g128:
    case Format::ternary_g256: return read_ternary(block, block + block_columns(format) / 4, index % (block_columns(format) / kGroupColumns), group);
    case Format::q2_0:
    case Format::q2_0_g128: return read_ternary(block + 2, block, index % (block_columns(format) / kGroupColumns), group);
    default: return;
  }
}

// ORs row r's 32 codes into the group's planes; `planes` starts as zeros.
void put_codes(const uint8_t* codes, int bits, int r, uint8_t* planes) {
  for (int c = 0; c < 8; ++c) {
    const uint32_t four = read_u32(codes + 4 * c);
    auto put = [&](int plane, uint32_t value) {
      uint8_t* at = planes + 64 * plane + 4 * r;
      value |= read_u32(at);
      std::memcpy(at, &value, 4);
    };
    if (bits == 8) put(c, four);
    if (bits == 2) put(c / 4, four << 2 * (c % 4));
    if (bits >= 4 && bits <= 6) put(c / 2, (four & 0x0f0f0f0fu) << 4 * (c % 2));
    if (bits == 5) put(4, (four >> 4 & 0x01010101u) << c);
    if (bits == 6) put(4 + c / 4, (four >> 4 & 0x03030303u) << 2 * (c % 4));
  }
}

void put_scales(const Group& group, Scales scales, int r, uint8_t* shared, uint8_t* own) {
  auto put_half = [&](uint8_t* halves, uint16_t value) { std::memcpy(halves + 2 * r, &value, 2); };
  switch (scales) {
    case Scales::plain: return put_half(own, group.scale);
    case Scales::affine: put_half(own, group.scale); return put_half(own + 32, group.offset);
    case Scales::k_affine: put_half(shared, group.scale); put_half(shared + 32, group.offset); break;
    case Scales::k_halves: put_half(shared, group.scale); break;
    case Scales::none: return;
  }
  own[r] = group.fine[0];
  own[16 + r] = group.fine[1];
}

uint8_t get_code(const uint8_t* planes, int bits, int r, int column) {
  const int c = column / 4, at = 4 * r + column % 4;
  const uint8_t* byte = planes + at;
  if (bits == 8) return byte[64 * c];
  if (bits == 2) return byte[64 * (c / 4)] >> 2 * (c % 4) & 3;
  uint8_t code = byte[64 * (c / 2)] >> 4 * (c % 2) & 15;
  if (bits == 5) code |= (byte[256] >> c & 1) << 4;
  if (bits == 6) code |= (byte[256 + 64 * (c / 4)] >> 2 * (c % 4) & 3) << 4;
  return code;
}

void get_scale(Layout layout, const uint8_t* shared, const uint8_t* own, int r, int column, float& scale, float& offset) {
  auto half_at = [&](const uint8_t* halves) { return f16_to_f32(read_u16(halves + 2 * r)); };
  scale = half_at(layout.scales == Scales::plain || layout.scales == Scales::affine ? own : shared);
  if (layout.scales == Scales::k_affine) {
    scale *= own[r];
    offset = -half_at(shared + 32) * own[16 + r];
    return;
  }
  if (layout.scales == Scales::k_halves) scale *= static_cast<int8_t>(own[16 * (column / 16) + r]);
  offset = layout.scales == Scales::affine ? half_at(own + 32) : -layout.zero * scale;
}

}  // namespace

int block_columns(Format format) {
  const Layout layout = layout_of(format);
  switch (layout.scales) {
    case Scales::none: return 1;
    case Scales::plain:
    case Scales::affine: return kGroupColumns * layout.scale_groups;
    default: return kSuperColumns;
  }
}

size_t block_bytes(Format format) {
  static constexpr size_t sizes[kNumFormats] = {4, 2, 2, 34, 18, 20, 22, 24, 144, 176, 210, 54, 66, 18, 34, 10, 18, 34, 66};
  return sizes[static_cast<int>(format)];
}

void pack_tile(Format format, const uint8_t* source, size_t row_bytes, int rows, int columns, int index, uint8_t* tile) {
  const Layout layout = layout_of(format);
  const int first = index * kTileRows, count = rows - first < kTileRows ? rows - first : kTileRows;
  std::memset(tile, 0, tile_bytes_of(format, columns));
  if (layout.scales == Scales::none) {
    const size_t size = layout.bits / 8;
    for (int r = 0; r < count; ++r)
      for (int k = 0; k < columns; ++k) std::memcpy(tile + (k * kTileRows + r) * size, source + (first + r) * row_bytes + k * size, size);
    return;
  }
  Group group{};
  for (int g = 0; g < columns / kGroupColumns; ++g) {
    const GroupPlace place = place_of(layout, columns, g);
    for (int r = 0; r < count; ++r) {
      read_group(format, source + (first + r) * row_bytes, g, group);
      put_codes(group.codes, layout.bits, r, tile + place.codes);
      put_scales(group, layout.scales, r, tile + place.shared, tile + place.own);
    }
  }
}

void unpack_row(const Weight& weight, int row, float* out) {
  const Layout layout = layout_of(weight.format);
  const uint8_t* tile = weight.tile(row / kTileRows);
  const int r = row % kTileRows;
  for (int k = 0; k < weight.columns; ++k) {
    const size_t at = static_cast<size_t>(k) * kTileRows + r;
    if (weight.format == Format::f32) out[k] = bits_to_f32(read_u32(tile + 4 * at));
    else if (weight.format == Format::f16) out[k] = f16_to_f32(read_u16(tile + 2 * at));
    else if (weight.format == Format::bf16) out[k] = bf16_to_f32(read_u16(tile + 2 * at));
    else {
      const GroupPlace place = place_of(layout, weight.columns, k / kGroupColumns);
      const int column = k % kGroupColumns;
      float scale, offset;
      get_scale(layout, tile + place.shared, tile + place.own, r, column, scale, offset);
      out[k] = scale * get_code(tile + place.codes, layout.bits, r, column) + offset;
    }
  }
}

}  // namespace minicpm4
