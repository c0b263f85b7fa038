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
inline void load_passing_matrix(const void* from, size_t stride) { load_matrix<n>(from, stride); }
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

// As the processor does: even and odd columns are summed apart, put together, and added to what was there.
template <int sums, int rows, int columns>
inline void add_bf16_product() {
  need(emulated_shapes.row_bytes[rows] == 4 * emulated_shapes.rows[columns] && emulated_shapes.rows[sums] == emulated_shapes.rows[rows]);
  const auto value_at = [](const uint8_t* p) {
    uint16_t value;
    std::memcpy(&value, p, 2);
    return bf16_to_f32(value);
  };
  for (int i = 0; i < emulated_shapes.rows[rows]; ++i) for (int n = 0; n < emulated_shapes.row_bytes[columns] / 4; ++n) {
    float apart[2] = {}, total;
    for (int k = 0; k < emulated_shapes.row_bytes[rows] / 2; ++k)
      apart[k % 2] = __builtin_fmaf(value_at(&emulated_matrices[rows][i][2 * k]), value_at(&emulated_matrices[columns][k / 2][4 * n + k % 2 * 2]), apart[k % 2]);
    std::memcpy(&total, &emulated_matrices[sums][i][4 * n], 4);
    total += apart[0] + apart[1];
    std::memcpy(&emulated_matrices[sums][i][4 * n], &total, 4);
  }
}

inline void store_bf16(uint16_t* p, f32x16 first, f32x16 second) {
  float values[32];
  store(values, first), store(values + 16, second);
  for (int i = 0; i < 32; ++i) p[i] = f32_to_bf16(values[i]);
}
inline void store_bf16_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  float values[32];
  store(values, even), store(values + 16, odd);
  for (int i = 0; i < 32; ++i) p[i] = f32_to_bf16(values[i / 2 + i % 2 * 16]);
}

}  // namespace minicpm4::ISA
