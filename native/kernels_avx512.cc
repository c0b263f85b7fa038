// Kernels for AVX-512 with VNNI.
#include <utility>

#include "half.h"
#include "kernels.h"

#if defined(__AVX512VNNI__) || defined(MINICPM4_EMULATED)
#define ISA avx512
#include "simd/avx512.h"
namespace minicpm4::ISA {
constexpr const char* kName = "avx512";
// How many bytes ahead of the weights in work memory is asked for. A core of an EPYC (2026-11-24) reads 4-bit weights at 25 to 31 GB/s with
// these, 12 with none, 30 % less with 1024; codes of 8 bits are done with twice as fast, and read 8 % faster with twice the way.
constexpr size_t kPrefetch = 4096, kPrefetchOfBytes = 8192;  // kPrefetchOfBytes: where a weight has 8 bits
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
  static constexpr Kernels table = {kName, multiply, nullptr, nullptr, quantize, rms_norm, add_scaled, scale, swiglu, rope, store_keys, store_values,
                                    attend, merge_splits, compress, select, read_all, peak_int8, peak_f32, nullptr};
  return &table;
}
}  // namespace minicpm4
#else
namespace minicpm4 {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace minicpm4
#endif
