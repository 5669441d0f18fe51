// The fused Swin block with the tokens of a window in the lanes: all of a window's data stays in L1 and L2.
//
// Values are [channel][token]; codes [channel / 4][token][4], so that a vector holds four codes of each of its tokens and
// meets four weights, or four codes of one key, in every lane. Sums over channels or keys need no lanes to be added up,
// and the twin repeats their order.
#pragma once

#include "attention.hpp"
#include "swin.hpp"

enum { VECTORS = LANES == 8 ? 2 : 4 };  // of tokens, times 4 outputs: a block of sums

// 2^x for x <= 0, next to nothing below EXP2_LOWEST.
INLINE Float exp2_of(Float x) {
  x = larger(x, broadcast(EXP2_LOWEST));
  Float whole = x + broadcast(MAGIC), rest = x - (whole - broadcast(MAGIC)), sum = broadcast(EXP2_TERMS[0]);
#pragma GCC unroll 5
  for (int i = 1; i < 6; i++) sum = fma(sum, rest, broadcast(EXP2_TERMS[i]));
  return (Float)((Int)sum + ((Int)whole << 23));  // MAGIC's own bits leave by the top
}

INLINE Float gelu(Float x) {
  Float near = larger(smaller(x, broadcast(PHI_LARGEST)), broadcast(-PHI_LARGEST));
  Float u = fma(near * broadcast(PHI_SCALE), near, broadcast(-1.0f)), sum = broadcast(PHI_TERMS[0]);
#pragma GCC unroll 11
  for (int i = 1; i < 12; i++) sum = fma(sum, u, broadcast(PHI_TERMS[i]));
  return x * fma(near, sum, broadcast(0.5f));
}

// A grid in all lanes; the lowest byte of a lane of `place` is the code.
struct Lattice {
  Float inverse, zero, high;
};

INLINE Lattice lattice(const Places &p) { return {broadcast(p.inverse), broadcast(p.zero), broadcast(p.high)}; }

INLINE Int place(Float value, const Lattice &l) {
  return (Int)smaller(larger(fma(value, l.inverse, l.zero), broadcast(MAGIC)), l.high);
}

// The codes of four places in each lane.
INLINE Int together(Int a, Int b, Int c, Int d) {
  const uint32_t above = MAGIC_BITS + (MAGIC_BITS << 8) + (MAGIC_BITS << 16) + (MAGIC_BITS << 24);
  return a + (b << 8) + ((c << 16) + (d << 24)) - above;
}

// The memory of one thread.
struct WindowSpace {
  int64_t *pixels;   // of each token
  int32_t *parts;    // of the picture, where each token was
  float *x;          // (channels, width)
  uint32_t *outer;   // codes of normalized x, and of mixed v
  uint32_t *q, *k;   // codes (heads, padded / 4, width); those of k are moved by 128 into s8
  int8_t *v;         // codes (heads, padded, width), moved likewise
  uint32_t *hidden;  // where q, k and v were
  float *scores;     // (keys, LANES)
  int32_t *keys;     // what a score gets from each key
  uint32_t *weights; // codes (keys / 4, LANES)
  int64_t bytes;
};

static WindowSpace window_space(const bk_swin_block &b, uint8_t *memory) {
  int64_t at = 0, inner = (int64_t)b.swin.heads * b.padded * b.width, keys = round_to(b.tokens, 4);
  auto take = [&](int64_t bytes) {
    uint8_t *here = memory + at;
    at += aligned(bytes);
    return here;
  };
  int64_t outer = (int64_t)round_to(b.swin.channels, 4) * b.width, hidden = (int64_t)b.fc1.rows * b.width;
  WindowSpace s{};
  s.pixels = (int64_t *)take(b.width * 8);
  s.parts = (int32_t *)take(b.width * 4);
  s.x = (float *)take((int64_t)b.swin.channels * b.width * 4);
  s.outer = (uint32_t *)take(outer > inner ? outer : inner);
  uint8_t *shared = take(3 * inner > hidden ? 3 * inner : hidden);
  s.q = (uint32_t *)shared;
  s.k = (uint32_t *)(shared + inner);
  s.v = (int8_t *)(shared + 2 * inner);
  s.hidden = (uint32_t *)shared;
  s.scores = (float *)take(keys * LANES * 4);
  s.keys = (int32_t *)take(b.width * 4);
  s.weights = (uint32_t *)take(keys * LANES);
  s.bytes = at;
  return s;
}

static int64_t swin_workspace(const bk_swin_block &b) { return window_space(b, nullptr).bytes; }

// The channels of a window's tokens: rows of x. Tokens that fill up a vector are the last one again.
static void gather(const bk_swin_block &b, const bk_swin_call &call, const WindowSpace &space) {
  int channels = b.swin.channels;
  int64_t width = b.width;
  for (int t = 0; t < width; t += LANES) {
    const float *tokens[LANES];
    for (int i = 0; i < LANES; i++)
      tokens[i] = call.input + space.pixels[t + i < b.tokens ? t + i : b.tokens - 1] * call.input_stride;
    for (int c = 0; c < channels; c += LANES) {
      Int rows[LANES];
      int n = channels - c < LANES ? channels - c : LANES;
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) rows[i] = load_ints((const int32_t *)tokens[i] + c, n);
      transpose(rows);
      float *to = space.x + c * width + t;
      if (n == LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) store(to + i * width, rows[i]);
      } else {
        for (int i = 0; i < n; i++) store(to + i * width, rows[i]);
      }
    }
  }
}

static void scatter(const bk_swin_block &b, const bk_swin_call &call, const WindowSpace &space) {
  int channels = b.swin.channels;
  int64_t width = b.width;
  for (int t = 0; t < b.tokens; t += LANES) {
    float *tokens[LANES];
    int count = b.tokens - t < LANES ? b.tokens - t : LANES;
    for (int i = 0; i < count; i++) tokens[i] = call.output + space.pixels[t + i] * call.output_stride;
    for (int c = 0; c < channels; c += LANES) {
      Int rows[LANES];
      int last = channels - 1 - c, n = last < LANES ? last + 1 : LANES;
      const float *from = space.x + c * width + t;
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) rows[i] = load<Int>(from + (i < last ? i : last) * width);
      transpose(rows);
      if (count == LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) store_floats(tokens[i] + c, (Float)rows[i], n);
      } else {
        for (int i = 0; i < count; i++) store_floats(tokens[i] + c, (Float)rows[i], n);
      }
    }
  }
}

// Normalizes the channels of each token, and writes codes.
static void normalize(const bk_swin_block &b, const float *x, const float *const *norm, const Places &places, uint32_t *to) {
  int channels = b.swin.channels, width = b.width;
  Float share = broadcast(1.0f / (float)channels), one = broadcast(1.0f);
  Lattice grid = lattice(places);
  for (int t = 0; t < width; t += VECTORS * LANES) {
    Float sum[VECTORS] = {}, squares[VECTORS] = {}, mean[VECTORS], factor[VECTORS], move[VECTORS];
    for (int c = 0; c < channels; c++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) sum[i] = sum[i] + load<Float>(x + c * width + t + i * LANES);
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; i++) mean[i] = sum[i] * share;
    for (int c = 0; c < channels; c++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        Float apart = load<Float>(x + c * width + t + i * LANES) - mean[i];
        squares[i] = fma(apart, apart, squares[i]);
      }
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; i++) {
      factor[i] = one / root(fma(squares[i], share, broadcast(b.swin.epsilon)));
      move[i] = -(mean[i] * factor[i]);
    }
    for (int c = 0; c < channels; c += 4)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        Int four[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          int at = c + k < channels ? c + k : c;  // a channel that is not there has weights of 0
          Float value = fma(load<Float>(x + at * width + t + i * LANES), factor[i], move[i]);
          four[k] = place(fma(value, broadcast(norm[0][at]), broadcast(norm[1][at])), grid);
        }
        store(to + c / 4 * width + t + i * LANES, together(four[0], four[1], four[2], four[3]));
      }
  }
}

// Four outputs of all tokens after the other: use(output, token, values[4]) for each vector of tokens.
template <class Use>
INLINE void linear(const Panel &panel, const uint32_t *codes, int width, Use use) {
  const Panel p = panel;  // a copy of our own: nothing that is stored can change it
  for (int o = 0; o < p.rows; o += 4) {
    const int8_t *rows = p.codes + (int64_t)o * p.columns;
    for (int t = 0; t < width; t += VECTORS * LANES) {
      Raw sums[4][VECTORS];
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) sums[k][i] = (Raw)all_of(p.start[o + k]);
      const uint32_t *from = codes + t;
      for (int c = 0; c < p.columns; c += 4, from += width) {
        Codes x[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) x[i] = codes_at(from + i * LANES);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          Weights w = four_weights(rows + (int64_t)k * p.columns + c);
#pragma GCC unroll 4
          for (int i = 0; i < VECTORS; i++) sums[k][i] = dot(sums[k][i], x[i], w);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        Float values[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
          values[k] = fma(to_float((Int)sums[k][i]), broadcast(p.scale[o + k]), broadcast(p.bias[o + k]));
        use(o, t + i * LANES, values);
      }
    }
  }
}

INLINE Int four_places(const Float *values, const Lattice &grid) {
  return together(place(values[0], grid), place(values[1], grid), place(values[2], grid), place(values[3], grid));
}

// Codes of q, k and v; channels that fill up a head are 0 in q and k, and have no part in v's sums.
static void project(const bk_swin_block &b, const WindowSpace s) {
  int width = b.width, padded = b.padded;
  uint32_t last = b.depth % 4 ? (1u << 8 * (b.depth % 4)) - 1 : ~0u;
  auto mask = [=](int o) { return all_of((int32_t)(o % padded + 4 == padded ? last : ~0u)); };
  linear(b.q, s.outer, width, [&](int o, int t, const Float *values) {
    store(s.q + o / 4 * width + t, four_places(values, lattice(b.q_places[o / padded])) & mask(o));
  });
  linear(b.k, s.outer, width, [&](int o, int t, const Float *values) {
    Int codes = four_places(values, lattice(b.k_places[o / padded])) ^ 0x80808080u;
    store(s.k + o / 4 * width + t, codes & mask(o));
  });
  linear(b.v, s.outer, width, [&](int o, int t, const Float *values) {
    Lattice grid = lattice(b.v_places[o / padded]);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
      store_low_bytes(s.v + (int64_t)(o + k) * width + t, place(values[k], grid) ^ 128);
  });
}

// What the scores of every key begin with: -z_q sum_d (k_jd - z_k), and what `dot` moves q by.
static void find_keys(const bk_swin_block &b, const WindowSpace &s, int head) {
  const bk_grid &q = b.swin.q[head], &k = b.swin.k[head];
  const uint32_t *keys = s.k + (int64_t)head * b.padded / 4 * b.width;
  const uint8_t ones[4] = {MOVED + 1, MOVED + 1, MOVED + 1, MOVED + 1};
  Codes one = four_codes(ones);
  for (int t = 0; t < b.width; t += LANES) {
    Raw sum = {};
    for (int g = 0; g < b.padded / 4; g++) sum = dot(sum, one, weights_at(keys + g * b.width + t));
    store(s.keys + t, (Int)sum * (uint32_t)(MOVED - q.zero) - (uint32_t)(q.zero * b.depth * (128 - k.zero)));
  }
}

// The weights of LANES queries from t on: exponents of each key, their powers, then codes.
template <bool EDGE>
INLINE void weigh(const bk_swin_block &b, const WindowSpace s, int head, int t) {
  const int8_t ones[4] = {1, 1, 1, 1};
  int keys = round_to(b.tokens, 4), groups = b.padded / 4, width = b.width;
  const uint32_t *q = s.q + (int64_t)head * groups * width + t, *k = s.k + (int64_t)head * groups * width;
  const float *position = b.position + ((int64_t)head * width + t / RUN * RUN) * keys + t % RUN;
  Float unit = broadcast(b.score_unit[head]), top = broadcast(NO_TOKEN), sums[4] = {};
  Raw sum = (Raw)all_of(MOVED * b.padded);
  for (int g = 0; g < groups; g++) sum = dot(sum, codes_at(q + g * width), four_weights(ones));
  Int row = (Int)sum * (uint32_t)(128 - b.swin.k[head].zero), part = load<Int>(s.parts + t);
  for (int j = 0; j < keys; j += 4) {
    Raw scores[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) scores[i] = (Raw)(row + all_of(s.keys[j + i]));
    for (int g = 0; g < groups; g++) {
      Codes query = codes_at(q + g * width);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) scores[i] = dot(scores[i], query, four_weights(k + g * width + j + i));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      Float exponent = fma(to_float((Int)scores[i]), unit, load<Float>(position + (j + i) * RUN));
      if (EDGE) exponent = exponent + (Float)((Int)(part != all_of(s.parts[j + i])) & (Int)broadcast(APART));
      store(s.scores + (j + i) * LANES, exponent);
      top = larger(top, exponent);
    }
  }
  for (int j = 0; j < keys; j += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      Float power = exp2_of(load<Float>(s.scores + (j + i) * LANES) - top);
      store(s.scores + (j + i) * LANES, power);
      sums[i] = sums[i] + power;
    }
  const bk_grid &grid = b.swin.attention[head];
  Float inverse = broadcast(1.0f) / (((sums[0] + sums[1]) + (sums[2] + sums[3])) * broadcast(grid.step));
  Lattice places = {inverse, broadcast(MAGIC + (float)grid.zero), broadcast(MAGIC + (float)grid.largest)};
  for (int j = 0; j < keys; j += 4) {
    Float four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) four[i] = load<Float>(s.scores + (j + i) * LANES);
    store(s.weights + j / 4 * LANES, four_places(four, places));
  }
  if (b.tokens % 4) {  // keys that are not there
    uint32_t *end = s.weights + (keys / 4 - 1) * LANES;
    store(end, load<Int>(end) & all_of((1 << 8 * (b.tokens % 4)) - 1));
  }
}

// What the sums of a channel of v begin with: -z_w sum_j (v_jd - z_v), and what `dot` moves the weights by.
static int32_t column_of(const bk_swin_block &b, const int8_t *v, int head) {
  const int zero = b.swin.attention[head].zero;
  if (!zero && MOVED == 0) return 0;
  int32_t sum = 0, beyond = 0;
  for (int j = 0; j < b.tokens; j++) sum += v[j];
  for (int j = b.tokens; j < round_to(b.tokens, 4); j++) beyond += v[j];  // met by weights of 0
  return MOVED * (sum + beyond) - zero * (sum + b.tokens * (128 - b.swin.v[head].zero));
}

// Codes of mixed v for LANES queries from t on.
INLINE void mix(const bk_swin_block &b, const WindowSpace s, int head, int t, const int32_t *columns) {
  const int8_t ones[4] = {1, 1, 1, 1};
  int keys = round_to(b.tokens, 4), width = b.width, padded = b.padded;
  Raw total = (Raw)all_of(MOVED * keys);
  for (int j = 0; j < keys; j += 4) total = dot(total, codes_at(s.weights + j / 4 * LANES), four_weights(ones));
  Int row = (Int)total * (uint32_t)(128 - b.swin.v[head].zero);
  Lattice grid = lattice(b.mixed);
  Float unit = broadcast(b.mixed_unit[head]);
  for (int d = 0; d < padded; d += 4) {
    const int8_t *v = s.v + ((int64_t)head * padded + d) * width;
    Raw sums[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) sums[k] = (Raw)(row + all_of(columns[d + k]));
    for (int j = 0; j < keys; j += 4) {
      Codes weights = codes_at(s.weights + j / 4 * LANES);
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) sums[k] = dot(sums[k], weights, four_weights(v + k * width + j));
    }
    Float values[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) values[k] = to_float((Int)sums[k]) * unit;
    store(s.outer + (head * padded + d) / 4 * width + t, four_places(values, grid));
  }
}

template <bool EDGE>
static void attend_window(const bk_swin_block &b, const WindowSpace &s) {
  int32_t columns[MOST_DEPTH];
  for (int head = 0; head < b.swin.heads; head++) {
    find_keys(b, s, head);
    for (int d = 0; d < b.padded; d++) columns[d] = column_of(b, s.v + ((int64_t)head * b.padded + d) * b.width, head);
    for (int t = 0; t < b.tokens; t += LANES) {
      weigh<EDGE>(b, s, head, t);
      mix(b, s, head, t, columns);
    }
  }
}

static void run_window(const bk_swin_block &b, const bk_swin_call &call, const WindowSpace &s, int64_t index) {
  int width = b.width, channels = b.swin.channels;
  bool edge = find_tokens(b, call, index, s.pixels, s.parts);
  gather(b, call, s);
  auto add = [&](int o, int t, const Float *values) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      float *x = s.x + (int64_t)(o + k) * width + t;
      if (o + k < channels) store(x, load<Float>(x) + values[k]);
    }
  };
  normalize(b, s.x, b.swin.norm1, b.normed1, s.outer);
  project(b, s);
  edge ? attend_window<true>(b, s) : attend_window<false>(b, s);
  linear(b.proj, s.outer, width, add);
  normalize(b, s.x, b.swin.norm2, b.normed2, s.outer);
  Lattice hidden = lattice(b.hidden);
  linear(b.fc1, s.outer, width, [&](int o, int t, const Float *values) {
    Float four[4] = {gelu(values[0]), gelu(values[1]), gelu(values[2]), gelu(values[3])};
    store(s.hidden + o / 4 * width + t, four_places(four, hidden));
  });
  linear(b.fc2, s.hidden, width, add);
  scatter(b, call, s);
}

static void swin(const bk_swin_block &b, const bk_swin_call &call, uint8_t *workspace, int threads) {
  int64_t count = windows_of(b, call).count;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; thread++) {
    WindowSpace space = window_space(b, workspace + thread * swin_workspace(b));
    memset(space.parts, 0, b.width * sizeof(int32_t));
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; i++) run_window(b, call, space, i);
  }
}
