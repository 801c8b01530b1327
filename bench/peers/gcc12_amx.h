// Included into llama.cpp's build. GCC 12's _tile_loadconfig declares that it reads 8 bytes of the 64, so the compiler drops
// the stores to the rest and the first tile instruction traps.
#if defined(__cplusplus) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(p) __asm__ volatile("ldtilecfg %0" : : "m"(*reinterpret_cast<const char(*)[64]>(p)))
#endif
