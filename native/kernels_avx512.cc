// Kernels for AVX-512 with VNNI.
#include <utility>

#include "half.h"
#include "kernels.h"

#if defined(__AVX512VNNI__) || defined(MINICPM4_EMULATED)
#define ISA avx512
#include "simd/avx512.h"
namespace minicpm4::ISA {
constexpr const char* kName = "avx512";
// A core reads 25 to 31 GB/s of 4-bit weights instead of 12, and 23 or more of other formats; 1024 is up to 30 % slower. Codes of 8 bits are
// done with twice as fast, and read 8 % faster with twice the way; others are not (an EPYC, 2026-11-24).
constexpr size_t kPrefetch[2] = {8192, 4096};  // bytes, of 8 bits and of others
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
#include "selection.h"
#include "peak.h"

namespace minicpm4 {
const Kernels* kernels_avx512() {
  using namespace ISA;
  static constexpr Kernels table = {kName, multiply, quantize, rms_norm, add_scaled, scale, swiglu, rope, store_keys, store_values,
                                    attend, merge_stretches, compress, select, read_all, peak_int8, peak_f32};
  return &table;
}
}  // namespace minicpm4
#else
namespace minicpm4 {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace minicpm4
#endif
