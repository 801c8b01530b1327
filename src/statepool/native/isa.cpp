#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(STATEPOOL_X86)
#include <cpuid.h>
#endif
#if defined(STATEPOOL_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace statepool {
namespace {

#if defined(STATEPOOL_X86)
#if defined(STATEPOOL_AMX)
// Linux saves the 8 KB of tiles only for processes that asked; a kernel that does not know the question says no.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool may_use_tiles() { return false; }
#endif

// CPUID and XGETBV are read by hand: __builtin_cpu_supports answers 0 under some compilers, and a CPU flag alone does
// not say that the OS saves the wide registers.
Isa detect() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::generic;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave || !fma || !f16c) return Isa::generic;
  unsigned xcr_low = 0, xcr_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr_low), "=d"(xcr_high) : "c"(0));
  if ((xcr_low & 0x6) != 0x6) return Isa::generic;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::generic;
  if (!(b & (1u << 5))) return Isa::generic;
#if defined(STATEPOOL_SIMDE)
  return Isa::avx512;
#else
  const unsigned f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  const bool wide = (b & f_dq_bw_vl) == f_dq_bw_vl && (c & (1u << 11)) && (xcr_low & 0xe6) == 0xe6;
  if (!wide) return Isa::avx2;
  const unsigned tile_int8 = (1u << 24) | (1u << 25), tile_state = (1u << 17) | (1u << 18);
  const bool tiles = (d & tile_int8) == tile_int8 && (xcr_low & tile_state) == tile_state;
  return tiles && may_use_tiles() ? Isa::amx : Isa::avx512;
#endif
}
#else
Isa detect() { return Isa::generic; }
#endif

bool parse(const char* name, Isa& isa) {
  for (Isa candidate : {Isa::generic, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (std::strcmp(name, isa_name(candidate)) == 0) {
      isa = candidate;
      return true;
    }
  }
  return false;
}

Isa from_environment() {
  const char* wanted = std::getenv("STATEPOOL_ISA");
  Isa isa = best_isa();
#if defined(STATEPOOL_SIMDE)
  isa = Isa::avx2;  // the emulation is slow: only on demand
#endif
  Isa forced;
  if (wanted && parse(wanted, forced) && forced <= best_isa()) isa = forced;
  return isa;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{from_environment()};
  return isa;
}

}  // namespace

Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa active_isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(const char* name) {
  Isa isa;
  if (!parse(name, isa) || isa > best_isa()) return false;
  current().store(isa, std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx: return "amx";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "generic";
  }
}

}  // namespace statepool
