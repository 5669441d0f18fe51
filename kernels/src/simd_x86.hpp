// AVX-512 and AVX2: see simd.hpp.
#pragma once

#include <immintrin.h>

#ifdef __AVX512F__
#define EACH(name) _mm512_##name
typedef __m512 Float;
typedef __m512i Raw;
typedef uint8_t Byte64 __attribute__((vector_size(64), may_alias));
#else
#define EACH(name) _mm256_##name
typedef __m256 Float;
typedef __m256i Raw;
#endif
typedef uint8_t Bytes __attribute__((vector_size(32), may_alias));

template <class V>
INLINE V load(const void *from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
INLINE void store(void *to, V v) {
  memcpy(to, &v, sizeof v);
}

// The first n bytes; the others are 0.
template <class V>
INLINE V load_part(const uint8_t *from, int n) {
  if (n >= (int)sizeof(V)) return load<V>(from);
#ifdef __AVX512BW__
  if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_loadu_epi8((1ull << n) - 1, from);
  if constexpr (sizeof(V) == 32) return (V)_mm256_maskz_loadu_epi8((1u << n) - 1, from);
#endif
  V v = {};
  memcpy(&v, from, n);
  return v;
}

INLINE Float broadcast(float x) { return EACH(set1_ps)(x); }
INLINE Float fma(Float a, Float b, Float c) { return EACH(fmadd_ps)(a, b, c); }
INLINE Float fnma(Float a, Float b, Float c) { return EACH(fnmadd_ps)(a, b, c); }
INLINE Float root(Float x) { return EACH(sqrt_ps)(x); }
INLINE Float smaller(Float a, Float b) { return EACH(min_ps)(a, b); }
INLINE Float larger(Float a, Float b) { return EACH(max_ps)(a, b); }
INLINE Float to_float(Int x) { return EACH(cvtepi32_ps)((Raw)x); }
INLINE Int to_int(Float x) { return (Int)EACH(cvtps_epi32)(x); }  // half to even, as the CPU is set when a process starts

INLINE Float size_of(Float x) {
#ifdef __AVX512F__
  return _mm512_abs_ps(x);
#else
  return _mm256_andnot_ps(broadcast(-0.0f), x);
#endif
}

// Whether a lane of |x - round(x)| is so near to a tie that 1 / step may have moved it across.
INLINE bool near_tie(Float rest) {
  const float TIE = 0.5f - 0x1p-12f;
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask(rest, broadcast(TIE), _CMP_GT_OQ) != 0;
#else
  return _mm256_movemask_ps(_mm256_cmp_ps(rest, broadcast(TIE), _CMP_GT_OQ)) != 0;
#endif
}

// The first n lanes; those that are loaded beyond are 0.
#ifdef __AVX512F__
INLINE __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }
#else
INLINE Raw first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

INLINE Float load_floats(const float *from, int n) {
  if (n == LANES) return load<Float>(from);
#ifdef __AVX512F__
  return _mm512_maskz_loadu_ps(first_lanes(n), from);
#else
  return _mm256_maskload_ps(from, first_lanes(n));
#endif
}

// Bytes as numbers.
INLINE Float load_codes(const uint8_t *from, int n) {
#ifdef __AVX512F__
  if (n == LANES) return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load<__m128i>(from)));
#else
  if (n == LANES) return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#endif
  uint8_t all[16] = {};
  memcpy(all, from, n);
  return EACH(cvtepi32_ps)(EACH(cvtepu8_epi32)(load<__m128i>(all)));
}

INLINE void store_floats(float *to, Float v, int n) {
  if (n == LANES) return store(to, v);
#ifdef __AVX512F__
  _mm512_mask_storeu_ps(to, first_lanes(n), v);
#else
  _mm256_maskstore_ps(to, first_lanes(n), v);
#endif
}

// The lanes of V vectors as bytes, those beyond 0 .. 255 clamped; n lanes of the last vector.
template <int V>
INLINE void store_bytes(uint8_t *to, const Int *v, int n) {
#ifdef __AVX512F__
  Raw order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  Raw low = _mm512_packs_epi32((Raw)v[0], (Raw)v[1]), high = _mm512_packs_epi32((Raw)v[2], (Raw)v[3]);
  Raw bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
#else
  Raw order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  Raw low = _mm256_packs_epi32((Raw)v[0], (Raw)v[1]), high = _mm256_packs_epi32((Raw)v[2], (Raw)v[3]);
  Raw bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
#endif
  memcpy(to, &bytes, n == LANES ? V * LANES : (V - 1) * LANES + n);
}

// bfloat16 is the upper half of a float, rounded half to even.
INLINE Float load_half(const uint16_t *from, int n) {
#ifdef __AVX512F__
  return (Float)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)load_part<Bytes>((const uint8_t *)from, 2 * n)), 16);
#else
  uint16_t all[LANES] = {};
  memcpy(all, from, 2 * n);
  return (Float)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load<__m128i>(all)), 16);
#endif
}

INLINE void store_half(uint16_t *to, Float v, int n) {
  Int bits = (Int)v, upper = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#ifdef __AVX512F__
  if (n == LANES) return store(to, _mm512_cvtepi32_epi16((Raw)upper));
#endif
  uint16_t all[LANES];
  for (int i = 0; i < LANES; i++) all[i] = (uint16_t)upper[i];
  memcpy(to, all, 2 * n);
}

// The lowest byte of each lane.
INLINE void store_low_bytes(int8_t *to, Int v) {
#ifdef __AVX512F__
  store(to, _mm512_cvtepi32_epi8((Raw)v));
#else
  Raw order = _mm256_set1_epi32(0x0c080400), lanes = _mm256_set_epi32(0, 0, 0, 0, 0, 0, 4, 0);
  Raw packed = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8((Raw)v, order), lanes);
  store(to, (uint64_t)_mm_cvtsi128_si64(_mm256_castsi256_si128(packed)));
#endif
}

// sum + (u8 - MOVED) . s8 over the 4 bytes of each lane. AVX2's vpmaddubsw would saturate: products of 16 bits are added
// instead.
enum { MOVED = 0 };
#ifdef __AVX512VNNI__
struct Codes {
  Raw all;
};
struct Weights {
  Raw all;
};
INLINE Codes codes_of(Raw all) { return {all}; }
INLINE Weights weights_of(Raw all) { return {all}; }
INLINE Raw dot(Raw sum, Codes x, Weights w) { return _mm512_dpbusd_epi32(sum, x.all, w.all); }
#else
struct Codes {
  Raw even, odd;
};
struct Weights {
  Raw even, odd;
};
INLINE Codes codes_of(Raw all) { return {_mm256_and_si256(all, _mm256_set1_epi16(255)), _mm256_srli_epi16(all, 8)}; }
INLINE Weights weights_of(Raw all) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)};
}
INLINE Raw dot(Raw sum, Codes x, Weights w) {
  Raw pair = _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even), _mm256_madd_epi16(x.odd, w.odd));
  return _mm256_add_epi32(sum, pair);
}
#endif

// The same four bytes in every lane.
INLINE Raw repeated(const void *from) { return EACH(set1_epi32)(load<int32_t>(from)); }

// Keeps the compiler from knowing what is in a register.
INLINE void keep(Raw &x) { __asm__ volatile("" : "+v"(x)); }
