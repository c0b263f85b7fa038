// What the CPU that this runs on has, of what the kernels' instruction sets need. One answer for the engine and for the tests.
#pragma once

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace minicpm4 {

// One field for each table of kernels but the generic one.
struct Cpu {
  bool amx = false, avx512 = false, avx2 = false, neon = false, neon_i8mm = false;
};

#if defined(__x86_64__)
// Whether there are matrix registers, and Linux lets this process have them; asked for once, it may use them from then on.
inline bool may_use_matrices() {
  constexpr int kRequestPermission = 0x1023, kMatrixData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  const bool has_them = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bit_AMX_TILE) && (d & bit_AMX_INT8) && (d & bit_AMX_BF16);
#if defined(__linux__)
  return has_them && syscall(SYS_arch_prctl, kRequestPermission, kMatrixData) == 0;
#else
  return false;
#endif
}
#endif

inline Cpu this_cpu() {
  Cpu cpu;
#if defined(__x86_64__)
  __builtin_cpu_init();
  cpu.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  cpu.avx512 = cpu.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  cpu.amx = cpu.avx512 && __builtin_cpu_supports("avx512bf16") && may_use_matrices();
#elif defined(__aarch64__)
  // The first 64-bit ARM cores have no dot products: the unit's -march names more than the architecture promises.
  const unsigned long needed = HWCAP_ASIMDDP | HWCAP_ASIMDHP | HWCAP_ATOMICS;
  cpu.neon = (getauxval(AT_HWCAP) & needed) == needed;
  cpu.neon_i8mm = cpu.neon && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
#endif
  return cpu;
}

}  // namespace minicpm4
