// The kernels of one instruction set; compiled once for each, with -DLEVEL=name and the compiler's flags for it.

#include "attention.hpp"
#include "denoise.hpp"
#include "direct.hpp"
#include "lookup.hpp"
#include "windows.hpp"
#include "winograd.hpp"

#include <time.h>

static void finish(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output &output,
                   int threads) {
  finish_values(pixels, channels, values, stride, output, threads);
}

// 12 independent sums in registers: what multiplications alone would take.
static double peak(long rounds) {
  Raw sums[12];
  alignas(64) static const uint8_t x[64] = {1, 2, 3, 4};
  const int8_t *w = (const int8_t *)x;
  Codes codes = four_codes(x);
  Weights weights = weights_at(w);
#pragma GCC unroll 12
  for (int i = 0; i < 12; i++) sums[i] = load<Raw>(w);
  timespec from, to;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
  for (long r = 0; r < rounds; r++)
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) {
      sums[i] = dot(sums[i], codes, weights);
      keep(sums[i]);
    }
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
  double seconds = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
  return (double)rounds * 12 * LANES * 4 / seconds / 1e9;
}

#ifdef __AVX512VBMI__
#define LOOKUP lookup
#define LOOKUP_WORKSPACE lookup_workspace
#else
#define LOOKUP nullptr
#define LOOKUP_WORKSPACE nullptr
#endif

const Level LEVEL = {MOVED,
                     {direct, winograd<16>, winograd<64>, LOOKUP, winograd<25>},
                     {direct_workspace, winograd_workspace, winograd_workspace, LOOKUP_WORKSPACE, winograd_workspace},
                     finish,
                     attend,
                     denoise,
                     peak,
                     swin_workspace,
                     swin};
