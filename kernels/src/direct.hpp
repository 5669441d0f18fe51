// Direct convolution: blocks of neighbouring pixels of an output row times blocks of output channels, in registers.
#pragma once

#include "convolution.hpp"
#include "output.hpp"

// Of a block: 12 pixels x 32 outputs, or 6 x 64 twice, of AVX-512; 4 x 16 elsewhere.
enum { PIXELS = LANES == 16 ? 12 : 4 };

// Where a block reads one row (dt, dh) of taps: the first tap of its first pixel, and the bytes between input pixels.
struct Row {
  const uint8_t *first;
  int64_t step;
};

// P pixels x V vectors of outputs: totals = start + sum over rows, taps of a row and channels.
// Compiled on its own: what GCC knows of a caller makes it give up keeping all sums in registers.
template <int P, int V>
ALONE void tile(const Row *rows, int count, int taps, int64_t stride, int depth, const int8_t *weights,
                 const int32_t *start, int32_t *totals, int64_t width) {
  Raw sums[P][V];
#pragma GCC unroll 16
  for (int v = 0; v < V; v++) {
    Raw s = load<Raw>(start + v * LANES);
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) sums[p][v] = s;
  }
  for (int r = 0; r < count; r++) {
    const uint8_t *tap = rows[r].first;
    int64_t next = rows[r].step * stride;
    for (int i = 0; i < taps; i++, tap += rows[r].step) {
      const uint8_t *from[(P + 2) / 3];  // every third pixel: the others are one and two steps away
#pragma GCC unroll 16
      for (int p = 0; p < P; p += 3) from[p / 3] = tap + p * next;
      for (int k = 0; k < depth; k += 4, weights += V * LANES * 4) {
        Weights w[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) w[v] = weights_at(weights + v * LANES * 4);
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
          Codes x = four_codes(from[p / 3] + p % 3 * next + k);
#pragma GCC unroll 16
          for (int v = 0; v < V; v++) sums[p][v] = dot(sums[p][v], x, w[v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) store(totals + p * width + v * LANES, sums[p][v]);
}

// PIXELS pixels times the block of outputs from `first` on at a position; totals are (pixel, pitch).
static void multiply(const bk_convolution &c, int position, int first, const Row *rows, int count, int taps,
                     int64_t stride, int32_t *totals, int64_t pitch) {
  const int32_t *start = c.start + (int64_t)position * c.width + first;
  const int8_t *w = c.packed + position * c.panel + (int64_t)first * c.taps * c.depth;
#ifdef __AVX512F__
  int width = block_width(c, first);
  if (width == 64) {
    tile<6, 4>(rows, count, taps, stride, c.depth, w, start, totals, pitch);
    Row rest[MOST_ROWS];
    for (int r = 0; r < count; r++) rest[r] = {rows[r].first + 6 * stride * rows[r].step, rows[r].step};
    tile<6, 4>(rest, count, taps, stride, c.depth, w, start, totals + 6 * pitch, pitch);
  } else if (width == 32) {
    tile<12, 2>(rows, count, taps, stride, c.depth, w, start, totals, pitch);
  } else {
    tile<12, 1>(rows, count, taps, stride, c.depth, w, start, totals, pitch);
  }
#else
  tile<PIXELS, 16 / LANES>(rows, count, taps, stride, c.depth, w, start, totals, pitch);
#endif
}

// What a thread copies into: `patch` holds the inputs of a block that touches a border, `outside` codes of zero.
struct DirectSpace {
  uint8_t *patch, *outside;
  int32_t *totals;
};

// Input pixels that the taps of a row of a block see, and their bytes in a patch; a flat tap ends up to 3 bytes later.
static int row_pixels(const bk_layer &l) { return (PIXELS - 1) * l.stride[2] + l.kernel[2]; }

static int64_t row_bytes(const bk_convolution &c) {
  return c.flat ? row_pixels(c.layer) * c.layer.channels + 3 : row_pixels(c.layer) * c.depth;
}

static int64_t patch_bytes(const bk_convolution &c) {
  return c.layer.kernel[0] * c.layer.kernel[1] * row_bytes(c);
}

static int64_t aligned(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static int64_t direct_space(const bk_convolution &c) {
  return aligned(patch_bytes(c)) + aligned(c.depth) + aligned((int64_t)PIXELS * c.width * 4);
}

static DirectSpace make_space(const bk_convolution &c, uint8_t *memory) {
  DirectSpace space = {memory, memory + aligned(patch_bytes(c)),
                       (int32_t *)(memory + aligned(patch_bytes(c)) + aligned(c.depth))};
  memset(space.patch, 0, patch_bytes(c));
  memset(space.outside, c.layer.zero, c.depth);
  return space;
}

static int64_t direct_workspace(const bk_convolution &c, const bk_input &, int threads) {
  return threads * direct_space(c);
}

// The codes of one input pixel; outside of the input, of zero.
INLINE const uint8_t *pixel_at(const bk_input &x, int t, int h, int w, const uint8_t *outside) {
  bool inside = (unsigned)t < (unsigned)x.size[0] && (unsigned)h < (unsigned)x.size[1] && (unsigned)w < (unsigned)x.size[2];
  return inside ? x.codes + (((int64_t)t * x.size[1] + h) * x.size[2] + w) * x.stride : outside;
}

// The rows of taps of a block of pixels from (t, h, w) of the output on; t and h come in input coordinates.
static int find_rows(const bk_convolution &c, const bk_input &x, const DirectSpace &space, int t, int h, int w, Row *rows) {
  const bk_layer &l = c.layer;
  int left = w * l.stride[2] - l.padding[2], pixels = row_pixels(l), step = c.flat ? l.channels : c.depth;
  bool interior = left >= 0 && left + pixels + (c.flat ? 3 : 0) <= x.size[2] && (!c.flat || x.stride == l.channels);
  uint8_t *patch = space.patch;
  int count = 0;
  for (int dt = 0; dt < l.kernel[0]; dt++)
    for (int dh = 0; dh < l.kernel[1]; dh++, count++) {
      bool inside = (unsigned)(t + dt) < (unsigned)x.size[0] && (unsigned)(h + dh) < (unsigned)x.size[1];
      if (!inside) {
        rows[count] = {space.outside, 0};
      } else if (interior) {
        rows[count] = {pixel_at(x, t + dt, h + dh, left, space.outside), x.stride};
      } else {
        rows[count] = {patch, step};
        for (int i = 0; i < pixels; i++)
          memcpy(patch + i * step, pixel_at(x, t + dt, h + dh, left + i, space.outside), step);
        patch += row_bytes(c);
      }
    }
  return count;
}

// space.totals of PIXELS pixels from (t, h, w) of the output on, those beyond its row's end being anything.
static void direct_totals(const bk_convolution &c, const bk_input &x, const DirectSpace &space, int t, int h, int w) {
  const bk_layer &l = c.layer;
  Row rows[MOST_ROWS];
  int count = find_rows(c, x, space, t * l.stride[0] - l.padding[0], h * l.stride[1] - l.padding[1], w, rows);
  for (int first = 0; first < c.width; first += block_width(c, first))
    multiply(c, 0, first, rows, count, c.flat ? 1 : l.kernel[2], l.stride[2], space.totals + first, c.width);
}

// What one thread needs of the side of an output; its memory comes behind that of the convolution.
struct Side {
  const bk_convolution *convolution;
  bk_input input;
  DirectSpace space;
};

static Side make_side(const bk_output &output, uint8_t *memory, int thread) {
  Side side = {output.side.convolution, output.side.input, {}};
  if (side.convolution) side.space = make_space(*side.convolution, memory + thread * direct_space(*side.convolution));
  return side;
}

// The output stage of `count` pixels of an output row from (t, h, w) on, with their sums (pixel, pitch).
static void finish_run(const Stage &stage, const Side &side, const Size &size, const int32_t *totals, int64_t pitch, int t,
                       int h, int w, int count) {
  const int spread = stage.output.spread;
  int64_t pixel = (((int64_t)t * size.h + h) * size.w * spread + w) * spread;
  if (!side.convolution) return finish_totals(stage, totals, pitch, pixel, count, nullptr, 0);
  for (int p = 0; p < count; p += PIXELS) {
    int n = count - p < PIXELS ? count - p : PIXELS;
    direct_totals(*side.convolution, side.input, side.space, t, h, w + p);
    finish_totals(stage, totals + p * pitch, pitch, pixel + p * spread, n, side.space.totals, side.convolution->width);
  }
}

// Whether the pixels of a convolution are independent.
static bool pointwise(const bk_layer &l) {
  return l.kernel[0] * l.kernel[1] * l.kernel[2] == 1 && l.stride[0] * l.stride[1] * l.stride[2] == 1 &&
         !(l.padding[0] | l.padding[1] | l.padding[2]);
}

static void direct(const bk_convolution &c, const bk_input &input, const bk_output &output, uint8_t *workspace,
                   int threads) {
  Size size = output_size(c.layer, input.size);
  const Stage stage = make_stage(output, c.layer.outputs);
  const bk_convolution *beside = output.side.convolution;
  const bool one = output.spread == 1 && pointwise(c.layer) && (!beside || pointwise(beside->layer));  // a long row
  auto joined = [&](bk_input x) {
    if (one) x.size[2] = x.size[0] * x.size[1] * x.size[2], x.size[0] = x.size[1] = 1;
    return x;
  };
  const bk_input x = joined(input);
  if (one) size = {1, 1, x.size[2]};
  int blocks = (size.w + PIXELS - 1) / PIXELS;
  int64_t all = (int64_t)size.t * size.h * blocks;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; thread++) {
    DirectSpace space = make_space(c, workspace + thread * direct_space(c));
    Side side = make_side(output, workspace + threads * direct_space(c), thread);
    side.input = joined(side.input);
    for (int64_t block = all * thread / threads; block < all * (thread + 1) / threads; block++) {
      int w = (int)(block % blocks) * PIXELS, h = (int)(block / blocks % size.h), t = (int)(block / blocks / size.h);
      direct_totals(c, x, space, t, h, w);
      finish_run(stage, side, size, space.totals, c.width, t, h, w, size.w - w < PIXELS ? size.w - w : PIXELS);
    }
  }
}
