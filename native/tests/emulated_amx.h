// AMX on a machine without it: registers as arrays, instructions as loops.
#pragma once

#include <cstdlib>
#include <cstring>

namespace minicpm4::ISA {

inline thread_local uint8_t emulated_matrices[8][16][64];
inline thread_local MatrixShapes emulated_shapes;
inline thread_local bool are_matrices_configured = false;

// What the processor would refuse.
inline void need(bool is_right) {
  if (!is_right) std::abort();
}

inline void configure_matrices(const MatrixShapes& shapes) {
  need(!are_matrices_configured);  // by a unit that still lives
  are_matrices_configured = true, emulated_shapes = shapes;
  std::memset(emulated_matrices, 0x55, sizeof emulated_matrices);
}
inline void release_matrices() { are_matrices_configured = false; }
template <int n>
inline void clear_matrix() {
  need(are_matrices_configured);
  std::memset(emulated_matrices[n], 0, sizeof emulated_matrices[n]);
}
template <int n>
inline void load_matrix(const void* from, size_t stride) {
  need(are_matrices_configured);
  for (int i = 0; i < emulated_shapes.rows[n]; ++i) std::memcpy(emulated_matrices[n][i], static_cast<const char*>(from) + i * stride, emulated_shapes.row_bytes[n]);
}
template <int n>
inline void store_matrix(void* to, size_t stride) {
  need(are_matrices_configured);
  for (int i = 0; i < emulated_shapes.rows[n]; ++i) std::memcpy(static_cast<char*>(to) + i * stride, emulated_matrices[n][i], emulated_shapes.row_bytes[n]);
}
template <int sums, int rows, int columns, bool are_signed>
inline void add_matrix_product() {
  need(emulated_shapes.row_bytes[rows] == 4 * emulated_shapes.rows[columns] && emulated_shapes.rows[sums] == emulated_shapes.rows[rows]);
  for (int i = 0; i < emulated_shapes.rows[rows]; ++i) for (int n = 0; n < emulated_shapes.row_bytes[columns] / 4; ++n) {
    int32_t total;
    std::memcpy(&total, &emulated_matrices[sums][i][4 * n], 4);
    for (int k = 0; k < emulated_shapes.row_bytes[rows]; ++k) {
      const uint8_t weight = emulated_matrices[columns][k / 4][4 * n + k % 4];
      total += static_cast<int8_t>(emulated_matrices[rows][i][k]) * (are_signed ? static_cast<int8_t>(weight) : weight);
    }
    std::memcpy(&emulated_matrices[sums][i][4 * n], &total, 4);
  }
}

}  // namespace minicpm4::ISA
