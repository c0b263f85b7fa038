// How fast the bf16 dot product is where the CPU has one. No kernel uses it, AMX has matrices of bf16; it is measured to say what it would be worth.
#include "kernels.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#include <utility>

namespace minicpm4 {
namespace {

template <int... i>
double peak_of(size_t rounds, std::integer_sequence<int, i...>) {
  constexpr int kVectors = 2, kRows = sizeof...(i) / kVectors;
  const uint16_t weights[kVectors][32] = {};
  const int32_t x[kRows] = {};
  __m512 sums[sizeof...(i)], result[sizeof...(i)];
  ((sums[i] = _mm512_setzero_ps()), ...);
  for (size_t round = 0; round < rounds; ++round) {
    asm volatile("" : : "r"(weights), "r"(x) : "memory");
    ((sums[i] = _mm512_dpbf16_ps(sums[i], reinterpret_cast<__m512bh>(_mm512_loadu_si512(weights[i / kRows])),
                                 reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[i % kRows])))), ...);
  }
  ((result[i] = sums[i]), ...);
  asm volatile("" : : "r"(result) : "memory");
  return 2.0 * 32 * sizeof...(i) * static_cast<double>(rounds);
}

double peak_dot(size_t rounds) { return peak_of(rounds, std::make_integer_sequence<int, 12>()); }

}  // namespace

PeakFunction peak_bf16_dot() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") ? peak_dot : nullptr;
}
}  // namespace minicpm4
#else
namespace minicpm4 {
PeakFunction peak_bf16_dot() { return nullptr; }
}  // namespace minicpm4
#endif
