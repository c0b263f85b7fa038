// Kernels for AVX2 with FMA and F16C.
#include <utility>

#include "half.h"
#include "kernels.h"

#if defined(__AVX2__)
#include "simd/avx2.h"
#define ISA avx2
namespace minicpm4::ISA {
constexpr size_t kPrefetch = 4096, kPrefetchOfBytes = 8192;  // see kernels_avx512.cc; not measured here
constexpr int kRowBlock = 4;  // rows of activations that share a decoded weight
constexpr int kAttendRows = 4;     // (query, head) pairs that share a key
constexpr int kScoreVectors = 1;   // vectors of 16 keys whose scores are in registers together
constexpr int kPeakCodeRows = 1, kPeakFloatRows = 3;  // whose sums are in registers together while peaks are measured
}
#include "kernels_common.h"
// after the common pieces
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "selection.h"
#include "peak.h"

namespace minicpm4 {
const Kernels* kernels_avx2() {
  using namespace ISA;
  static constexpr Kernels table = {kName, multiply, nullptr, nullptr, quantize, rms_norm, add_scaled, scale, swiglu, rope, store_keys, store_values,
                                    attend, merge_splits, compress, select, read_all, peak_int8, peak_f32, nullptr};
  return &table;
}
}  // namespace minicpm4
#else
namespace minicpm4 {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace minicpm4
#endif
