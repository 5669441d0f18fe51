// What one instruction set offers.
#pragma once

#include "abi.h"

struct Level {
  int moved;  // what its dot product takes off every code; sums start from as many times the sum of their weights
  void (*run[BK_METHODS])(const bk_convolution &, const bk_input &, const bk_output &, uint8_t *workspace, int threads);
  int64_t (*workspace[BK_METHODS])(const bk_convolution &, const bk_input &, int threads);  // null: no such method
  void (*finish)(int64_t, int32_t, const void *, int64_t, const bk_output &, int threads);
  void (*attend)(const bk_attention &, int threads);
  void (*denoise)(const bk_denoising &, int threads);
  double (*peak)(long rounds);
  int64_t (*swin_workspace)(const bk_swin_block &);  // of one thread
  void (*swin)(const bk_swin_block &, const bk_swin_call &, uint8_t *workspace, int threads);
};

extern const Level scalar_level, avx2_level, vnni_level, vbmi_level, neon_level;

// Of a level that this CPU has.
const Level &level_of(int level);
