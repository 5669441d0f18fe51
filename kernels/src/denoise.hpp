// Total-variation denoising of pictures, a few dual steps in one pass: step s works on the row s above that of step 0.
//
// What a step needs is then at most two rows away, so that only a few rows of each array are in use: they stay in L1.
#pragma once

#include "abi.h"
#include "simd.hpp"

#include <stdlib.h>

// The dual variables of one row, from the picture there and below; `next` is 1, or 0 where there is nothing beside.
INLINE void dual_step(const float *u, const float *below, float *down, float *right, int j, int n, int next, float weight) {
  Float tau = broadcast(TV_STEP), one = broadcast(1.0f), here = load_floats(u + j, n);
  Float v = load_floats(below + j, n) - here, h = load_floats(u + j + next, n) - here;
  Float inverse = one / (root(v * v + h * h) * broadcast(TV_STEP / weight) + one);
  store_floats(down + j, (load_floats(down + j, n) + v * tau) * inverse, n);
  store_floats(right + j, (load_floats(right + j, n) + h * tau) * inverse, n);
}

// The duals of a picture: rings of rows, each with a 0 before it, and a row of zeros.
struct Duals {
  float *memory;
  int64_t pitch;
  int rows;

  MEMBER float *down(int row) const { return memory + (1 + row % rows) * pitch + LANES; }
  MEMBER float *right(int row) const { return down(row) + rows * pitch; }
  MEMBER float *above(int row) const { return row ? down(row - 1) : memory + LANES; }
};

INLINE void denoise_row(const bk_denoising &d, const float *frame, float *u, const Duals &duals, int row) {
  int w = d.width, last = w - 1;
  float *down = duals.down(row), *right = duals.right(row);
  const float *above = duals.above(row), *below = row + 1 < d.height ? u + w : u;
  for (int j = 0; j < last; j += LANES) dual_step(u, below, down, right, j, last - j < LANES ? last - j : LANES, 1, d.weight);
  dual_step(u, below, down, right, last, 1, 0, d.weight);
  for (int j = 0; j < w; j += LANES) {
    int n = w - j < LANES ? w - j : LANES;
    Float sum = load_floats(frame + j, n) + load_floats(down + j, n) + load_floats(right + j, n);
    store_floats(u + j, sum - load_floats(above + j, n) - load_floats(right + j - 1, n), n);
  }
}

static void denoise_picture(const bk_denoising &d, const float *frame, float *u, const Duals &duals) {
  int h = d.height, w = d.width;
  memset(duals.memory, 0, 4 * (2 * duals.rows + 1) * duals.pitch);
  for (int top = 0; top < h + d.steps; top++) {
    if (top < h) {
      memcpy(u + (int64_t)top * w, frame + (int64_t)top * w, 4 * w);
      memset(duals.down(top), 0, 4 * w);
      memset(duals.right(top), 0, 4 * w);
    }
    for (int row = top - 1, s = 0; s < d.steps && row >= 0; s++, row--)
      if (row < h) denoise_row(d, frame + (int64_t)row * w, u + (int64_t)row * w, duals, row);
  }
}

static void denoise(const bk_denoising &d, int threads) {
  int rows = d.steps + 2;
  int64_t pitch = (d.width + 2 * LANES - 1) / LANES * LANES + LANES, size = (int64_t)d.height * d.width;
#pragma omp parallel num_threads(threads)
  {
    Duals duals = {(float *)malloc(4 * (2 * rows + 1) * pitch), pitch, rows};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d.count; i++) denoise_picture(d, d.frames + i * size, d.result + i * size, duals);
    free(duals.memory);
  }
}
