// A Swin block ready to run: weights in rows of codes for tokens in the lanes, and every grid and constant of it.
#pragma once

#include "level.hpp"

enum { TOKENS = 64, RUN = 16, MOST_DEPTH = 1024 };  // tokens of a window are filled up to a multiple of TOKENS

// 2^x on -1/2 .. 1/2 (relative error 2e-7), and (Phi(x) - 1/2) / x for |x| <= 5 in u = 2 x^2 / 25 - 1, Phi being the
// normal distribution's (error of gelu 2e-6); best approximations by the largest error. Highest power first.
static const float EXP2_TERMS[6] = {1.3276469056e-03f, 9.6755413110e-03f, 5.5507132826e-02f,
                                    2.4022119724e-01f, 6.9314696706e-01f, 1.0f};
static const float EXP2_LOWEST = -100.0f;
static const float PHI_TERMS[12] = {-1.0963439672e-03f, 3.1944450907e-03f, -3.8868951271e-03f, 5.1132937749e-03f,
                                    -1.0165438315e-02f, 1.6910117484e-02f, -2.3624957100e-02f, 3.1356729619e-02f,
                                    -4.0391983704e-02f, 5.1525396555e-02f, -7.0298232795e-02f, 1.4136374790e-01f};
static const float PHI_LARGEST = 5.0f, PHI_SCALE = 2.0f / 25.0f;

// A float of this size has no fraction, and its lowest bits are an integer: adding it rounds half to even.
static const float MAGIC = 12582912.0f;
static const unsigned MAGIC_BITS = 0x4B400000;

static const float LOG2E = 1.44269504088896f, APART = -100.0f * LOG2E, NO_TOKEN = -3.0e38f;

// code = clamp(fma(value, inverse, zero), MAGIC, high) - MAGIC; zero and high have MAGIC in them.
struct Places {
  float inverse, zero, high;
};

// A linear layer as [row][column] codes; rows and columns are multiples of 4, zeros between.
struct Panel {
  int rows, columns;
  int8_t *codes;
  int32_t *start;       // of each row: what its sums start from
  float *scale, *bias;  // of each row
};

struct bk_swin_block {
  bk_swin swin;  // its pointers are to copies that the block owns
  int level;
  int tokens;             // of a window
  int width;              // the same, filled up
  int depth;              // of a head
  int padded;             // the same, a multiple of 4
  Panel q, k, v;          // heads * padded rows each
  Panel proj, fc1, fc2;   // columns of proj: heads * padded
  Places *q_places, *k_places, *v_places;  // of each head
  Places normed1, mixed, normed2, hidden;  // of the four layers' inputs
  float *score_unit, *mixed_unit;          // of each head; scores are exponents of 2
  float *position;                         // [head][width / RUN][key, a multiple of 4][RUN queries], exponents of 2
};

// The windows of a picture, and where the tokens of each one lie.
struct Windows {
  int rows, columns;  // of windows
  int64_t count;
};

static inline Windows windows_of(const bk_swin_block &b, const bk_swin_call &call) {
  Windows w{call.size[1] / b.swin.window, call.size[2] / b.swin.window, 0};
  w.count = (int64_t)call.size[0] * w.rows * w.columns;
  return w;
}

// Pixel of each token of window `index`, and in which of the four parts of the picture it was; 1 where they differ.
static inline int find_tokens(const bk_swin_block &b, const bk_swin_call &call, int64_t index, int64_t *pixels,
                              int32_t *parts) {
  Windows all = windows_of(b, call);
  int h = call.size[1], w = call.size[2], n = b.swin.window, shift = call.shift;
  int column = (int)(index % all.columns), row = (int)(index / all.columns % all.rows);
  int64_t frame = index / all.columns / all.rows;
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      int y = row * n + i + shift, x = column * n + j + shift;
      parts[i * n + j] = (y >= h) + 2 * (x >= w);
      pixels[i * n + j] = (frame * h + (y >= h ? y - h : y)) * w + (x >= w ? x - w : x);
    }
  return shift && (row == all.rows - 1 || column == all.columns - 1);
}

static inline int round_to(int n, int unit) { return (n + unit - 1) / unit * unit; }

// The scalar reference.
int64_t scalar_swin_workspace(const bk_swin_block &block);
void scalar_swin(const bk_swin_block &block, const bk_swin_call &call, uint8_t *workspace, int threads);
