// The output stage: sums of a few pixels -> values, LeakyReLU, residual sums, and the codes of the next layers' grids.
#pragma once

#include "abi.h"
#include "simd.hpp"

INLINE Float load_value(const void *values, int64_t at, int half, int n) {
  return half ? load_half((const uint16_t *)values + at, n) : load_floats((const float *)values + at, n);
}

// A grid in the lanes of some channels.
struct Grid {
  Float step, zero, inverse, low, high;
  Int first;  // low
};

INLINE Grid make_grid(Float step, Float zero, float low, float high) {
  return {step, zero, 1.0f / step, broadcast(low), broadcast(high), to_int(broadcast(low))};
}

INLINE Grid grid_at(const bk_target &t, int at, int n) {
  return make_grid(load_floats(t.step + at, n), load_floats(t.zero + at, n), t.low, t.high);
}

INLINE Float clamp(Float x, const Grid &g) { return smaller(larger(x, g.low), g.high); }

// round(clamp(value / step + zero)) - low, exactly as quant/grid.py rounds.
//
// A product with 1 / step is as good as the slow division, but next to ties: places that are at most 511 apart from
// zero differ by less than 511 * 2^-22 + 2^-15 < TIE. Where a lane is that near to a tie, all of them are divided.
INLINE Int to_codes(Float value, const Grid &g) {
  Float place = clamp(value * g.inverse + g.zero, g);
  Int code = to_int(place);
  if (near_tie(place - to_float(code))) code = to_int(clamp(value / g.step + g.zero, g));
  return code - g.first;
}

// One vector of a pixel's channels on a target whose range begins or ends within it.
static void write_some(const bk_target &t, Float v, int64_t pixel, int channel, int n) {
  for (int j = 0; j < n; j++) {
    int at = channel + j - t.begin;
    if (at < 0 || at >= t.end - t.begin) continue;
    Grid one = make_grid(broadcast(t.step[at]), broadcast(t.zero[at]), t.low, t.high);
    t.codes[pixel * t.stride + at] = (uint8_t)to_codes(broadcast(v[j]), one)[0];
  }
}

// Vector `channel` of `count` pixels through the output stage. `value(p)` is that of pixel p, whose place in memory is
// pixels[p]; n of its lanes are channels.
template <class Value>
INLINE void finish_lanes(const bk_output &o, Value value, const int64_t *pixels, int count, int channel, int n) {
  Grid grids[BK_MOST_TARGETS];
  for (int i = 0; i < o.targets; i++) {
    const bk_target &t = o.target[i];
    if (channel >= t.begin && channel + n <= t.end) grids[i] = grid_at(t, channel - t.begin, n);
  }
  for (int p = 0; p < count; p++) {
    int64_t pixel = pixels[p];
    Float v = value(p);
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
      if (channel >= t.begin && channel + n <= t.end)
        store_bytes(t.codes + pixel * t.stride + channel - t.begin, to_codes(v, grids[i]), n);
      else
        write_some(t, v, pixel, channel, n);
    }
  }
}

// The sums of `count` pixels: totals[p] are those of all channels of the pixel at pixels[p].
static void finish_totals(const bk_output &output, const int32_t *const *totals, const int64_t *pixels, int count,
                          int channels) {
  const bk_output o = output;  // a copy of our own: nothing that is stored can change it
  for (int c = 0; c < channels; c += LANES) {
    int n = channels - c < LANES ? channels - c : LANES;
    if (o.totals)
      for (int p = 0; p < count; p++) store_ints(o.totals + pixels[p] * o.totals_stride + c, load<Int>(totals[p] + c), n);
    if (!o.scale) continue;
    Float scale = load_floats(o.scale + c, n), bias = load_floats(o.bias + c, n);
    auto value = [&](int p) { return fma(to_float(load<Int>(totals[p] + c)), scale, bias); };
    finish_lanes(o, value, pixels, count, c, n);
  }
}

static void finish_values(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output &output,
                          int threads) {
  enum { BLOCK = 16 };
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < pixels; first += BLOCK) {
    const bk_output o = output;
    int count = pixels - first < BLOCK ? (int)(pixels - first) : BLOCK;
    int64_t places[BLOCK];
    for (int p = 0; p < count; p++) places[p] = first + p;
    for (int c = 0; c < channels; c += LANES) {
      int n = channels - c < LANES ? channels - c : LANES;
      auto value = [&](int p) { return load_value(values, (first + p) * stride + c, o.half, n); };
      finish_lanes(o, value, places, count, c, n);
    }
  }
}
