// AMX on a machine without it: registers as arrays, instructions as loops.
#pragma once

#include <cstring>

namespace minicpm4::ISA {

inline thread_local uint8_t emulated_matrices[8][16][64];
inline thread_local MatrixShapes emulated_shapes;

inline void configure_matrices(const MatrixShapes& shapes) { emulated_shapes = shapes, std::memset(emulated_matrices, 0x55, sizeof emulated_matrices); }
inline void release_matrices() { std::memset(emulated_matrices, 0x55, sizeof emulated_matrices); }
template <int n>
inline void clear_matrix() {
  std::memset(emulated_matrices[n], 0, sizeof emulated_matrices[n]);
}
template <int n>
inline void load_matrix(const void* from, size_t stride) {
  for (int i = 0; i < emulated_shapes.rows[n]; ++i) std::memcpy(emulated_matrices[n][i], static_cast<const char*>(from) + i * stride, emulated_shapes.row_bytes[n]);
}
template <int n>
inline void store_matrix(void* to, size_t stride) {
  for (int i = 0; i < emulated_shapes.rows[n]; ++i) std::memcpy(static_cast<char*>(to) + i * stride, emulated_matrices[n][i], emulated_shapes.row_bytes[n]);
}
template <int sums, int rows, int columns, bool are_rows_signed, bool are_columns_signed>
inline void add_matrix_product() {
  for (int i = 0; i < emulated_shapes.rows[rows]; ++i) for (int n = 0; n < emulated_shapes.row_bytes[columns] / 4; ++n) {
    int32_t total;
    std::memcpy(&total, &emulated_matrices[sums][i][4 * n], 4);
    for (int k = 0; k < emulated_shapes.row_bytes[rows]; ++k) {
      const uint8_t row = emulated_matrices[rows][i][k], column = emulated_matrices[columns][k / 4][4 * n + k % 4];
      total += (are_rows_signed ? static_cast<int8_t>(row) : row) * (are_columns_signed ? static_cast<int8_t>(column) : column);
    }
    std::memcpy(&emulated_matrices[sums][i][4 * n], &total, 4);
  }
}

}  // namespace minicpm4::ISA
