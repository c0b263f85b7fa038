// Kernels for AVX-512 with VNNI and AMX, which multiplies matrices of bytes and of bfloat16.
#include <utility>

#include "half.h"
#include "kernels.h"

#if (defined(__AVX512VNNI__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)) || defined(MINICPM4_EMULATED)
#define ISA amx
#include "simd/avx512.h"
#include "simd/amx.h"
namespace minicpm4::ISA {
constexpr const char* kName = "amx";
// How many bytes ahead of the weights in work memory is asked for. A core of a Xeon (2026-11-25) reads 4-bit weights at 15.5 GB/s with these,
// 14.5 with 1024, 11.5 with 4096 or more; 8 bits at 16, 15.5 and 14.4; bf16 at 13 with 2048 and 10.4 with 4096.
constexpr size_t kPrefetch = 2560, kPrefetchOfBytes = 2560;  // kPrefetchOfBytes: where a weight has 8 bits
constexpr int kRowBlock = 8;  // rows of activations that share a decoded weight
constexpr int kAttendRows = 8;     // (query, head) pairs that share a key
constexpr int kScoreVectors = 2;   // vectors of 16 keys whose scores are in registers together
constexpr int kPeakCodeRows = 6, kPeakFloatRows = 6;  // whose sums are in registers together while peaks are measured
}
#include "kernels_common.h"
// after the common pieces
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "matrix.h"
#include "bf16_matrix.h"
#include "selection.h"
#include "matrix_attention.h"
#include "peak.h"

namespace minicpm4 {
const Kernels* kernels_amx() {
  using namespace ISA;
  static constexpr Kernels table = {kName, multiply_by_matrices, multiply_bf16, round_to_bf16, quantize, rms_norm, add_scaled, scale, swiglu, rope, store_keys,
                                    store_values, attend_by_matrices, merge_splits, compress, select_by_matrices, read_all, peak_matrices<false>, peak_f32,
                                    peak_matrices<true>};
  return &table;
}
}  // namespace minicpm4
#else
namespace minicpm4 {
const Kernels* kernels_amx() { return nullptr; }
}  // namespace minicpm4
#endif
