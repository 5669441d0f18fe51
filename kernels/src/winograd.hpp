// Winograd convolution F(2x2,3x3), F(3x3,3x3) and F(2x2x2,3x3x3) in integers, exact where `bk_fits` says so.
//
//   V = B^T x B + offset       u8, wraps around on the way
//   M = sum over channels, and in two dimensions over kt taps, of U V + start       U = G w G^T, s8
//   Y = A^T M A / 4 (/ 36, / 8)   G and A are scaled to integers; the division is exact
#pragma once

#include "direct.hpp"

enum { TILES = 12, WIDEST = LANES == 16 ? 32 : 16 };  // of a block: tiles, a multiple of PIXELS, and outputs

// A tile has N = 16, 25 or 64 positions: edge(N) along each axis, for side_of(N) output pixels along it.
constexpr int edge(int N) { return N == 25 ? 5 : 4; }
constexpr int side_of(int N) { return N == 25 ? 3 : 2; }
constexpr int pixels_of(int N) { return N == 25 ? 9 : N == 64 ? 8 : 4; }

// B^T down one axis: element i of the axis is x[i * step].
template <int EDGE, class B>
INLINE void transform_codes(B *x, int step) {
  B a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
  if (EDGE == 4) {
    x[0] = a - c;
    x[step] = b + c;
    x[2 * step] = c - b;
    x[3 * step] = b - d;
  } else {
    B left = a - c, middle = b - c, right = d - b;
    x[0] = left + left + right;
    x[step] = right - b - c;
    x[2 * step] = right + middle + middle + middle;
    x[3 * step] = right;
    x[4 * step] = x[4 * step] - c - right - right;
  }
}

// A^T down one axis: the sums come to the first elements.
template <int EDGE>
INLINE void transform_sums(Int *m, int step) {
  if (EDGE == 4) {
    Int both = m[step] + m[2 * step];
    Int difference = m[step] - m[2 * step];
    m[0] = m[0] + both;
    m[step] = difference - m[3 * step];
  } else {
    Int a = m[0], b = m[step], c = m[2 * step], d = m[3 * step], e = m[4 * step], thrice = b + b + b, twice = d + d;
    m[0] = a + a + a - thrice - c + d;
    m[step] = c + twice - thrice;
    m[2 * step] = twice + twice - thrice - c + ((e + e + e) << 1);
  }
}

// The sum that was multiplied by 4, 36 or 8. What is a multiple of 9 is divided by multiplying with 1 / 9 mod 2^32.
template <int N>
INLINE Int divided(Int y) {
  y = halved(y, N == 64 ? 3 : 2);
  return N == 25 ? y * 0x38e38e39u : y;
}

template <class B>
INLINE B all_bytes(uint8_t value) {
  return B{} + value;
}

// The transformed codes of one tile, from channel k on; `to` is (position, tile, channel) at this tile.
template <class B, int N>
INLINE void transform_tile(const uint8_t *const *pixels, const uint8_t *offset, int k, int channels, int depth,
                           uint8_t *to, int64_t position_bytes) {
  enum { E = edge(N) };
  B x[N];
  int n = channels - k;
#pragma GCC unroll 64
  for (int i = 0; i < N; i++) x[i] = load_part<B>(pixels[i] + k, n);
#pragma GCC unroll 16
  for (int i = 0; i < N / E; i++) transform_codes<E>(x + E * i, 1);
#pragma GCC unroll 16
  for (int i = 0; i < N / E; i++) transform_codes<E>(x + i / E * E * E + i % E, E);
  if (N == 64)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) transform_codes<E>(x + i, 16);
#pragma GCC unroll 64
  for (int i = 0; i < N; i++) {
    B found = (B)(x[i] + all_bytes<B>(offset[i]));
    if (depth - k < (int)sizeof(B))
      memcpy(to + i * position_bytes + k, &found, sizeof(B) / 2);
    else
      store(to + i * position_bytes + k, found);
  }
}

template <int N>
static void transform_channels(const bk_convolution &c, const uint8_t *const *pixels, uint8_t *to) {
  int k = 0, channels = c.layer.channels;
  int64_t position_bytes = (int64_t)TILES * c.depth;
#ifdef __AVX512F__
  for (; c.depth - k >= 64; k += 64) transform_tile<Byte64, N>(pixels, c.offset, k, channels, c.depth, to, position_bytes);
#endif
  for (; k < c.depth; k += sizeof(Bytes)) transform_tile<Bytes, N>(pixels, c.offset, k, channels, c.depth, to, position_bytes);
}

// Where the sums of pixel j of tile i are: (frame, row, tile, column), so that those of image rows are neighbours.
template <int N>
INLINE int pixel_of(int j, int i) {
  return (j / side_of(N) * TILES + i) * side_of(N) + j % side_of(N);
}

// V vectors of the sums of the pixels of tile i, from those of its N positions, (position, tile, V).
template <int N, int V>
INLINE void transform_back(const int32_t *products, int i, int32_t *sums, int64_t pitch) {
  enum { E = edge(N), S = side_of(N), COUNT = pixels_of(N) };
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
    Int m[N];
#pragma GCC unroll 64
    for (int p = 0; p < N; p++) m[p] = load<Int>(products + ((p * TILES + i) * V + v) * LANES);
#pragma GCC unroll 4
    for (int t = 0; t < N; t += E * E) {
#pragma GCC unroll 5
      for (int k = 0; k < E; k++) transform_sums<E>(m + t + k, E);
#pragma GCC unroll 3
      for (int k = 0; k < S; k++) transform_sums<E>(m + t + E * k, 1);
    }
    if (N == 64)
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) transform_sums<E>(m + k / 2 * 4 + k % 2, 16);
#pragma GCC unroll 9
    for (int j = 0; j < COUNT; j++)
      store(sums + pixel_of<N>(j, i) * pitch + v * LANES, divided<N>(m[(j / S / S * E + j / S % S) * E + j % S]));
  }
}

template <int N>
static void transform_tiles_back(const int32_t *products, int width, int n, int32_t *sums, int64_t pitch) {
  for (int i = 0; i < n; i++)
    if (width == WIDEST)
      transform_back<N, WIDEST / LANES>(products, i, sums, pitch);
    else
      transform_back<N, 1>(products, i, sums, pitch);
}

struct WinogradSpace {
  uint8_t *codes;    // (frames, position, tile, depth)
  int32_t *products; // (position, tile, outputs of a block)
  int32_t *sums;     // (pixel_of, width)
  uint8_t *outside;
  int64_t frame;     // bytes of one frame of `codes`
  int64_t bytes;
};

static WinogradSpace winograd_space(const bk_convolution &c, uint8_t *memory) {
  int64_t frame = aligned((int64_t)c.positions * TILES * c.depth), codes = frame * c.taps;
  int64_t products = (int64_t)c.positions * TILES * WIDEST * 4, sums = (int64_t)TILES * 9 * c.width * 4;
  WinogradSpace s = {memory, nullptr, nullptr, nullptr, frame, codes + products + sums + aligned(c.depth)};
  if (memory) {
    s.products = (int32_t *)(memory + codes);
    s.sums = (int32_t *)(memory + codes + products);
    s.outside = memory + codes + products + sums;
    memset(s.outside, c.layer.zero, c.depth);
  }
  return s;
}

static int64_t winograd_workspace(const bk_convolution &c, const bk_input &, int threads) {
  return threads * winograd_space(c, nullptr).bytes;
}

// The input pixels of a tile from (t, h, w) on.
template <int N>
INLINE void find_pixels(const bk_input &x, int t, int h, int w, const uint8_t *outside, const uint8_t **pixels) {
  enum { E = edge(N) };
  bool interior = t >= 0 && h >= 0 && w >= 0 && t + N / E / E <= x.size[0] && h + E <= x.size[1] && w + E <= x.size[2];
  if (interior) {
    const uint8_t *first = pixel_at(x, t, h, w, outside);
    int64_t row = x.size[2] * x.stride, frame = x.size[1] * row;
    for (int i = 0; i < N; i++) pixels[i] = first + i / E / E * frame + i / E % E * row + i % E * x.stride;
  } else {
    for (int i = 0; i < N; i++) pixels[i] = pixel_at(x, t + i / E / E, h + i / E % E, w + i % E, outside);
  }
}

// The sums of a block of tiles at all pixels, from the transformed codes of `count` frames.
template <int N>
static void multiply_tiles(const bk_convolution &c, const uint8_t *const *frames, int count, int n,
                           const WinogradSpace &space) {
  for (int first = 0, width; first < c.width; first += width) {
    width = block_width(c, first);
    for (int p = 0; p < N; p++)
      for (int i = 0; i < TILES; i += PIXELS) {
        Row rows[MOST_ROWS];
        int at = p * TILES + i;
        for (int r = 0; r < count; r++) rows[r] = {frames[r] + (int64_t)at * c.depth, c.depth};
        multiply(c, p, first, rows, count, 1, 1, space.products + at * width, width);
      }
    transform_tiles_back<N>(space.products, width, n, space.sums + first, c.width);
  }
}

// The output stage of n tiles, neighbours from tile (t, h, w) of the output on, w counting on over the rows' ends.
template <int N>
static void finish_tiles(const bk_convolution &c, const Stage &stage, const Side &side, const Size &size,
                         const int32_t *sums, int t, int h, int w, int across, int n) {
  enum { S = side_of(N) };
  for (int i = 0, tiles; i < n; i += tiles, h++, w = 0) {
    tiles = across - w < n - i ? across - w : n - i;
    if (h == (size.h + S - 1) / S) h = 0, t++;
    int count = S * (w + tiles) <= size.w ? S * tiles : size.w - S * w;
    for (int j = 0; j < pixels_of(N); j += S) {
      int frame = N == 64 ? 2 * t + j / 4 : t, row = S * h + j / S % S;
      if (frame < size.t && row < size.h)
        finish_run(stage, side, size, sums + pixel_of<N>(j, i) * (int64_t)c.width, c.width, frame, row, S * w, count);
    }
  }
}

// Tiles of 2 x 2 or 3 x 3 pixels of some frames; those that a tap of time needs are transformed once and kept in a ring.
template <int N>
static void plane_block(const bk_convolution &c, const bk_input &x, const Stage &stage, const Side &side,
                        const WinogradSpace &space, const Size &size, int from, int to, int first, int across, int tiles) {
  const bk_layer &l = c.layer;
  int n = tiles - first < TILES ? tiles - first : TILES;
  for (int frame = from; frame < to + c.taps - 1; frame++) {
    uint8_t *codes = space.codes + frame % c.taps * space.frame;
    for (int i = 0; i < n; i++) {
      int h = (first + i) / across * side_of(N) - l.padding[1], w = (first + i) % across * side_of(N) - l.padding[2];
      const uint8_t *pixels[N];
      find_pixels<N>(x, frame - l.padding[0], h, w, space.outside, pixels);
      transform_channels<N>(c, pixels, codes + (int64_t)i * c.depth);
    }
    int t = frame - c.taps + 1;
    if (t < from) continue;
    const uint8_t *frames[MOST_ROWS];
    for (int dt = 0; dt < c.taps; dt++) frames[dt] = space.codes + (t + dt) % c.taps * space.frame;
    multiply_tiles<N>(c, frames, c.taps, n, space);
    finish_tiles<N>(c, stage, side, size, space.sums, t, first / across, first % across, across, n);
  }
}

static void volume_block(const bk_convolution &c, const bk_input &x, const Stage &stage, const Side &side,
                         const WinogradSpace &space, const Size &size, int64_t first, int across, int64_t plane, int64_t tiles) {
  const bk_layer &l = c.layer;
  int n = tiles - first < TILES ? (int)(tiles - first) : TILES;
  for (int i = 0; i < n; i++) {
    int64_t tile = first + i;
    int t = (int)(tile / plane) * 2, h = (int)(tile % plane / across) * 2, w = (int)(tile % across) * 2;
    const uint8_t *pixels[64];
    find_pixels<64>(x, t - l.padding[0], h - l.padding[1], w - l.padding[2], space.outside, pixels);
    transform_channels<64>(c, pixels, space.codes + (int64_t)i * c.depth);
  }
  const uint8_t *frames[1] = {space.codes};
  multiply_tiles<64>(c, frames, 1, n, space);
  finish_tiles<64>(c, stage, side, size, space.sums, (int)(first / plane), (int)(first % plane / across),
                   (int)(first % across), across, n);
}

template <int N>
static void winograd(const bk_convolution &c, const bk_input &input, const bk_output &output, uint8_t *workspace,
                     int threads) {
  Size size = output_size(c.layer, input.size);
  const Stage stage = make_stage(output, c.layer.outputs);
  int across = (size.w + side_of(N) - 1) / side_of(N);
  int64_t plane = (int64_t)(size.h + side_of(N) - 1) / side_of(N) * across;
  int64_t tiles = N == 64 ? (size.t + 1) / 2 * plane : plane, blocks = (tiles + TILES - 1) / TILES;
  const bool flat = N != 64 && c.taps == 1;  // then frames are independent, and read and written in their order
  int64_t all = flat ? size.t * blocks : blocks;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; thread++) {
    WinogradSpace space = winograd_space(c, workspace + thread * winograd_space(c, nullptr).bytes);
    Side side = make_side(output, workspace + winograd_workspace(c, input, threads), thread);
    memset(space.codes, 0, space.frame * c.taps);  // tiles beyond the last one are multiplied too
    for (int64_t block = all * thread / threads; block < all * (thread + 1) / threads; block++) {
      int64_t first = block % blocks * TILES;
      int frame = (int)(block / blocks);
      if constexpr (N == 64)
        volume_block(c, input, stage, side, space, size, first, across, plane, tiles);
      else
        plane_block<N>(c, input, stage, side, space, size, frame, flat ? frame + 1 : size.t, (int)first, across, (int)tiles);
    }
  }
}
