// Kernels for AArch64 NEON with products of 8-bit matrices.
#include <utility>

#include "half.h"
#include "kernels.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define ISA neon_i8mm
#include "simd/neon_i8mm.h"
namespace minicpm4::ISA {
constexpr size_t kPrefetch = 4096, kPrefetchOfBytes = 8192;  // see kernels_avx512.cc; not measured here
constexpr int kRowBlock = 4;  // rows of activations that share a decoded weight
constexpr int kAttendRows = 4;     // (query, head) pairs that share a key
constexpr int kScoreVectors = 1;   // vectors of 16 keys whose scores are in registers together
}
#include "kernels_common.h"
// after the common pieces
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "selection.h"

namespace minicpm4 {
const Kernels* kernels_neon_i8mm() {
  using namespace ISA;
  static constexpr Kernels table = {kName, multiply, nullptr, nullptr, quantize, rms_norm, add_scaled, scale, swiglu, rope, store_keys, store_values,
                                    attend, merge_splits, compress, select, read_all};
  return &table;
}
}  // namespace minicpm4
#else
namespace minicpm4 {
const Kernels* kernels_neon_i8mm() { return nullptr; }
}  // namespace minicpm4
#endif
