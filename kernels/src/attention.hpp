// Temporal attention, with pixels in the lanes: t tokens of a pixel are too few for a matrix kernel.
#pragma once

#include "abi.h"
#include "exponential.hpp"
#include "output.hpp"

#include <stdlib.h>

#include <utility>

enum { MOST_TOKENS = 64 };

INLINE Float exponential(Float x) {
  x = larger(x, broadcast(EXP_LOWEST));
  Int n = to_int(x * broadcast(EXP_LOG2E));
  Float whole = to_float(n);
  Float rest = fnma(whole, broadcast(EXP_LN2_HIGH), x);
  rest = fnma(whole, broadcast(EXP_LN2_LOW), rest);
  Float sum = broadcast(EXP_TERMS[0]);
#pragma GCC unroll 5
  for (int i = 1; i < 6; i++) sum = fma(sum, rest, broadcast(EXP_TERMS[i]));
  sum = fma(sum, rest * rest, rest + broadcast(1.0f));
  return sum * (Float)((n + 127) << 23);
}

// Half of the lanes of a and half of those of b: those without the bit STEP, or HIGH, those with it, side by side.
template <int STEP, bool HIGH, int... I>
INLINE Int exchanged(Int a, Int b, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (I & STEP ? LANES + I - !HIGH * STEP : I + HIGH * STEP)...);
#else
  return __builtin_shuffle(a, b, Int{(I & STEP ? LANES + I - !HIGH * STEP : I + HIGH * STEP)...});
#endif
}

// Rows become columns: lane j of vector i goes to lane i of vector j.
template <int STEP = 1>
INLINE void transpose(Int *x) {
  constexpr std::make_integer_sequence<int, LANES> lanes{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    if (!(i & STEP)) {
      Int a = x[i], b = x[i + STEP];
      x[i] = exchanged<STEP, false>(a, b, lanes);
      x[i + STEP] = exchanged<STEP, true>(a, b, lanes);
    }
  if constexpr (2 * STEP < LANES) transpose<2 * STEP>(x);
}

// Codes of LANES pixels from `pixel` on (the last one again where there are fewer), minus their zero, as floats:
// values[token][channel].
static void load_tokens(const bk_attention &a, const float *zeros, int64_t pixel, int n, Float *values) {
  int channels = 3 * a.heads * a.depth;
  for (int t = 0; t < a.tokens; t++) {
    const uint8_t *from = a.codes + (t * a.pixels + pixel) * a.stride;
    for (int c = 0; c < channels; c += 4 * LANES) {
      Int x[LANES];
      int bytes = channels - c;
#pragma GCC unroll 16
      for (int p = 0; p < LANES; p++) x[p] = load_part<Int>(from + (p < n ? p : n - 1) * a.stride + c, bytes);
      transpose(x);
      for (int i = 0; i < LANES && 4 * i < bytes; i++)
        for (int j = 0; j < 4 && 4 * i + j < bytes; j++) {
          int channel = c + 4 * i + j;
          values[t * channels + channel] = to_float(x[i] >> 8 * j & 255) - broadcast(zeros[channel]);
        }
    }
  }
}

static void store_sums(int32_t *to, Float v, int64_t pixel, int n, int64_t row, int64_t at) {
  Int sums = to_int(v);
  for (int p = 0; p < n; p++) to[(pixel + p) * row + at] = (int32_t)sums[p];
}

// The weights of a token over all T tokens (0: as many as there are), as codes minus their zero; `keys` lie `pitch` apart.
//
// Places within 512 of zero that come from a product with 1 / (sum step) differ from the quotients' by less than
// 6 * 512 * 2^-24 < TIE.
template <int T, int D>
INLINE void weigh(const bk_attention &a, int head, const Float *q, const Float *keys, int64_t pitch, Float *weights) {
  const int tokens = T ? T : a.tokens, depth = D ? D : a.depth;
  Float top = broadcast(-3.0e38f), sum = broadcast(0.0f), rest = broadcast(0.0f);
#pragma GCC unroll 8
  for (int j = 0; j < tokens; j++) {
    Float score = q[0] * keys[j * pitch];
#pragma GCC unroll 8
    for (int d = 1; d < depth; d++) score = fma(q[d], keys[j * pitch + d], score);
    weights[j] = score * broadcast(a.score_unit[head]);
    top = larger(top, weights[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < tokens; j++) {
    weights[j] = exponential(weights[j] - top);
    sum = sum + weights[j];
  }
  Float zero = broadcast(a.zeros[2 * a.heads + head]), step = broadcast(a.weight_step[head]);
  Float first = zero + broadcast(a.weight_low), low = broadcast(a.weight_low), high = broadcast(a.weight_high);
  Float inverse = 1.0f / (sum * step), offset = zero + low;  // codes minus low, minus zero
  Float exact[T ? T : MOST_TOKENS];
#pragma GCC unroll 8
  for (int j = 0; j < tokens; j++) {
    Float place = smaller(larger(fma(weights[j], inverse, first), low), high);
    Float code = to_float(to_int(place));
    rest = larger(rest, size_of(place - code));
    exact[j] = code - offset;
  }
  if (__builtin_expect(near_tie(rest), 0))
#pragma GCC unroll 8
    for (int j = 0; j < tokens; j++) {
      Float place = smaller(larger(weights[j] / sum / step + first, low), high);
      exact[j] = to_float(to_int(place)) - offset;
    }
#pragma GCC unroll 8
  for (int j = 0; j < tokens; j++) weights[j] = exact[j];
}

template <int T, int D>
static void attend_pixels(const bk_attention &a, const float *zeros, int64_t pixel, int n, Float *values, Float *outputs) {
  load_tokens(a, zeros, pixel, n, values);
  const int tokens = T ? T : a.tokens, depth = D ? D : a.depth, inner = a.heads * depth, pitch = 3 * inner;
  Float weights[T ? T : MOST_TOKENS];
  for (int head = 0; head < a.heads; head++) {
    const Float *first = values + head * depth;
    for (int i = 0; i < tokens; i++) {
      const Float *q = first + i * pitch, *keys = first + inner, *v = first + 2 * inner;
      if (a.scores)
        for (int j = 0; j < tokens; j++) {
          Float score = broadcast(0.0f);
          for (int d = 0; d < depth; d++) score = fma(q[d], keys[j * pitch + d], score);
          store_sums(a.scores, score, pixel, n, (int64_t)a.heads * tokens * tokens, (head * tokens + i) * tokens + j);
        }
      weigh<T, D>(a, head, q, keys, pitch, weights);
#pragma GCC unroll 8
      for (int d = 0; d < depth; d++) {
        Float mixed = weights[0] * v[d];
#pragma GCC unroll 8
        for (int j = 1; j < tokens; j++) mixed = fma(weights[j], v[j * pitch + d], mixed);
        if (a.mixed) store_sums(a.mixed, mixed, pixel, n, (int64_t)inner * tokens, (head * tokens + i) * depth + d);
        outputs[i * inner + head * depth + d] = mixed * broadcast(a.mixed_unit[head]);
      }
    }
  }
  Grid grid = make_grid(broadcast(a.output_step), broadcast(a.output_zero), a.output_low, a.output_high);
  for (int t = 0; t < tokens; t++) {
    uint8_t *to = a.output + (t * a.pixels + pixel) * a.output_stride;
    for (int c = 0; c < inner; c += 4 * LANES) {
      Int x[LANES] = {};
      int bytes = inner - c < 4 * LANES ? inner - c : 4 * LANES;
      for (int k = 0; k < bytes; k++)
        x[k / 4] |= to_codes(outputs[t * inner + c + k], grid) << 8 * (k % 4);
      transpose(x);
      for (int p = 0; p < n; p++) memcpy(to + p * a.output_stride + c, &x[p], bytes);
    }
  }
}

static void attend(const bk_attention &a, int threads) {
  int64_t blocks = (a.pixels + LANES - 1) / LANES, inner = (int64_t)a.heads * a.depth;
  auto compute = a.tokens == 8 && a.depth == 8   ? attend_pixels<8, 8>
                 : a.tokens == 8 && a.depth == 4 ? attend_pixels<8, 4>
                                                 : attend_pixels<0, 0>;
#pragma omp parallel num_threads(threads)
  {
    int64_t bytes = sizeof(Float) * 4 * inner * a.tokens + 3 * inner * sizeof(float);
    Float *memory = (Float *)aligned_alloc(64, (bytes + 63) / 64 * 64);
    float *zeros = (float *)(memory + 4 * inner * a.tokens);  // of each channel of q, k and v
    for (int64_t c = 0; c < 3 * inner; c++) zeros[c] = a.zeros[(c < 2 * inner ? c / inner : 3) * a.heads + c % inner / a.depth];
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      int64_t pixel = block * LANES;
      int n = a.pixels - pixel < LANES ? (int)(a.pixels - pixel) : LANES;
      compute(a, zeros, pixel, n, memory, memory + 3 * inner * a.tokens);
    }
    free(memory);
  }
}
