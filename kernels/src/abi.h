// The C interface of the kernels: what a convolution reads, and everything that may be done with its sums.
//
//   total = sum (x - zero) w                      32 bits, exact
//   value = float(total) * scale + bias           float32, each operation rounded once, no fused multiply-add
//   value = value + float(code) * weight          of codes that are handed on, a fused multiply-add
//   value = leaky(value) + side + add[0] + add[1]    side: leaky(value) of another convolution
//   code  = clamp(round(value / step + zero), low, high) - low        rounded half to even
//
// Memory is channels-last: (t, h, w, c), with a stride in elements between neighbouring pixels, so that a range of a
// tensor's channels is a tensor. Codes are u8. Values may be written to where one of `add` is read; nothing else overlaps.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BK_ABI = 7 };
enum { BK_SCALAR, BK_AVX2, BK_VNNI, BK_VBMI, BK_NEON, BK_LEVELS };  // instruction sets
enum { BK_DIRECT, BK_WINOGRAD2, BK_WINOGRAD3, BK_LOOKUP, BK_WINOGRAD2_WIDE, BK_METHODS };
enum { BK_MOST_TARGETS = 8 };

// A grid that channels begin .. end - 1 are written to as codes; channel `begin` goes to codes[0] of each pixel.
typedef struct {
  uint8_t *codes;
  int64_t stride;
  int32_t begin, end;
  const float *step, *zero, *inverse;  // of each of these channels; 1 / step
  float low, high;
} bk_target;

// The weights are (outputs, kt, kh, kw, channels) codes. No input code is larger than `largest`.
typedef struct {
  int32_t channels, outputs;
  int32_t kernel[3], stride[3], padding[3];  // t, h, w
  int32_t zero, largest;
} bk_layer;

typedef struct {
  const uint8_t *codes;
  int64_t stride;
  int32_t size[3];  // t, h, w
} bk_input;

typedef struct bk_convolution bk_convolution;

// A second convolution with outputs of the same size, whose values are added. It is direct and of the same level.
typedef struct {
  const bk_convolution *convolution;  // null: there is none
  bk_input input;
  const float *scale, *bias;  // of each output channel
  float slope;
} bk_side;

// Codes of as many channels as there are outputs, which are handed on: each with a weight of its own.
typedef struct {
  const uint8_t *codes;  // null: there are none
  int64_t stride;
  const float *weight;  // of each output channel
} bk_handed;

// What becomes of the sums; everything but `scale` and `bias` may be left out (null, 0).
typedef struct {
  int32_t *totals;
  int64_t totals_stride;
  const float *scale, *bias;  // of each output channel; null: the totals are all that is wanted
  bk_handed handed;
  float slope;                // of LeakyReLU, at most 1; 1 is none
  int32_t half;               // values and what is added are bfloat16 instead of float32
  int32_t spread;             // s: pixel (t, h, w) of the sums is (t, s h, s w) of arrays s times as high and wide
  const void *add[2];
  int64_t add_stride[2];
  bk_side side;
  void *values;
  int64_t values_stride;
  int32_t targets;
  bk_target target[BK_MOST_TARGETS];
} bk_output;

// Attention over the t tokens of every pixel. q, k, v are channels 0 .., heads * depth .., 2 * heads * depth .. of codes.
//
//   score  = sum_d (q_i - z_q)(k_j - z_k)         exact
//   weight = softmax_j(float(score) * score_unit), on its grid
//   mixed  = sum_j (weight_ij - z_w)(v_j - z_v)   exact
//   code   = float(mixed) * mixed_unit, on the grid of the output
typedef struct {
  int32_t tokens, heads, depth;
  int64_t pixels, stride, output_stride;
  const uint8_t *codes;                               // (tokens, pixels, stride)
  const float *zeros;                                 // (4, heads): q, k, weights, v, on the container's codes
  const float *score_unit, *mixed_unit, *weight_step; // of each head
  float weight_low, weight_high;                      // on the grid's own codes; the container's start at 0
  uint8_t *output;                                    // (tokens, pixels, output_stride), heads * depth channels
  float output_step, output_zero, output_low, output_high;
  int32_t *scores, *mixed;                            // null, or the sums: (pixels, heads, tokens, tokens | depth)
} bk_attention;

// Total-variation denoising of pictures (count, height, width), by dual steps from 0:
//
//   p = (p + tau grad u) * (1 / (tau / weight |grad u| + 1))       tau = 1/4
//   u = frame - grad^T p                                           grad: forward differences, 0 beyond the borders
//
// `result` does not overlap `frames`.
typedef struct {
  const float *frames;
  float *result;
  int64_t count;
  int32_t height, width, steps;
  float weight;
} bk_denoising;

#define TV_STEP 0.25f

// A grid of one tensor or one head: code = clamp(round(value / step + zero), 0, largest), rounded half to even.
typedef struct {
  float step;
  int32_t zero, largest;
} bk_grid;

// A linear layer on codes of its input's grid: value = float(sum (x - zero) w) * scale + bias, fused.
typedef struct {
  bk_grid input;
  const int8_t *weights;      // (outputs, inputs)
  const float *scale, *bias;  // of each output
} bk_linear;

// A Swin block on values (t, h, w, channels), h and w in whole windows of window x window tokens.
//
//   q, k, v = qkv(normalized x)
//   score   = sum_d (q_i - z_q)(k_j - z_k)                     exact
//   weight  = softmax_j(float(score) * score_unit + position - 100 [i and j were apart]), on its grid
//   mixed   = sum_j (weight_ij - z_w)(v_j - z_v)               exact
//   x       = x + proj(mixed);   x = x + fc2(gelu(fc1(normalized x)))
//
// With a shift s, the windows begin at pixel (s, s) and go around the borders of the picture, where [apart] tokens meet.
typedef struct {
  int32_t channels, heads, hidden, window;
  float epsilon;                         // of both normalizations
  const float *norm1[2], *norm2[2];      // weight and bias of each channel
  bk_linear qkv, proj, fc1, fc2;         // outputs of qkv: (3, heads, channels / heads)
  const bk_grid *q, *k, *attention, *v;  // of each head
  float factor;                          // of scores
  const float *position;                 // (heads, tokens i, tokens j)
} bk_swin;

typedef struct {
  const float *input;
  float *output;  // may be the input
  int64_t input_stride, output_stride;
  int32_t size[3];  // t, h, w
  int32_t shift;
  uint8_t *trace;  // null, or, at the scalar level, the codes of all grids of all windows (bk_swin_trace bytes each)
} bk_swin_call;

typedef struct bk_swin_block bk_swin_block;

#pragma GCC visibility push(default)
int bk_abi(void);
int bk_has(int level);  // whether this CPU has the instruction set, and the library kernels for it
// 1 where the method is exact for weights lowest .. highest and codes 0 .. largest, and has the geometry.
int bk_fits(const bk_layer *layer, int method, int lowest, int highest);
// Null where something does not fit; `message` (160 bytes) says what.
bk_convolution *bk_create(const bk_layer *layer, const int8_t *weights, int method, int level, char *message);
void bk_destroy(bk_convolution *convolution);
int64_t bk_packed_bytes(const bk_convolution *convolution);
// Of a convolution with a side: its own, and the side's behind.
int64_t bk_workspace(const bk_convolution *convolution, const bk_input *input, int threads);
void bk_run(const bk_convolution *convolution, const bk_input *input, const bk_output *output, void *workspace,
            int threads);
// The output stage alone: instead of sums, values (pixels, channels) of float32, or bfloat16 where output->half.
void bk_finish(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output *output,
               int level, int threads);
void bk_attend(const bk_attention *attention, int level, int threads);
void bk_denoise(const bk_denoising *denoising, int level, int threads);
// Null where something does not fit; `message` (160 bytes) says what. Nothing of `swin` is kept.
bk_swin_block *bk_swin_create(const bk_swin *swin, int level, char *message);
void bk_swin_destroy(bk_swin_block *block);
int64_t bk_swin_workspace(const bk_swin_block *block, int threads);
int64_t bk_swin_trace(const bk_swin_block *block);
void bk_swin_run(const bk_swin_block *block, const bk_swin_call *call, void *workspace, int threads);
// Multiply-accumulates a second of this core in registers, in units of 1e9; 0 for the scalar level.
double bk_peak(int level);
#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
