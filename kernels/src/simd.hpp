// Vectors of one instruction set: 16 lanes of AVX-512, 8 of AVX2 or 4 of NEON. Included by one translation unit per set,
// in which every function is static: nothing compiled for a newer CPU may be linked into code for an older one.
//
// A set's header defines Float, Raw (32 bits a lane), Bytes (a run of bytes) and the functions that follow in simd_x86.hpp.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
#ifdef __clang__
#define ALONE static __attribute__((noinline))
#else
#define ALONE static __attribute__((noipa))
#endif
#define MEMBER inline __attribute__((always_inline))
#define INLINE static MEMBER

typedef uint32_t Int __attribute__((vector_size(LANES * 4), may_alias));  // sums: wrap around instead of overflowing
typedef int32_t Signed __attribute__((vector_size(LANES * 4), may_alias));

#ifdef __ARM_NEON
#include "simd_neon.hpp"
#else
#include "simd_x86.hpp"
#endif

INLINE Int load_ints(const int32_t *from, int n) {
  return (Int)load_floats((const float *)from, n);
}

INLINE Int all_of(int32_t x) { return Int{} + (uint32_t)x; }

// The lanes divided by 2^n, rounded down.
INLINE Int halved(Int x, int n) { return (Int)((Signed)x >> n); }

// Four codes or four weights of each lane; the same four in every lane.
INLINE Codes codes_at(const void *from) { return codes_of(load<Raw>(from)); }
INLINE Weights weights_at(const void *from) { return weights_of(load<Raw>(from)); }
INLINE Codes four_codes(const void *from) { return codes_of(repeated(from)); }
INLINE Weights four_weights(const void *from) { return weights_of(repeated(from)); }
