// Swin blocks made ready: rows of codes for the vectors, and the constants that all levels share.

#include "swin.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

const int64_t ALIGNMENT = 64;

template <class T>
T *allocate(int64_t count) {
  int64_t bytes = (count * (int64_t)sizeof(T) + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  T *memory = static_cast<T *>(std::aligned_alloc(ALIGNMENT, (size_t)bytes));
  if (!memory) std::abort();  // a few hundred kilobytes
  std::memset(memory, 0, (size_t)bytes);
  return memory;
}

template <class T>
const T *copy(const T *from, int64_t count) {
  T *to = allocate<T>(count);
  std::memcpy(to, from, (size_t)count * sizeof(T));
  return to;
}

void own(bk_linear &l, int outputs, int inputs) {
  l.weights = copy(l.weights, (int64_t)outputs * inputs);
  l.scale = copy(l.scale, outputs);
  l.bias = copy(l.bias, outputs);
}

void own(bk_swin &s) {
  int c = s.channels, tokens = s.window * s.window;
  for (auto *norm : {s.norm1, s.norm2})
    for (int i = 0; i < 2; i++) norm[i] = copy(norm[i], c);
  own(s.qkv, 3 * c, c);
  own(s.proj, c, c);
  own(s.fc1, s.hidden, c);
  own(s.fc2, c, s.hidden);
  for (auto *grid : {&s.q, &s.k, &s.attention, &s.v}) *grid = copy(*grid, s.heads);
  s.position = copy(s.position, (int64_t)s.heads * tokens * tokens);
}

Places places_of(const bk_grid &g) { return {1.0f / g.step, MAGIC + (float)g.zero, MAGIC + (float)g.largest}; }

// Some rows of a layer; a run of `run` rows or of `column_run` columns is filled up to a multiple of 4, each by itself.
Panel pack(const bk_linear &l, int moved, int first, int outputs, int inputs, int run, int column_run) {
  int wide_run = round_to(run, 4), wide_column_run = round_to(column_run, 4);
  Panel p{};
  p.rows = outputs / run * wide_run;
  p.columns = inputs / column_run * wide_column_run;
  p.codes = allocate<int8_t>((int64_t)p.rows * p.columns);
  p.start = allocate<int32_t>(p.rows);
  p.scale = allocate<float>(p.rows);
  p.bias = allocate<float>(p.rows);
  for (int o = 0; o < outputs; o++) {
    int row = o / run * wide_run + o % run;
    int32_t sum = 0;
    for (int i = 0; i < inputs; i++) {
      int8_t w = l.weights[(int64_t)(first + o) * inputs + i];
      p.codes[(int64_t)row * p.columns + i / column_run * wide_column_run + i % column_run] = w;
      sum += w;
    }
    p.start[row] = (moved - l.input.zero) * sum;
    p.scale[row] = l.scale[first + o];
    p.bias[row] = l.bias[first + o];
  }
  return p;
}

bool is_grid(const bk_grid &g) { return g.step > 0 && g.zero >= 0 && g.zero <= 255 && g.largest >= 0 && g.largest <= 255; }

const char *complaint(const bk_swin &s, int level) {
  if (!bk_has(level)) return "this CPU has no such instruction set";
  if (s.channels < 1 || s.heads < 1 || s.channels % s.heads || s.hidden < 1 || s.window < 1 || s.window > 64)
    return "wanted whole heads, a hidden layer and windows of 1 to 64 pixels";
  if (s.channels / s.heads > MOST_DEPTH) return "wanted at most 1024 channels a head";
  if (s.channels > 16384 || s.hidden > 16384) return "the sums may exceed 32 bits";
  for (auto *layer : {&s.qkv, &s.proj, &s.fc1, &s.fc2})
    if (!is_grid(layer->input)) return "a grid of a layer's input is none: wanted step above 0, codes 0 .. 255";
  for (auto *grids : {s.q, s.k, s.attention, s.v})
    for (int h = 0; h < s.heads; h++)
      if (!is_grid(grids[h])) return "a grid of attention is none: wanted step above 0, codes 0 .. 255";
  return nullptr;
}

void release(const Panel &p) {
  for (void *memory : {(void *)p.codes, (void *)p.start, (void *)p.scale, (void *)p.bias}) std::free(memory);
}

// Tables of each head, and of the four layers.
void prepare_grids(bk_swin_block &b) {
  const bk_swin &s = b.swin;
  b.normed1 = places_of(s.qkv.input);
  b.mixed = places_of(s.proj.input);
  b.normed2 = places_of(s.fc1.input);
  b.hidden = places_of(s.fc2.input);
  for (auto *places : {&b.q_places, &b.k_places, &b.v_places}) *places = allocate<Places>(s.heads);
  b.score_unit = allocate<float>(s.heads);
  b.mixed_unit = allocate<float>(s.heads);
  int keys = round_to(b.tokens, 4);
  b.position = allocate<float>((int64_t)s.heads * keys * b.width);
  for (int h = 0; h < s.heads; h++) {
    b.q_places[h] = places_of(s.q[h]);
    b.k_places[h] = places_of(s.k[h]);
    b.v_places[h] = places_of(s.v[h]);
    b.score_unit[h] = (float)((double)s.q[h].step * s.k[h].step * s.factor * LOG2E);
    b.mixed_unit[h] = (float)((double)s.attention[h].step * s.v[h].step);
    for (int j = 0; j < keys; j++)
      for (int i = 0; i < b.width; i++) {
        float bias = i < b.tokens && j < b.tokens ? s.position[((int64_t)h * b.tokens + i) * b.tokens + j] * LOG2E : 0;
        b.position[(((int64_t)h * b.width + i / RUN * RUN) * keys) + j * RUN + i % RUN] = j < b.tokens ? bias : NO_TOKEN;
      }
  }
}

}  // namespace

extern "C" bk_swin_block *bk_swin_create(const bk_swin *swin, int level, char *message) {
  if (const char *reason = complaint(*swin, level)) {
    std::snprintf(message, 160, "%s", reason);
    return nullptr;
  }
  auto *b = new bk_swin_block();
  b->swin = *swin;
  own(b->swin);
  const bk_swin &s = b->swin;
  int c = s.channels, moved = level_of(level).moved;
  b->level = level;
  b->tokens = s.window * s.window;
  b->width = round_to(b->tokens, TOKENS);
  b->depth = c / s.heads;
  b->padded = round_to(b->depth, 4);
  b->q = pack(s.qkv, moved, 0, c, c, b->depth, c);
  b->k = pack(s.qkv, moved, c, c, c, b->depth, c);
  b->v = pack(s.qkv, moved, 2 * c, c, c, b->depth, c);
  b->proj = pack(s.proj, moved, 0, c, c, c, b->depth);
  b->fc1 = pack(s.fc1, moved, 0, s.hidden, c, s.hidden, c);
  b->fc2 = pack(s.fc2, moved, 0, c, s.hidden, c, s.hidden);
  prepare_grids(*b);
  return b;
}

extern "C" void bk_swin_destroy(bk_swin_block *b) {
  if (!b) return;
  const bk_swin &s = b->swin;
  for (auto *p : {&b->q, &b->k, &b->v, &b->proj, &b->fc1, &b->fc2}) release(*p);
  for (auto *layer : {&s.qkv, &s.proj, &s.fc1, &s.fc2})
    for (const void *memory : {(const void *)layer->weights, (const void *)layer->scale, (const void *)layer->bias})
      std::free(const_cast<void *>(memory));
  for (const void *memory :
       {(const void *)s.norm1[0], (const void *)s.norm1[1], (const void *)s.norm2[0], (const void *)s.norm2[1],
        (const void *)s.q, (const void *)s.k, (const void *)s.attention, (const void *)s.v, (const void *)s.position,
        (const void *)b->q_places, (const void *)b->k_places, (const void *)b->v_places, (const void *)b->score_unit,
        (const void *)b->mixed_unit, (const void *)b->position})
    std::free(const_cast<void *>(memory));
  delete b;
}

// Codes of one window: normed1, q, k, v, (heads, tokens, tokens) weights, mixed, normed2 (tokens, channels), hidden.
extern "C" int64_t bk_swin_trace(const bk_swin_block *b) {
  return (int64_t)b->tokens * (6 * b->swin.channels + b->swin.heads * b->tokens + b->swin.hidden);
}
