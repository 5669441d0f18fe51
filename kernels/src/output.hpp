// The output stage: sums of a few pixels -> values, LeakyReLU, residual sums, and the codes of the next layers' grids.
#pragma once

#include "abi.h"
#include "simd.hpp"

// A grid in the lanes of some channels.
struct Grid {
  Float step, zero, inverse, low, high;
  Int first;  // low
};

INLINE Grid make_grid(Float step, Float zero, float low, float high) {
  return {step, zero, 1.0f / step, broadcast(low), broadcast(high), to_int(broadcast(low))};
}

INLINE Float clamp(Float x, const Grid &g) { return smaller(larger(x, g.low), g.high); }

// round(clamp(value / step + zero)) - low, exactly as quant/grid.py rounds.
//
// A product with 1 / step is as good as the slow division, but next to ties: places that are at most 511 apart from
// zero differ by less than 511 * 2^-22 + 2^-15 < TIE. Where a lane is that near to a tie, all of them are divided.
INLINE Int to_codes(Float value, const Grid &g) {
  Float place = clamp(fma(value, g.inverse, g.zero), g);
  Int code = to_int(place);
  if (near_tie(size_of(place - to_float(code)))) code = to_int(clamp(value / g.step + g.zero, g));
  return code - g.first;
}

// Channels in which every target is there or not, and what is done to them.
struct Piece {
  int begin, end;
  bk_target target[BK_MOST_TARGETS];  // of `targets`; channel `begin` goes to `codes`, whose step is *step
  bool even[BK_MOST_TARGETS];         // one step and zero for all channels
  int targets;
};

// What becomes of sums, made ready: the channels are cut where a target begins or ends.
struct Stage {
  bk_output output;
  Piece pieces[2 * BK_MOST_TARGETS + 1];
  int count, channels;
};

static Stage make_stage(const bk_output &output, int channels) {
  Stage s;
  s.output = output;
  s.count = 0, s.channels = channels;
  for (int begin = 0, end; begin < channels; begin = end) {
    Piece &piece = s.pieces[s.count++];
    end = channels;
    piece.targets = 0;
    for (int i = 0; i < output.targets; i++) {
      const bk_target &t = output.target[i];
      if (t.begin > begin && t.begin < end) end = t.begin;
      if (t.end > begin && t.end < end) end = t.end;
    }
    for (int i = 0; i < output.targets; i++) {
      bk_target t = output.target[i];
      if (begin < t.begin || begin >= t.end) continue;
      int skip = begin - t.begin;
      t.codes += skip, t.step += skip, t.zero += skip, t.inverse += skip;
      bool even = true;
      for (int c = 1; c < end - begin; c++) even = even && t.step[c] == t.step[0] && t.zero[c] == t.zero[0];
      piece.even[piece.targets] = even;
      piece.target[piece.targets++] = t;
    }
    piece.begin = begin, piece.end = end;
  }
  return s;
}

// V vectors of a pixel's values as codes of channel `at` of a piece on. See `to_codes`: here places count from low, and
// what is below is clamped when codes become bytes. n lanes of the last vector are channels.
template <int V, bool EVEN>
INLINE void write_codes(const bk_target &t, const Float *values, int64_t pixel, int at, int n) {
  auto each = [&](const float *of, int v) { return EVEN ? broadcast(*of) : load_floats(of + at + v * LANES, n); };
  Float top = broadcast(t.high - t.low), low = broadcast(t.low), rest = broadcast(0.0f);
  Int codes[4] = {};
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
    Float place = smaller(fma(values[v], each(t.inverse, v), each(t.zero, v) - low), top);
    codes[v] = to_int(place);
    rest = larger(rest, size_of(place - to_float(codes[v])));
  }
  if (__builtin_expect(near_tie(rest), 0))
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      Float place = values[v] / each(t.step, v) + each(t.zero, v);
      codes[v] = to_int(smaller(larger(place, low), broadcast(t.high))) - to_int(low);
    }
  store_bytes<V>(t.codes + pixel * t.stride + at, codes, n);
}

INLINE Float load_value(const void *values, int64_t at, int half, int n) {
  return half ? load_half((const uint16_t *)values + at, n) : load_floats((const float *)values + at, n);
}

// V vectors from channel `at` of a piece on, of `count` pixels from `first` on. value(p, v) is vector v of the p-th.
template <int V, class Value>
INLINE void finish_vectors(const bk_output &o, const Piece &piece, Value value, int64_t first, int count, int at, int n) {
  Float slope = broadcast(o.slope);
  int channel = piece.begin + at;
  for (int p = 0; p < count; p++) {
    int64_t pixel = first + p;
    Float values[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) values[v] = value(p, v);
    if (o.slope != 1.0f)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) values[v] = larger(values[v], values[v] * slope);
    for (int i = 0; i < 2; i++)
      if (o.add[i])
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
          values[v] = values[v] + load_value(o.add[i], pixel * o.add_stride[i] + channel + v * LANES, o.half, n);
    if (o.values)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        int64_t place = pixel * o.values_stride + channel + v * LANES;
        if (o.half)
          store_half((uint16_t *)o.values + place, values[v], n);
        else
          store_floats((float *)o.values + place, values[v], n);
      }
    for (int i = 0; i < piece.targets; i++)
      if (piece.even[i])
        write_codes<V, true>(piece.target[i], values, pixel, at, n);
      else
        write_codes<V, false>(piece.target[i], values, pixel, at, n);
  }
}

// The channels of a piece, as many vectors at a time as there are. source(channel, n) gives the `value` of vectors from
// there on.
template <class Source>
INLINE void finish_piece(const bk_output &o, const Piece &piece, Source source, int64_t first, int count) {
  int at = 0, left = piece.end - piece.begin;
  for (; left >= 4 * LANES; at += 4 * LANES, left -= 4 * LANES)
    finish_vectors<4>(o, piece, source(piece.begin + at, LANES), first, count, at, LANES);
  for (; left >= 2 * LANES; at += 2 * LANES, left -= 2 * LANES)
    finish_vectors<2>(o, piece, source(piece.begin + at, LANES), first, count, at, LANES);
  for (; left >= LANES; at += LANES, left -= LANES)
    finish_vectors<1>(o, piece, source(piece.begin + at, LANES), first, count, at, LANES);
  if (left > 0) finish_vectors<1>(o, piece, source(piece.begin + at, left), first, count, at, left);
}

// The sums (pixel, pitch) of `count` pixels, neighbours in memory, from `first` on.
static void finish_totals(const Stage &stage, const int32_t *totals, int64_t pitch, int64_t first, int count) {
  const bk_output o = stage.output;  // a copy of our own: nothing that is stored can change it
  if (o.totals)
    for (int p = 0; p < count; p++)
      memcpy(o.totals + (first + p) * o.totals_stride, totals + p * pitch, 4 * stage.channels);
  if (!o.scale) return;
  auto source = [&](int channel, int n) {
    return [=](int p, int v) {
      int c = channel + v * LANES;
      Float total = to_float(load_ints(totals + p * pitch + c, n));
      return fma(total, load_floats(o.scale + c, n), load_floats(o.bias + c, n));
    };
  };
  for (int i = 0; i < stage.count; i++) finish_piece(o, stage.pieces[i], source, first, count);
}

static void finish_values(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output &output,
                          int threads) {
  enum { BLOCK = 16 };
  const Stage stage = make_stage(output, channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < pixels; first += BLOCK) {
    const bk_output o = output;
    int count = pixels - first < BLOCK ? (int)(pixels - first) : BLOCK;
    auto source = [&](int channel, int n) {
      return [=](int p, int v) { return load_value(values, (first + p) * stride + channel + v * LANES, o.half, n); };
    };
    for (int i = 0; i < stage.count; i++) finish_piece(o, stage.pieces[i], source, first, count);
  }
}
