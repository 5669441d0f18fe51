// Convolution of 2-bit codes with 2-bit weights by table look-up (AVX512-VBMI).
//
// Three activation codes of a pixel choose one of 64 tables of 64 bytes; three weight codes are an index into it. One
// `vpermb` therefore looks up the sums of three products for 64 output channels. Sums of 9 look-ups fit in u8; then they
// are widened to u16.
#pragma once

#include "direct.hpp"

#ifdef __AVX512VBMI__

enum { MOST_GROUPS = 65535 / LARGEST_LOOKUP, LOOKUP_PIXELS = 8, LOOKUPS = 255 / LARGEST_LOOKUP };

// The input as table offsets (64 x index), padded, of the rows that one row of the output sees: a ring of kh rows of every
// frame, (t, row % kh, w, group), and what a block may read beyond it.
struct Indices {
  int64_t row, frame, count;
  int groups;
};

static Indices lookup_indices(const bk_convolution &c, const bk_input &x) {
  const bk_layer &l = c.layer;
  Indices i;
  i.groups = (l.channels + GROUP - 1) / GROUP;
  i.row = (int64_t)(x.size[2] + 2 * l.padding[2]) * i.groups;
  i.frame = i.row * l.kernel[1];
  i.count = i.frame * (x.size[0] + 2 * l.padding[0]) + (int64_t)LOOKUP_PIXELS * l.stride[2] * i.groups;
  return i;
}

static int64_t lookup_totals(const bk_convolution &c) { return (int64_t)LOOKUP_PIXELS * c.width * 4; }

// Of one thread.
static int64_t lookup_space(const bk_convolution &c, const bk_input &x) {
  return lookup_totals(c) + aligned(lookup_indices(c, x).count * 2);
}

static int64_t lookup_workspace(const bk_convolution &c, const bk_input &x, int threads) {
  return threads * lookup_space(c, x);
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
static void index_row(const bk_convolution &c, const bk_input &x, int groups, int t, int h, const uint16_t *outside,
                      uint16_t *to) {
  const bk_layer &l = c.layer;
  bool inside = (unsigned)t < (unsigned)x.size[0] && (unsigned)h < (unsigned)x.size[1];
  for (int w = -l.padding[2]; w < x.size[2] + l.padding[2]; w++, to += groups) {
    if (inside && (unsigned)w < (unsigned)x.size[2])
      index_pixel(x.codes + (((int64_t)t * x.size[1] + h) * x.size[2] + w) * x.stride, l.channels, groups, to);
    else
      memcpy(to, outside, 2 * groups);
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

// The totals of LOOKUP_PIXELS pixels from offset `at` of the rows of taps on, for the outputs of one block of 64.
static void lookup_block(const bk_convolution &c, int groups, const uint16_t *const *rows, int64_t at, int first,
                         int32_t *totals) {
  const bk_layer &l = c.layer;
  Raw even[LOOKUP_PIXELS] = {}, odd[LOOKUP_PIXELS] = {};
  const int8_t *w = c.packed + (int64_t)first * l.kernel[0] * l.kernel[1] * l.kernel[2] * groups;
  int run = l.kernel[2] * groups;
  int64_t next = (int64_t)l.stride[2] * groups;
  for (int r = 0; r < l.kernel[0] * l.kernel[1]; r++) {
    const uint16_t *from = rows[r] + at;
    int k = 0;
    for (; k + LOOKUPS <= run; k += LOOKUPS, w += LOOKUPS * 64) look_up(from + k, next, LOOKUPS, c.table, w, even, odd);
    if (k < run) look_up(from + k, next, run - k, c.table, w, even, odd), w += (run - k) * 64;
  }
  for (int p = 0; p < LOOKUP_PIXELS; p++) widen(even[p], odd[p], c.start + first, totals + (int64_t)p * c.width + first);
}

// The output rows from `begin` to `end` of all frames. What is outside of the input is `outside` in the ring.
static void lookup_rows(const bk_convolution &c, const bk_input &x, const Stage &stage, const Side &side, const Size &size,
                        const uint16_t *outside, int begin, int end, uint8_t *space) {
  const bk_layer &l = c.layer;
  const Indices i = lookup_indices(c, x);
  const int tall = l.kernel[1], frames = x.size[0] + 2 * l.padding[0];
  int32_t *totals = (int32_t *)space;
  uint16_t *ring = (uint16_t *)(space + lookup_totals(c));
  memset(ring + frames * i.frame, 0, (i.count - frames * i.frame) * 2);
  int known = 0;  // padded rows before this one were indexed, if they were needed
  for (int h = begin; h < end; h++) {
    int top = h * l.stride[1];
    for (int row = known > top ? known : top; row < top + tall; row++)
      for (int t = 0; t < frames; t++)
        index_row(c, x, i.groups, t - l.padding[0], row - l.padding[1], outside, ring + t * i.frame + row % tall * i.row);
    known = top + tall;
    for (int t = 0; t < size.t; t++) {
      const uint16_t *rows[MOST_ROWS];
      for (int r = 0; r < l.kernel[0] * tall; r++)
        rows[r] = ring + (t * l.stride[0] + r / tall) * i.frame + (top + r % tall) % tall * i.row;
      for (int w = 0; w < size.w; w += LOOKUP_PIXELS) {
        for (int first = 0; first < c.width; first += 64)
          lookup_block(c, i.groups, rows, (int64_t)w * l.stride[2] * i.groups, first, totals);
        finish_run(stage, side, size, totals, c.width, t, h, w, size.w - w < LOOKUP_PIXELS ? size.w - w : LOOKUP_PIXELS);
      }
    }
  }
}

static void lookup(const bk_convolution &c, const bk_input &x, const bk_output &output, uint8_t *workspace, int threads) {
  const bk_layer &l = c.layer;
  const Size size = output_size(l, x.size);
  const Stage stage = make_stage(output, l.outputs);
  uint16_t outside[MOST_GROUPS];
  uint8_t zeros[GROUP] = {(uint8_t)l.zero, (uint8_t)l.zero, (uint8_t)l.zero};
  for (int k = 0; k < l.channels; k += GROUP) {
    int left = l.channels - k;
    index_pixel(zeros, left < GROUP ? left : GROUP, 1, outside + k / GROUP);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; thread++) {
    Side side = make_side(output, workspace + lookup_workspace(c, x, threads), thread);
    lookup_rows(c, x, stage, side, size, outside, size.h * thread / threads, size.h * (thread + 1) / threads,
                workspace + thread * lookup_space(c, x));
  }
}

#endif
