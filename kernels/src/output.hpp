// The output stage: sums of a few pixels -> values, LeakyReLU, residual sums, and the codes of the next layers' grids.
#pragma once

#include "abi.h"
#include "simd.hpp"

INLINE Float load_value(const void *values, int64_t at, int half, int n) {
  return half ? load_half((const uint16_t *)values + at, n) : load_floats((const float *)values + at, n);
}

// round(clamp(value / step + zero)) - low: one division and one addition, as quant/grid.py rounds.
INLINE Int to_codes(Float value, Float step, Float zero, float low, float high) {
  Float place = smaller(larger(value / step + zero, broadcast(low)), broadcast(high));
  return to_int(place) - (uint32_t)(int32_t)low;
}

// One vector of a pixel's channels, from `channel` on; n of its lanes are channels.
INLINE void finish_lanes(const bk_output &o, Float v, int64_t pixel, int channel, int n) {
  if (o.slope != 1.0f) v = larger(v, v * broadcast(o.slope));
  for (int i = 0; i < 2; i++)
    if (o.add[i]) v = v + load_value(o.add[i], pixel * o.add_stride[i] + channel, o.half, n);
  if (o.values) {
    int64_t at = pixel * o.values_stride + channel;
    if (o.half)
      store_half((uint16_t *)o.values + at, v, n);
    else
      store_floats((float *)o.values + at, v, n);
  }
  for (int i = 0; i < o.targets; i++) {
    const bk_target &t = o.target[i];
    if (channel + n <= t.begin || channel >= t.end) continue;
    if (channel >= t.begin && channel + n <= t.end) {
      int at = channel - t.begin;
      Int codes = to_codes(v, load_floats(t.step + at, n), load_floats(t.zero + at, n), t.low, t.high);
      store_bytes(t.codes + pixel * t.stride + at, codes, n);
    } else {  // the range begins or ends within the vector
      for (int j = 0; j < n; j++) {
        int at = channel + j - t.begin;
        if (at < 0 || at >= t.end - t.begin) continue;
        Int code = to_codes(broadcast(v[j]), broadcast(t.step[at]), broadcast(t.zero[at]), t.low, t.high);
        t.codes[pixel * t.stride + at] = (uint8_t)code[0];
      }
    }
  }
}

// The sums of channels first .. first + count - 1 of one pixel, `totals` being those of channel `first`.
INLINE void finish_totals(const bk_output &o, const int32_t *totals, int64_t pixel, int first, int count) {
  for (int c = 0; c < count; c += LANES) {
    int n = count - c < LANES ? count - c : LANES, channel = first + c;
    Int total = load<Int>(totals + c);
    if (o.totals) store_ints(o.totals + pixel * o.totals_stride + channel, total, n);
    if (!o.scale) continue;
    Float v = fma(to_float(total), load_floats(o.scale + channel, n), load_floats(o.bias + channel, n));
    finish_lanes(o, v, pixel, channel, n);
  }
}

static void finish_values(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output &output,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < pixels; p++)
    for (int c = 0; c < channels; c += LANES) {
      int n = channels - c < LANES ? channels - c : LANES;
      finish_lanes(output, load_value(values, p * stride + c, output.half, n), p, c, n);
    }
}
