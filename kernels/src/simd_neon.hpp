// NEON with the dot product of Armv8.2: see simd.hpp.
#pragma once

#include <arm_neon.h>

typedef float32x4_t Float;
typedef int32x4_t Raw;
typedef uint8_t Bytes __attribute__((vector_size(16), may_alias));

// What GCC knows to be a vector stays out of the integer registers.
template <class V>
INLINE V load(const void *from) {
  if constexpr (sizeof(V) == 16) return (V)vld1q_u8((const uint8_t *)from);
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
INLINE void store(void *to, V v) {
  if constexpr (sizeof(V) == 16)
    vst1q_u8((uint8_t *)to, (uint8x16_t)v);
  else
    memcpy(to, &v, sizeof v);
}

// The first n bytes; the others are 0.
template <class V>
INLINE V load_part(const uint8_t *from, int n) {
  if (n >= (int)sizeof(V)) return load<V>(from);
  V v = {};
  if (n > 0) memcpy(&v, from, n);
  return v;
}

INLINE Float broadcast(float x) { return vdupq_n_f32(x); }
INLINE Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
INLINE Float fnma(Float a, Float b, Float c) { return vfmsq_f32(c, a, b); }
INLINE Float root(Float x) { return vsqrtq_f32(x); }
INLINE Float smaller(Float a, Float b) { return vminnmq_f32(a, b); }  // of a NaN and a number: the number
INLINE Float larger(Float a, Float b) { return vmaxnmq_f32(a, b); }
INLINE Float to_float(Int x) { return vcvtq_f32_s32((int32x4_t)x); }
INLINE Int to_int(Float x) { return (Int)vcvtnq_s32_f32(x); }  // half to even
INLINE Float size_of(Float x) { return vabsq_f32(x); }

// Whether a lane of |x - round(x)| is so near to a tie that 1 / step may have moved it across.
INLINE bool near_tie(Float rest) { return vmaxvq_u32(vcgtq_f32(rest, broadcast(0.5f - 0x1p-12f))) != 0; }

// The first n lanes; those that are loaded beyond are 0.
INLINE Float load_floats(const float *from, int n) {
  if (n == LANES) return load<Float>(from);
  Float v = {};
  memcpy(&v, from, 4 * n);
  return v;
}

// Bytes as numbers.
INLINE Float load_codes(const uint8_t *from, int n) {
  uint8_t all[8] = {};
  memcpy(all, from, n);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(all)))));
}

INLINE void store_floats(float *to, Float v, int n) {
  if (n == LANES) return store(to, v);
  memcpy(to, &v, 4 * n);
}

// The lanes of V vectors as bytes, those beyond 0 .. 255 clamped; n lanes of the last vector.
template <int V>
INLINE void store_bytes(uint8_t *to, const Int *v, int n) {
  auto halves = [&](int i) { return vcombine_u16(vqmovun_s32((Raw)v[i]), vqmovun_s32((Raw)v[i + 1])); };
  uint8x16_t bytes = vcombine_u8(vqmovn_u16(halves(0)), vqmovn_u16(halves(2)));
  memcpy(to, &bytes, n == LANES ? V * LANES : (V - 1) * LANES + n);
}

// bfloat16 is the upper half of a float, rounded half to even.
INLINE Float load_half(const uint16_t *from, int n) {
  uint16x4_t x = {};
  memcpy(&x, from, 2 * n);
  return (Float)vshll_n_u16(x, 16);
}

INLINE void store_half(uint16_t *to, Float v, int n) {
  Int bits = (Int)v, upper = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  uint16x4_t half = vmovn_u32((uint32x4_t)upper);
  memcpy(to, &half, 2 * n);
}

// The lowest byte of each lane.
INLINE void store_low_bytes(int8_t *to, Int v) {
  uint16x4_t low = vmovn_u32((uint32x4_t)v);
  uint8x8_t bytes = vmovn_u16(vcombine_u16(low, low));
  memcpy(to, &bytes, LANES);
}

// sum + (u8 - MOVED) . s8 over the 4 bytes of each lane: the dot product multiplies signed by signed bytes.
enum { MOVED = 128 };
struct Codes {
  int8x16_t all;
};
struct Weights {
  int8x16_t all;
};
INLINE Codes codes_of(Raw all) { return {veorq_s8((int8x16_t)all, vdupq_n_s8(-128))}; }
INLINE Weights weights_of(Raw all) { return {(int8x16_t)all}; }
INLINE Raw dot(Raw sum, Codes x, Weights w) { return vdotq_s32(sum, x.all, w.all); }

// The same four bytes in every lane.
INLINE Raw repeated(const void *from) { return vld1q_dup_s32((const int32_t *)from); }

// Keeps the compiler from knowing what is in a register.
INLINE void keep(Raw &x) { __asm__ volatile("" : "+w"(x)); }
