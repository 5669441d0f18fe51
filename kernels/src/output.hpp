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
// A product with 1 / step is as good as the slow division, but next to ties: places that are at most 512 apart from
// zero differ by less than 2^-15 + 3 * 2^-16 < 2^-12. Where a lane is that near to a tie, all of them are divided.
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

// V vectors from channel `at` of a piece on, of `count` pixels from `first` on, `spread` apart. value(p, v) is vector v of the p-th,
// value.beside(p, v) what is added to it after LeakyReLU.
template <int V, class Value>
INLINE void finish_vectors(const bk_output &o, const Piece &piece, Value value, int64_t first, int count, int at, int n) {
  struct {  // copies of our own: nothing that is stored can change them
    const void *memory;
    int64_t stride;
  } add[2] = {{o.add[0], o.add_stride[0]}, {o.add[1], o.add_stride[1]}};
  void *stored = o.values;
  const int64_t stride = o.values_stride;
  const int half = o.half, spread = o.spread, targets = piece.targets;
  const bk_handed handed = o.handed;
  const bool leaky = o.slope != 1.0f;
  Float slope = broadcast(o.slope);
  int channel = piece.begin + at;
  for (int p = 0; p < count; p++) {
    int64_t pixel = first + p * spread;
    Float values[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) values[v] = value(p, v);
    if (handed.codes)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        int c = channel + v * LANES;
        values[v] = fma(load_codes(handed.codes + pixel * handed.stride + c, n), load_floats(handed.weight + c, n), values[v]);
      }
    if (leaky)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) values[v] = larger(values[v], values[v] * slope);
    if constexpr (Value::SIDE)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) values[v] = values[v] + value.beside(p, v);
    for (int i = 0; i < 2; i++)
      if (add[i].memory)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
          values[v] = values[v] + load_value(add[i].memory, pixel * add[i].stride + channel + v * LANES, half, n);
    if (stored)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        int64_t place = pixel * stride + channel + v * LANES;
        if (half)
          store_half((uint16_t *)stored + place, values[v], n);
        else
          store_floats((float *)stored + place, values[v], n);
      }
    for (int i = 0; i < targets; i++)
      if (piece.even[i])
        write_codes<V, true>(piece.target[i], values, pixel, at, n);
      else
        write_codes<V, false>(piece.target[i], values, pixel, at, n);
  }
}

// The channels of a piece, as many vectors at a time as there are. source.at(channel, n) gives the `value` of vectors
// from there on.
template <class Source>
INLINE void finish_piece(const bk_output &o, const Piece &piece, Source source, int64_t first, int count) {
  int at = 0, left = piece.end - piece.begin;
  for (; left >= 4 * LANES; at += 4 * LANES, left -= 4 * LANES)
    finish_vectors<4>(o, piece, source.at(piece.begin + at, LANES), first, count, at, LANES);
  for (; left >= 2 * LANES; at += 2 * LANES, left -= 2 * LANES)
    finish_vectors<2>(o, piece, source.at(piece.begin + at, LANES), first, count, at, LANES);
  for (; left >= LANES; at += LANES, left -= LANES)
    finish_vectors<1>(o, piece, source.at(piece.begin + at, LANES), first, count, at, LANES);
  if (left > 0) finish_vectors<1>(o, piece, source.at(piece.begin + at, left), first, count, at, left);
}

// Sums (pixel, pitch) and what makes them values, from channel `channel` on; n lanes of the last vector.
struct Sums {
  const int32_t *totals;
  int64_t pitch;
  const float *scale, *bias;
  int channel, n;

  MEMBER Float operator()(int p, int v) const {
    int c = channel + v * LANES;
    return fma(to_float(load_ints(totals + p * pitch + c, n)), load_floats(scale + c, n), load_floats(bias + c, n));
  }
};

// Values of sums alone, and with those of a side.
struct Alone {
  enum { SIDE = 0 };
  Sums sums;

  MEMBER Alone at(int channel, int n) const { return {{sums.totals, sums.pitch, sums.scale, sums.bias, channel, n}}; }
  MEMBER Float operator()(int p, int v) const { return sums(p, v); }
};

struct Beside {
  enum { SIDE = 1 };
  Sums sums, side;
  Float slope;

  MEMBER Beside at(int channel, int n) const {
    return {{sums.totals, sums.pitch, sums.scale, sums.bias, channel, n},
            {side.totals, side.pitch, side.scale, side.bias, channel, n},
            slope};
  }
  MEMBER Float operator()(int p, int v) const { return sums(p, v); }
  MEMBER Float beside(int p, int v) const {
    Float value = side(p, v);
    return larger(value, value * slope);  // a slope of 1 changes nothing
  }
};

// Values from memory, (pixel, stride) from pixel `first` on.
struct Stored {
  enum { SIDE = 0 };
  const void *values;
  int64_t first, stride;
  int half, channel, n;

  MEMBER Stored at(int channel, int n) const { return {values, first, stride, half, channel, n}; }
  MEMBER Float operator()(int p, int v) const {
    return load_value(values, (first + p) * stride + channel + v * LANES, half, n);
  }
};

// The sums (pixel, pitch) of `count` pixels, neighbours in memory, from `first` on; and those of the side, or null.
static void finish_totals(const Stage &stage, const int32_t *totals, int64_t pitch, int64_t first, int count,
                          const int32_t *side, int64_t side_pitch) {
  const bk_output &o = stage.output;
  if (o.totals)
    for (int p = 0; p < count; p++)
      memcpy(o.totals + (first + p * o.spread) * o.totals_stride, totals + p * pitch, 4 * stage.channels);
  if (!o.scale) return;
  Sums sums = {totals, pitch, o.scale, o.bias, 0, 0};
  Beside both = {sums, {side, side_pitch, o.side.scale, o.side.bias, 0, 0}, broadcast(o.side.slope)};
  for (int i = 0; i < stage.count; i++)
    if (side)
      finish_piece(o, stage.pieces[i], both, first, count);
    else
      finish_piece(o, stage.pieces[i], Alone{sums}, first, count);
}

static void finish_values(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output &output,
                          int threads) {
  enum { BLOCK = 16 };
  const Stage stage = make_stage(output, channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < pixels; first += BLOCK) {
    int count = pixels - first < BLOCK ? (int)(pixels - first) : BLOCK;
    Stored stored = {values, first, stride, output.half, 0, 0};
    for (int i = 0; i < stage.count; i++) finish_piece(stage.output, stage.pieces[i], stored, first, count);
  }
}
