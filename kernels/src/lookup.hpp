// Convolution of 2-bit codes with 2-bit weights by table look-up (AVX512-VBMI).
//
// Three activation codes of a pixel choose one of 64 tables of 64 bytes; three weight codes are an index into it. One
// `vpermb` therefore looks up the sums of three products for 64 output channels. Sums of 9 look-ups fit in u8; then they
// are widened to u16.
#pragma once

#include "direct.hpp"

#ifdef __AVX512VBMI__

enum { MOST_GROUPS = 65535 / LARGEST_LOOKUP, LOOKUP_PIXELS = 8, LOOKUPS = 255 / LARGEST_LOOKUP };

// The input as table offsets (64 x index), padded: (t, h, w, group), and what a block may read beyond it.
struct Indices {
  int64_t row, plane, count;
  int groups, w;
};

static Indices lookup_indices(const bk_convolution &c, const bk_input &x) {
  const bk_layer &l = c.layer;
  Indices i;
  i.groups = (l.channels + GROUP - 1) / GROUP;
  i.w = x.size[2] + 2 * l.padding[2];
  i.row = (int64_t)i.w * i.groups;
  i.plane = i.row * (x.size[1] + 2 * l.padding[1]);
  i.count = i.plane * (x.size[0] + 2 * l.padding[0]) + (int64_t)LOOKUP_PIXELS * l.stride[2] * i.groups;
  return i;
}

static int64_t lookup_totals(const bk_convolution &c) { return (int64_t)LOOKUP_PIXELS * c.width * 4; }

static int64_t lookup_workspace(const bk_convolution &c, const bk_input &x, int threads) {
  return aligned(lookup_indices(c, x).count * 2) + threads * lookup_totals(c);
}

// The offsets of one pixel's groups: the bytes of 16 groups come to the lanes and are summed there.
INLINE void index_pixel(const uint8_t *codes, int channels, int groups, uint16_t *to) {
  alignas(64) uint8_t order[64];
  for (int i = 0; i < 64; i++) order[i] = (uint8_t)(i / 4 * GROUP + i % 4);
  for (int g = 0; g < groups; g += LANES) {
    Raw x = _mm512_and_si512(load_part<Raw>(codes + g * GROUP, channels - g * GROUP), _mm512_set1_epi8(3));
    x = _mm512_permutexvar_epi8(load<Raw>(order), x);
    x = _mm512_dpbusd_epi32(_mm512_setzero_si512(), x, _mm512_set1_epi32(1 | 4 << 8 | 16 << 16));
    __mmask16 there = groups - g < LANES ? first_lanes(groups - g) : (__mmask16)-1;
    _mm256_mask_storeu_epi16(to + g, there, _mm512_cvtepi32_epi16(_mm512_slli_epi32(x, 6)));
  }
}

// The offsets of one padded row.
static void index_row(const bk_convolution &c, const bk_input &x, const Indices &i, int t, int h, const uint16_t *outside,
                      uint16_t *to) {
  const bk_layer &l = c.layer;
  bool inside = (unsigned)t < (unsigned)x.size[0] && (unsigned)h < (unsigned)x.size[1];
  for (int w = -l.padding[2]; w < x.size[2] + l.padding[2]; w++, to += i.groups) {
    if (inside && (unsigned)w < (unsigned)x.size[2])
      index_pixel(x.codes + (((int64_t)t * x.size[1] + h) * x.size[2] + w) * x.stride, l.channels, i.groups, to);
    else
      memcpy(to, outside, 2 * i.groups);
  }
}

// Adds up to 9 look-ups a pixel in u8 and widens them: even[p] and odd[p] hold the u16 sums of even and odd outputs.
INLINE void look_up(const uint16_t *offsets, int64_t next, int count, const uint8_t *table, const int8_t *weights,
                    Raw *even, Raw *odd) {
  Raw sums[LOOKUP_PIXELS];
#pragma GCC unroll 8
  for (int p = 0; p < LOOKUP_PIXELS; p++) sums[p] = _mm512_setzero_si512();
  for (int i = 0; i < count; i++) {
    Raw w = load<Raw>(weights + i * 64);
#pragma GCC unroll 8
    for (int p = 0; p < LOOKUP_PIXELS; p++) {
      Raw row = load<Raw>(table + offsets[p * next + i]);
      sums[p] = _mm512_add_epi8(sums[p], _mm512_permutexvar_epi8(w, row));
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < LOOKUP_PIXELS; p++) {
    even[p] = _mm512_add_epi16(even[p], _mm512_and_si512(sums[p], _mm512_set1_epi16(255)));
    odd[p] = _mm512_add_epi16(odd[p], _mm512_srli_epi16(sums[p], 8));
  }
}

// u16 sums of even and odd bytes -> totals of 64 outputs. The weights are packed so that these come out in order.
INLINE void widen(Raw even, Raw odd, const int32_t *start, int32_t *totals) {
  Raw parts[4] = {_mm512_and_si512(even, _mm512_set1_epi32(65535)), _mm512_srli_epi32(even, 16),
                  _mm512_and_si512(odd, _mm512_set1_epi32(65535)), _mm512_srli_epi32(odd, 16)};
#pragma GCC unroll 4
  for (int v = 0; v < 4; v++) store(totals + v * LANES, _mm512_add_epi32(parts[v], load<Raw>(start + v * LANES)));
}

// The totals of LOOKUP_PIXELS pixels from the first one's offsets on, for the outputs of one block of 64.
static void lookup_block(const bk_convolution &c, const Indices &i, const uint16_t *offsets, int first, int32_t *totals) {
  const bk_layer &l = c.layer;
  Raw even[LOOKUP_PIXELS] = {}, odd[LOOKUP_PIXELS] = {};
  const int8_t *w = c.packed + (int64_t)first * l.kernel[0] * l.kernel[1] * l.kernel[2] * i.groups;
  int run = l.kernel[2] * i.groups;
  int64_t next = (int64_t)l.stride[2] * i.groups;
  for (int dt = 0; dt < l.kernel[0]; dt++)
    for (int dh = 0; dh < l.kernel[1]; dh++) {
      const uint16_t *from = offsets + dt * i.plane + dh * i.row;
      int k = 0;
      for (; k + LOOKUPS <= run; k += LOOKUPS, w += LOOKUPS * 64) look_up(from + k, next, LOOKUPS, c.table, w, even, odd);
      if (k < run) look_up(from + k, next, run - k, c.table, w, even, odd), w += (run - k) * 64;
    }
  for (int p = 0; p < LOOKUP_PIXELS; p++) widen(even[p], odd[p], c.start + first, totals + (int64_t)p * c.width + first);
}

static void lookup(const bk_convolution &c, const bk_input &x, const bk_output &output, uint8_t *workspace, int threads) {
  const bk_layer &l = c.layer;
  Size size = output_size(l, x.size);
  const Stage stage = make_stage(output, l.outputs);
  Indices i = lookup_indices(c, x);
  uint16_t *indices = (uint16_t *)workspace, outside[MOST_GROUPS];
  uint8_t zeros[GROUP] = {(uint8_t)l.zero, (uint8_t)l.zero, (uint8_t)l.zero};
  for (int g = 0; g < i.groups; g++) {
    int left = l.channels - g * GROUP;
    index_pixel(zeros, left < GROUP ? left : GROUP, 1, outside + g);
  }
  int tall = x.size[1] + 2 * l.padding[1], rows = (x.size[0] + 2 * l.padding[0]) * tall;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int row = 0; row < rows; row++)
    index_row(c, x, i, row / tall - l.padding[0], row % tall - l.padding[1], outside, indices + row * i.row);
  memset(indices + rows * i.row, 0, (i.count - rows * i.row) * 2);

  uint8_t *rest = workspace + aligned(i.count * 2);
  int blocks = (size.w + LOOKUP_PIXELS - 1) / LOOKUP_PIXELS;
  int64_t all = (int64_t)size.t * size.h * blocks;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; thread++) {
    int32_t *totals = (int32_t *)(rest + thread * lookup_totals(c));
    Side side = make_side(output, rest + threads * lookup_totals(c), thread);
    for (int64_t block = all * thread / threads; block < all * (thread + 1) / threads; block++) {
      int w = (int)(block % blocks) * LOOKUP_PIXELS, h = (int)(block / blocks % size.h), t = (int)(block / blocks / size.h);
      int n = size.w - w < LOOKUP_PIXELS ? size.w - w : LOOKUP_PIXELS;
      const uint16_t *from = indices + t * l.stride[0] * i.plane + h * l.stride[1] * i.row +
                             (int64_t)w * l.stride[2] * i.groups;
      for (int first = 0; first < c.width; first += 64) lookup_block(c, i, from, first, totals);
      finish_run(stage, side, size, totals, c.width, t, h, w, n);
    }
  }
}

#endif
