// The scalar references: the definition of correct for every kernel, in plain loops, and what runs on any CPU.

#include "convolution.hpp"
#include "exponential.hpp"
#include "swin.hpp"

#include <cmath>
#include <cstring>
#include <vector>

static float load_value(const void *values, int64_t at, int half) {
  if (!half) return static_cast<const float *>(values)[at];
  uint32_t bits = (uint32_t) static_cast<const uint16_t *>(values)[at] << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static void store_value(void *values, int64_t at, int half, float value) {
  if (!half) {
    static_cast<float *>(values)[at] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  static_cast<uint16_t *>(values)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint8_t to_code(float value, float step, float zero, float low, float high) {
  float place = value / step + zero;
  if (place < low) place = low;
  if (place > high) place = high;
  return (uint8_t)(std::nearbyint(place) - low);
}

static float leaky(float v, float slope) { return slope != 1.0f && v * slope > v ? v * slope : v; }

// `side` is what is added after LeakyReLU; null: nothing.
static void finish_value(const bk_output &o, float v, const float *side, int64_t pixel, int channel) {
  const bk_handed &handed = o.handed;
  if (handed.codes) v = std::fma((float)handed.codes[pixel * handed.stride + channel], handed.weight[channel], v);
  v = leaky(v, o.slope);
  if (side) v += *side;
  for (int i = 0; i < 2; i++)
    if (o.add[i]) v += load_value(o.add[i], pixel * o.add_stride[i] + channel, o.half);
  if (o.values) store_value(o.values, pixel * o.values_stride + channel, o.half, v);
  for (int i = 0; i < o.targets; i++) {
    const bk_target &t = o.target[i];
    int at = channel - t.begin;
    if (at < 0 || channel >= t.end) continue;
    t.codes[pixel * t.stride + at] = to_code(v, t.step[at], t.zero[at], t.low, t.high);
  }
}

// sum (x - zero) w of one output; taps outside of the input hold x = zero.
static int32_t total_at(const bk_convolution &c, const bk_input &x, const int *place, int output) {
  const bk_layer &l = c.layer;
  const int8_t *w = c.weights + (int64_t)output * l.kernel[0] * l.kernel[1] * l.kernel[2] * l.channels;
  int32_t total = 0;
  for (int dt = 0; dt < l.kernel[0]; dt++)
    for (int dh = 0; dh < l.kernel[1]; dh++)
      for (int dw = 0; dw < l.kernel[2]; dw++, w += l.channels) {
        int t = place[0] * l.stride[0] - l.padding[0] + dt, h = place[1] * l.stride[1] - l.padding[1] + dh,
            v = place[2] * l.stride[2] - l.padding[2] + dw;
        if (t < 0 || h < 0 || v < 0 || t >= x.size[0] || h >= x.size[1] || v >= x.size[2]) continue;
        const uint8_t *codes = x.codes + (((int64_t)t * x.size[1] + h) * x.size[2] + v) * x.stride;
        for (int k = 0; k < l.channels; k++) total += (codes[k] - l.zero) * w[k];
      }
  return total;
}

static void finish_total(const bk_output &o, int32_t total, const int *place, int64_t pixel, int channel) {
  if (o.totals) o.totals[pixel * o.totals_stride + channel] = total;
  if (!o.scale) return;
  float value = std::fma((float)total, o.scale[channel], o.bias[channel]), added;
  const bk_side &side = o.side;
  if (side.convolution) {
    float sum = (float)total_at(*side.convolution, side.input, place, channel);
    added = leaky(std::fma(sum, side.scale[channel], side.bias[channel]), side.slope);
  }
  finish_value(o, value, side.convolution ? &added : nullptr, pixel, channel);
}

static void convolve(const bk_convolution &c, const bk_input &x, const bk_output &output, uint8_t *, int threads) {
  Size size = output_size(c.layer, x.size);
  int64_t pixels = (int64_t)size.t * size.h * size.w;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < pixels; p++) {
    int place[3] = {(int)(p / size.w / size.h), (int)(p / size.w % size.h), (int)(p % size.w)};
    int64_t row = (int64_t)place[0] * size.h + place[1], pixel = (row * size.w * output.spread + place[2]) * output.spread;
    for (int o = 0; o < c.layer.outputs; o++) finish_total(output, total_at(c, x, place, o), place, pixel, o);
  }
}

static int64_t no_workspace(const bk_convolution &, const bk_input &, int) { return 0; }

static void finish(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output &output,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < pixels; p++)
    for (int c = 0; c < channels; c++) finish_value(output, load_value(values, p * stride + c, output.half), nullptr, p, c);
}

static float exponential(float x) {
  if (x < EXP_LOWEST) x = EXP_LOWEST;
  float whole = std::nearbyint(x * EXP_LOG2E);
  float rest = std::fma(-whole, EXP_LN2_HIGH, x);
  rest = std::fma(-whole, EXP_LN2_LOW, rest);
  float sum = EXP_TERMS[0];
  for (int i = 1; i < 6; i++) sum = std::fma(sum, rest, EXP_TERMS[i]);
  sum = std::fma(sum, rest * rest, rest + 1.0f);
  return std::ldexp(sum, (int)whole);
}

// The weights of token i over all tokens, as codes minus their zero.
static void weigh(const bk_attention &a, int64_t pixel, int head, int i, float *weights) {
  int inner = a.heads * a.depth;
  float top = -3.0e38f, sum = 0.0f;
  for (int j = 0; j < a.tokens; j++) {
    const uint8_t *q = a.codes + (i * a.pixels + pixel) * a.stride + head * a.depth;
    const uint8_t *k = a.codes + (j * a.pixels + pixel) * a.stride + inner + head * a.depth;
    int32_t score = 0;
    for (int d = 0; d < a.depth; d++) score += (q[d] - (int)a.zeros[head]) * (k[d] - (int)a.zeros[a.heads + head]);
    if (a.scores) a.scores[((pixel * a.heads + head) * a.tokens + i) * a.tokens + j] = score;
    weights[j] = (float)score * a.score_unit[head];
    if (weights[j] > top) top = weights[j];
  }
  for (int j = 0; j < a.tokens; j++) {
    weights[j] = exponential(weights[j] - top);
    sum += weights[j];
  }
  float zero = a.zeros[2 * a.heads + head];
  for (int j = 0; j < a.tokens; j++)
    weights[j] = to_code(weights[j] / sum, a.weight_step[head], zero + a.weight_low, a.weight_low, a.weight_high) - zero;
}

static void attend_token(const bk_attention &a, int64_t pixel, int head, int i, float *weights) {
  int inner = a.heads * a.depth;
  weigh(a, pixel, head, i, weights);
  for (int d = 0; d < a.depth; d++) {
    int32_t mixed = 0;
    for (int j = 0; j < a.tokens; j++) {
      int v = a.codes[(j * a.pixels + pixel) * a.stride + 2 * inner + head * a.depth + d];
      mixed += (int32_t)weights[j] * (v - (int)a.zeros[3 * a.heads + head]);
    }
    if (a.mixed) a.mixed[((pixel * a.heads + head) * a.tokens + i) * a.depth + d] = mixed;
    a.output[(i * a.pixels + pixel) * a.output_stride + head * a.depth + d] =
        to_code((float)mixed * a.mixed_unit[head], a.output_step, a.output_zero, a.output_low, a.output_high);
  }
}

static void attend(const bk_attention &a, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> weights(a.tokens);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < a.pixels; p++)
      for (int head = 0; head < a.heads; head++)
        for (int i = 0; i < a.tokens; i++) attend_token(a, p, head, i, weights.data());
  }
}

// One picture; `down` and `right` are the duals, (height, width).
static void denoise_picture(const bk_denoising &d, const float *frame, float *u, float *down, float *right) {
  int h = d.height, w = d.width;
  std::memcpy(u, frame, sizeof(float) * h * w);
  for (int step = 0; step < d.steps; step++) {
    for (int i = 0; i < h * w; i++) {
      float v = i / w + 1 < h ? u[i + w] - u[i] : 0.0f, r = i % w + 1 < w ? u[i + 1] - u[i] : 0.0f;
      float inverse = 1.0f / (std::sqrt(v * v + r * r) * (TV_STEP / d.weight) + 1.0f);
      down[i] = (down[i] + v * TV_STEP) * inverse;
      right[i] = (right[i] + r * TV_STEP) * inverse;
    }
    for (int i = 0; i < h * w; i++)
      u[i] = frame[i] + down[i] + right[i] - (i / w ? down[i - w] : 0.0f) - (i % w ? right[i - 1] : 0.0f);
  }
}

static void denoise(const bk_denoising &d, int threads) {
  int64_t size = (int64_t)d.height * d.width;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < d.count; i++) {
    std::vector<float> down(size), right(size);
    denoise_picture(d, d.frames + i * size, d.result + i * size, down.data(), right.data());
  }
}

static double peak(long) { return 0; }

const Level scalar_level = {0,
                            {convolve, convolve, convolve, convolve, convolve},
                            {no_workspace, no_workspace, no_workspace, no_workspace, no_workspace},
                            finish,
                            attend,
                            denoise,
                            peak,
                            scalar_swin_workspace,
                            scalar_swin};
