// From stored blocks (GGUF's layouts) to the packed form of layout.h.
#pragma once

#include "layout.h"

namespace minicpm4 {

// Columns of one stored block, and its bytes; a row is a whole number of blocks.
int block_columns(Format format);
size_t block_bytes(Format format);

// Packs rows [16 * index, 16 * index + 16) of a stored weight into `tile` (tile_bytes_of bytes).
// source: row-major stored blocks, row_bytes apart.
void pack_tile(Format format, const uint8_t* source, size_t row_bytes, int rows, int columns, int index, uint8_t* tile);

// One row of a packed weight as float32, [columns].
void unpack_row(const Weight& weight, int row, float* out);

}  // namespace minicpm4
