// Temporal attention, with pixels in the lanes: t tokens of a pixel are too few for a matrix kernel.
#pragma once

#include "abi.h"
#include "exponential.hpp"
#include "output.hpp"

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

// Rows become columns: lane j of vector i goes to lane i of vector j.
INLINE void transpose(Int *x) {
#pragma GCC unroll 4
  for (int step = 1; step < LANES; step *= 2) {
    Int low = {}, high = {};  // lanes of the pair (first, second), second's numbered from LANES on
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      low[i] = i & step ? LANES + i - step : i;
      high[i] = i & step ? LANES + i : i + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & step)) {
        Int a = x[i], b = x[i + step];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + step] = __builtin_shuffle(a, b, high);
      }
  }
}

// Codes of LANES pixels from `pixel` on (the last one again where there are fewer), minus nothing, as floats:
// values[token][channel].
static void load_tokens(const bk_attention &a, int64_t pixel, int n, Float *values) {
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
        for (int j = 0; j < 4 && 4 * i + j < bytes; j++)
          values[t * channels + c + 4 * i + j] = to_float(x[i] >> 8 * j & 255);
    }
  }
}

static void store_sums(int32_t *to, Float v, int64_t pixel, int n, int64_t row, int64_t at) {
  Int sums = to_int(v);
  for (int p = 0; p < n; p++) to[(pixel + p) * row + at] = (int32_t)sums[p];
}

// The weights of token i over all tokens, as codes minus their zero.
INLINE void weigh(const bk_attention &a, int head, const Float *q, const Float *keys, int64_t pitch, int64_t pixel, int n,
                  int i, Float *weights) {
  Float zero_k = broadcast(a.zeros[a.heads + head]), top = broadcast(-3.0e38f), sum = broadcast(0.0f);
  for (int j = 0; j < a.tokens; j++) {
    Float score = broadcast(0.0f);
    for (int d = 0; d < a.depth; d++) score = fma(q[d], keys[j * pitch + d] - zero_k, score);
    if (a.scores)
      store_sums(a.scores, score, pixel, n, (int64_t)a.heads * a.tokens * a.tokens, (head * a.tokens + i) * a.tokens + j);
    weights[j] = score * broadcast(a.score_unit[head]);
    top = larger(top, weights[j]);
  }
  for (int j = 0; j < a.tokens; j++) {
    weights[j] = exponential(weights[j] - top);
    sum = sum + weights[j];
  }
  float zero = a.zeros[2 * a.heads + head];
  Grid grid = make_grid(broadcast(a.weight_step[head]), broadcast(zero + a.weight_low), a.weight_low, a.weight_high);
  for (int j = 0; j < a.tokens; j++) weights[j] = to_float(to_codes(weights[j] / sum, grid)) - broadcast(zero);
}

static void attend_pixels(const bk_attention &a, int64_t pixel, int n, Float *values, Float *outputs) {
  load_tokens(a, pixel, n, values);
  int inner = a.heads * a.depth, pitch = 3 * inner;
  Float q[256], weights[MOST_TOKENS];
  for (int head = 0; head < a.heads; head++) {
    const Float *first = values + head * a.depth;
    Float zero_q = broadcast(a.zeros[head]), zero_v = broadcast(a.zeros[3 * a.heads + head]);
    for (int i = 0; i < a.tokens; i++) {
      for (int d = 0; d < a.depth; d++) q[d] = first[i * pitch + d] - zero_q;
      weigh(a, head, q, first + inner, pitch, pixel, n, i, weights);
      for (int d = 0; d < a.depth; d++) {
        Float mixed = broadcast(0.0f);
        for (int j = 0; j < a.tokens; j++) mixed = fma(weights[j], first[2 * inner + j * pitch + d] - zero_v, mixed);
        if (a.mixed)
          store_sums(a.mixed, mixed, pixel, n, (int64_t)inner * a.tokens, (head * a.tokens + i) * a.depth + d);
        outputs[i * inner + head * a.depth + d] = mixed * broadcast(a.mixed_unit[head]);
      }
    }
  }
  Grid grid = make_grid(broadcast(a.output_step), broadcast(a.output_zero), a.output_low, a.output_high);
  for (int t = 0; t < a.tokens; t++) {
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
#pragma omp parallel num_threads(threads)
  {
    Float *memory = (Float *)_mm_malloc(sizeof(Float) * 4 * inner * a.tokens, 64);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      int64_t pixel = block * LANES;
      int n = a.pixels - pixel < LANES ? (int)(a.pixels - pixel) : LANES;
      attend_pixels(a, pixel, n, memory, memory + 3 * inner * a.tokens);
    }
    _mm_free(memory);
  }
}
