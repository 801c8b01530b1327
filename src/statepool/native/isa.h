// Which instruction set runs. Kernels are compiled once per set; all of them give the same bits.
#pragma once

namespace statepool {

// amx is avx512 with tiles of bytes for the int8 products; everything else runs the avx512 kernels.
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, amx = 3 };

// The set in use: the best the CPU and the OS support, lowered by STATEPOOL_ISA.
Isa active_isa();
// Lower (or raise again) the set in use. False if the name is unknown or the machine lacks it.
bool set_isa(const char* name);
const char* isa_name(Isa isa);
// The best set of this machine, whatever STATEPOOL_ISA says.
Isa best_isa();

}  // namespace statepool

// A kernel family is a struct of function pointers. In its header:
//     struct FooKernels { void (*run)(...); };
//     STATEPOOL_KERNELS(FooKernels, foo_kernels)
// and at the end of foo_kernels.cpp, which is compiled once per set:
//     namespace statepool::STATEPOOL_NS { extern const FooKernels foo_kernels; const FooKernels foo_kernels = {&run}; }
// Plain code then calls statepool::foo_kernels().run(...).
#if defined(STATEPOOL_X86)
#define STATEPOOL_KERNELS(Type, name)                                  \
  namespace statepool {                                                \
  namespace generic { extern const Type name; }                        \
  namespace avx2 { extern const Type name; }                           \
  namespace avx512 { extern const Type name; }                         \
  inline const Type& name() {                                          \
    switch (active_isa()) {                                            \
      case Isa::amx:                                                   \
      case Isa::avx512: return avx512::name;                           \
      case Isa::avx2: return avx2::name;                               \
      default: return generic::name;                                   \
    }                                                                  \
  }                                                                    \
  }
#elif defined(STATEPOOL_NS)
#define STATEPOOL_KERNELS(Type, name)  // inside a kernel file: it defines its own table
#else
#define STATEPOOL_KERNELS(Type, name)                                  \
  namespace statepool {                                                \
  namespace generic { extern const Type name; }                        \
  inline const Type& name() { return generic::name; }                  \
  }
#endif
