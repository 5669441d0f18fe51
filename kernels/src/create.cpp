// Convolutions made ready: which method is exact for which bits, and weights packed for it.

#include "convolution.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// One dimension of a Winograd tile: G, whose rows were multiplied by what makes them integers (A makes up for it), and
// its rows and those of B^T as sums of positive and of negative coefficients.
struct Axis {
  int edge;
  int g[5][3], g_sums[5][2], b_sums[5][2];
  int factor;  // what the sums come out multiplied by
};

// F(2,3) from the points 0, 1, -1 and infinity, F(3,3) from 2 too.
constexpr Axis NARROW = {
    4, {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}}, {{2, 0}, {3, 0}, {2, 1}, {2, 0}}, {{1, 1}, {2, 0}, {1, 1}, {1, 1}}, 2};
constexpr Axis WIDE = {5,
                       {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {0, 0, 1}},
                       {{1, 0}, {3, 0}, {2, 1}, {7, 0}, {1, 0}},
                       {{3, 3}, {1, 3}, {3, 3}, {1, 1}, {3, 3}},
                       6};

struct Sums {
  int plus, minus;
};

const Axis &axis_of(int method) { return method == BK_WINOGRAD2_WIDE ? WIDE : NARROW; }
int dimensions(int method) { return method == BK_WINOGRAD3 ? 3 : 2; }
bool winograd(int method) { return method == BK_WINOGRAD2 || method == BK_WINOGRAD3 || method == BK_WINOGRAD2_WIDE; }

int positions_of(int method) {
  return method == BK_WINOGRAD2 ? 16 : method == BK_WINOGRAD2_WIDE ? 25 : method == BK_WINOGRAD3 ? 64 : 1;
}

// The coefficients of a position of the tile: products of those of its rows.
Sums sums_at(const int (*rows)[2], int method, int position) {
  Sums all{1, 0};
  int edge = axis_of(method).edge;
  for (int d = 0; d < dimensions(method); d++, position /= edge) {
    int plus = rows[position % edge][0], minus = rows[position % edge][1];
    all = {all.plus * plus + all.minus * minus, all.plus * minus + all.minus * plus};
  }
  return all;
}

int code_bound(const bk_layer &layer) { return layer.largest > layer.zero ? layer.largest : layer.zero; }

bool winograd_fits(const bk_layer &layer, int method, int lowest, int highest) {
  int first = method == BK_WINOGRAD3 ? 0 : 1;
  for (int d = 0; d < 3; d++) {
    if (layer.stride[d] != 1) return false;
    if (d >= first && layer.kernel[d] != 3) return false;
  }
  for (int p = 0; p < positions_of(method); p++) {
    Sums g = sums_at(axis_of(method).g_sums, method, p), b = sums_at(axis_of(method).b_sums, method, p);
    if (g.plus * lowest - g.minus * highest < -128 || g.plus * highest - g.minus * lowest > 127) return false;
    if ((b.plus + b.minus) * code_bound(layer) > 255) return false;
  }
  return true;
}

int groups(const bk_layer &layer) { return (layer.channels + GROUP - 1) / GROUP; }
int taps_of(const bk_layer &layer) { return layer.kernel[0] * layer.kernel[1] * layer.kernel[2]; }

bool lookup_fits(const bk_layer &layer, int lowest, int highest) {
  int64_t largest_sum = (int64_t)taps_of(layer) * groups(layer) * LARGEST_LOOKUP;
  return lowest >= -2 && highest <= 1 && code_bound(layer) <= 3 && largest_sum <= 65535;
}

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

template <class T>
T *allocate(int64_t count) {
  size_t bytes = (size_t)(count * sizeof(T) + ALIGN - 1) / ALIGN * ALIGN;
  T *memory = static_cast<T *>(std::aligned_alloc(ALIGN, bytes));
  if (memory) std::memset(memory, 0, bytes);
  return memory;
}

// The packed byte of weight (step, output) at a position, four steps of the sum being neighbours.
int8_t &packed_at(const bk_convolution &c, int position, int output, int step) {
  int first = 0, width = block_width(c, 0);
  while (output >= first + width) first += width, width = block_width(c, first);
  int64_t panel = position * c.panel + (int64_t)first * c.taps * c.depth;
  return c.packed[panel + ((int64_t)(step / 4) * width + output - first) * 4 + step % 4];
}

int8_t weight_at(const bk_convolution &c, int output, int tap, int channel) {
  return c.weights[((int64_t)output * taps_of(c.layer) + tap) * c.layer.channels + channel];
}

void pack_direct(bk_convolution &c) {
  const bk_layer &l = c.layer;
  for (int o = 0; o < l.outputs; o++) {
    int32_t sum = 0;
    for (int tap = 0; tap < taps_of(l); tap++)
      for (int k = 0; k < l.channels; k++) {
        int8_t w = weight_at(c, o, tap, k);
        packed_at(c, 0, o, c.flat ? tap / l.kernel[2] * c.depth + tap % l.kernel[2] * l.channels + k : tap * c.depth + k) = w;
        sum += w;
      }
    c.start[o] = (level_of(c.level).moved - l.zero) * sum;
  }
}

// U = G w G^T, or its like in three dimensions, at one position; t is summed over taps where it has two.
int transformed_weight(const bk_convolution &c, int position, int output, int dt, int channel) {
  const Axis &a = axis_of(c.method);
  int column = position % a.edge, row = position / a.edge % a.edge, frame = position / (a.edge * a.edge), sum = 0;
  bool three = c.method == BK_WINOGRAD3;
  for (int t = 0; t < (three ? 3 : 1); t++)
    for (int h = 0; h < 3; h++)
      for (int w = 0; w < 3; w++) {
        int tap = ((three ? t : dt) * 3 + h) * 3 + w;
        sum += (three ? a.g[frame][t] : 1) * a.g[row][h] * a.g[column][w] * weight_at(c, output, tap, channel);
      }
  return sum;
}

void pack_winograd(bk_convolution &c) {
  for (int p = 0; p < c.positions; p++) {
    Sums b = sums_at(axis_of(c.method).b_sums, c.method, p);
    c.offset[p] = (uint8_t)(b.minus * code_bound(c.layer));
    for (int o = 0; o < c.layer.outputs; o++) {
      int32_t sum = 0;
      for (int dt = 0; dt < c.taps; dt++)
        for (int k = 0; k < c.layer.channels; k++) {
          int u = transformed_weight(c, p, o, dt, k);
          packed_at(c, p, o, dt * c.depth + k) = (int8_t)u;
          sum += u;
        }
      // The transform of codes that are all `zero` is (plus - minus) zero; it and the offset are taken off here.
      int moved = level_of(c.level).moved - c.offset[p];
      c.start[(int64_t)p * c.width + o] = (moved - (b.plus - b.minus) * c.layer.zero) * sum;
    }
  }
}

// The byte of an output in its block of 64: u16 sums of even and odd bytes are cut into halves to become 32-bit ones,
// each cut 16 outputs.
int lookup_byte(int output) {
  constexpr int FIRST[4] = {0, 2, 1, 3};
  return output % 16 * 4 + FIRST[output / 16];
}

// [block of 64 outputs][tap][group][64]: the indices of three weights; and the table of their products.
void pack_lookup(bk_convolution &c) {
  const bk_layer &l = c.layer;
  int n = groups(l), taps = taps_of(l);
  for (int o = 0; o < c.width; o++) {
    int32_t sum = 0;
    for (int tap = 0; tap < taps; tap++)
      for (int g = 0; g < n; g++) {
        int index = 0;
        for (int i = 0; i < GROUP; i++) {
          int k = g * GROUP + i, w = o < l.outputs && k < l.channels ? weight_at(c, o, tap, k) : 0;
          index |= (w + 2) << 2 * i;
          sum += w;
        }
        c.packed[(((int64_t)(o / 64) * taps + tap) * n + g) * 64 + lookup_byte(o % 64)] = (int8_t)index;
      }
    c.start[o] = -l.zero * sum - LOOKUP_OFFSET * taps * n;
  }
  for (int a = 0; a < 64; a++)
    for (int w = 0; w < 64; w++) {
      int product = LOOKUP_OFFSET;
      for (int i = 0; i < GROUP; i++) product += (a >> 2 * i & 3) * ((w >> 2 * i & 3) - 2);
      c.table[a * 64 + w] = (uint8_t)product;
    }
}

// Whether every sum of the method stays below 2^31; Winograd's are multiples of those of the convolution. What comes
// between may wrap around.
bool sums_fit(const bk_layer &layer, const int8_t *weights, int method) {
  int64_t factor = winograd(method) ? 1 : 2;
  if (winograd(method))
    for (int d = 0; d < dimensions(method); d++) factor *= axis_of(method).factor;
  int64_t row = (int64_t)taps_of(layer) * layer.channels;
  for (int o = 0; o < layer.outputs; o++) {
    int64_t sum = 0;
    for (int64_t i = 0; i < row; i++) sum += std::abs((int)weights[o * row + i]);
    if (factor * code_bound(layer) * sum >= INT64_C(1) << 31) return false;
  }
  return true;
}

const char *complaint(const bk_layer &l, const int8_t *weights, int method, int level) {
  if (!bk_has(level)) return "this CPU has no such instruction set";
  if (method < 0 || method >= BK_METHODS) return "there is no such method";
  if (l.channels < 1 || l.outputs < 1 || l.largest < 0 || l.largest > 255 || l.zero < 0 || l.zero > 255)
    return "wanted at least one channel and codes 0 .. 255";
  for (int d = 0; d < 3; d++)
    if (l.kernel[d] < 1 || l.stride[d] < 1 || l.padding[d] < 0) return "wanted kernel and stride from 1, padding from 0";
  if (l.kernel[0] * l.kernel[1] > MOST_ROWS) return "wanted at most 512 taps of t and h";
  int lowest = 0, highest = 0;
  for (int64_t i = 0; i < (int64_t)l.outputs * taps_of(l) * l.channels; i++) {
    if (weights[i] < lowest) lowest = weights[i];
    if (weights[i] > highest) highest = weights[i];
  }
  if (!bk_fits(&l, method, lowest, highest)) return "the method is not exact for these weights and codes";
  if (!sums_fit(l, weights, method)) return "the sums may exceed 32 bits";
  return nullptr;
}

}  // namespace

extern "C" int bk_fits(const bk_layer *layer, int method, int lowest, int highest) {
  switch (method) {
    case BK_DIRECT: return 1;
    case BK_WINOGRAD2:
    case BK_WINOGRAD3:
    case BK_WINOGRAD2_WIDE: return winograd_fits(*layer, method, lowest, highest);
    case BK_LOOKUP: return lookup_fits(*layer, lowest, highest);
    default: return 0;
  }
}

extern "C" bk_convolution *bk_create(const bk_layer *layer, const int8_t *weights, int method, int level,
                                     char *message) {
  if (const char *reason = complaint(*layer, weights, method, level)) {
    std::snprintf(message, 160, "%s", reason);
    return nullptr;
  }
  if (!level_of(level).run[method]) method = BK_DIRECT;  // look-up, where there is no vpermb
  auto *c = new bk_convolution();
  int64_t count = (int64_t)layer->outputs * taps_of(*layer) * layer->channels;
  c->layer = *layer;
  c->method = method;
  c->level = level;
  c->positions = positions_of(method);
  c->flat = method == BK_DIRECT && layer->channels % 4;
  c->taps = c->flat ? layer->kernel[0] * layer->kernel[1] : winograd(method) ? (dimensions(method) == 3 ? 1 : layer->kernel[0]) : taps_of(*layer);
  c->depth = c->positions > 1 ? round_up(layer->channels, 16)
                              : round_up(c->flat ? layer->kernel[2] * layer->channels : layer->channels, 4);
  c->width = round_up(layer->outputs, method == BK_LOOKUP ? 64 : 16);
  c->panel = (int64_t)c->width * c->taps * c->depth;
  c->bytes = method == BK_LOOKUP ? (int64_t)c->width * taps_of(*layer) * groups(*layer) : c->panel * c->positions;
  c->weights = allocate<int8_t>(count);
  c->packed = allocate<int8_t>(c->bytes);
  c->start = allocate<int32_t>((int64_t)c->positions * c->width);
  c->table = method == BK_LOOKUP ? allocate<uint8_t>(64 * 64) : nullptr;
  if (!c->weights || !c->packed || !c->start || (method == BK_LOOKUP && !c->table)) {
    std::snprintf(message, 160, "not enough memory");
    bk_destroy(c);
    return nullptr;
  }
  std::memcpy(c->weights, weights, count);
  if (method == BK_LOOKUP)
    pack_lookup(*c);
  else if (c->positions > 1)
    pack_winograd(*c);
  else
    pack_direct(*c);
  return c;
}

extern "C" void bk_destroy(bk_convolution *c) {
  if (!c) return;
  std::free(c->weights);
  std::free(c->packed);
  std::free(c->start);
  std::free(c->table);
  delete c;
}

extern "C" int64_t bk_packed_bytes(const bk_convolution *c) { return c->bytes; }
