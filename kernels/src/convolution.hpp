// A convolution ready to run: its weights packed for one method on one instruction set, and the tables of both.
#pragma once

#include "level.hpp"

enum { GROUP = 3, LARGEST_LOOKUP = 27, LOOKUP_OFFSET = 18 };  // 2-bit channels per look-up; its range -18 .. 9, moved up
enum { ALIGN = 64, MOST_ROWS = 512 };  // kt * kh

struct bk_convolution {
  bk_layer layer;
  int method, level;
  int positions;       // 1, or the 16, 25 or 64 products of a Winograd tile
  int taps;            // of one position
  int depth;           // input channels of one tap as packed: a multiple of 4 (64: of Winograd's transformed codes)
  bool flat;           // direct, and channels are no multiple of 4: the taps of a row are one run of codes, one tap
  int width;           // outputs as packed: a multiple of the block of the instruction set
  int8_t *weights;     // as they came
  int8_t *packed;      // [position][block of outputs][tap][depth / 4][output of the block][4]; look-up: see pack_lookup
  int64_t panel;       // bytes of one position
  int64_t bytes;       // of `packed`
  int32_t *start;      // [position][width]: what the sums start from
  uint8_t offset[64];  // of each position, added to transformed codes, so that they are u8
  uint8_t *table;      // look-up: [64 activation indices][64 weight indices]
};

// Sizes of an output of `layer` for an input.
struct Size {
  int t, h, w;
};

static inline int extent(int size, int kernel, int stride, int padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

static inline Size output_size(const bk_layer &l, const int32_t *in) {
  return {extent(in[0], l.kernel[0], l.stride[0], l.padding[0]), extent(in[1], l.kernel[1], l.stride[1], l.padding[1]),
          extent(in[2], l.kernel[2], l.stride[2], l.padding[2])};
}

// The widest block of outputs that is computed together and starts at `first`. Winograd's are narrower: the sums of all
// positions of a block stay in L1.
static inline int block_width(const bk_convolution &c, int first) {
  int left = c.width - first;
  if (c.level == BK_AVX2 || c.level == BK_NEON) return 16;
  return left >= 64 && c.positions == 1 ? 64 : left >= 32 ? 32 : 16;
}
