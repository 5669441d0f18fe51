// The scalar reference of the fused Swin block: the definition of correct, one token and one sum after the other.

#include "swin.hpp"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <vector>

typedef std::vector<uint8_t> Codes;

static int code_of(float value, const Places &p) {
  float place = std::fma(value, p.inverse, p.zero);
  place = place > MAGIC ? place : MAGIC;
  place = place < p.high ? place : p.high;
  return (int)(place - MAGIC);
}

static float exp2_of(float x) {
  x = x > EXP2_LOWEST ? x : EXP2_LOWEST;
  float whole = (x + MAGIC) - MAGIC, rest = x - whole, sum = EXP2_TERMS[0];
  for (int i = 1; i < 6; i++) sum = std::fma(sum, rest, EXP2_TERMS[i]);
  return std::ldexp(sum, (int)whole);
}

static float gelu(float x) {
  float near = x < PHI_LARGEST ? x : PHI_LARGEST;
  near = near > -PHI_LARGEST ? near : -PHI_LARGEST;
  float u = std::fma(near * PHI_SCALE, near, -1.0f), sum = PHI_TERMS[0];
  for (int i = 1; i < 12; i++) sum = std::fma(sum, u, PHI_TERMS[i]);
  return x * std::fma(near, sum, 0.5f);
}

// Normalizes the channels of each token, and writes codes (tokens, channels).
static void normalize(const bk_swin_block &b, const float *x, const float *const *norm, const Places &places, uint8_t *to) {
  int channels = b.swin.channels;
  float share = 1.0f / (float)channels;
  for (int t = 0; t < b.tokens; t++, x += channels, to += channels) {
    float sum = 0, squares = 0;
    for (int c = 0; c < channels; c++) sum += x[c];
    float mean = sum * share;
    for (int c = 0; c < channels; c++) squares = std::fma(x[c] - mean, x[c] - mean, squares);
    float factor = 1.0f / std::sqrt(std::fma(squares, share, b.swin.epsilon)), move = -(mean * factor);
    for (int c = 0; c < channels; c++)
      to[c] = (uint8_t)code_of(std::fma(std::fma(x[c], factor, move), norm[0][c], norm[1][c]), places);
  }
}

// The value of one output of a linear layer.
static float linear(const bk_linear &l, const uint8_t *codes, int inputs, int output) {
  const int8_t *w = l.weights + (int64_t)output * inputs;
  int32_t total = 0;
  for (int i = 0; i < inputs; i++) total += (codes[i] - l.input.zero) * w[i];
  return std::fma((float)total, l.scale[output], l.bias[output]);
}

// The weights of token i of a head over all tokens; q, k: (tokens, channels), at the head's first channel.
static void weigh(const bk_swin_block &b, int head, const uint8_t *q, const uint8_t *k, const int32_t *parts, int i,
                  uint8_t *weights) {
  const bk_swin &s = b.swin;
  int n = b.tokens;
  std::vector<float> exponents(n);
  float top = NO_TOKEN, sums[4] = {0, 0, 0, 0};
  for (int j = 0; j < n; j++) {
    int32_t score = 0;
    for (int d = 0; d < b.depth; d++)
      score += (q[i * s.channels + d] - s.q[head].zero) * (k[j * s.channels + d] - s.k[head].zero);
    float position = s.position[((int64_t)head * n + i) * n + j] * LOG2E;
    exponents[j] = std::fma((float)score, b.score_unit[head], position);
    if (parts[i] != parts[j]) exponents[j] += APART;
    if (exponents[j] > top) top = exponents[j];
  }
  for (int j = 0; j < n; j++) {
    exponents[j] = exp2_of(exponents[j] - top);
    sums[j % 4] += exponents[j];
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  const bk_grid &grid = s.attention[head];
  Places places{1.0f / (sum * grid.step), MAGIC + (float)grid.zero, MAGIC + (float)grid.largest};
  for (int j = 0; j < n; j++) weights[j] = (uint8_t)code_of(exponents[j], places);
}

// From codes of q, k, v to codes (tokens, channels) of the projection's input; weights: (heads, tokens, tokens).
static void attend(const bk_swin_block &b, const Codes &q, const Codes &k, const Codes &v, const int32_t *parts,
                   Codes &weights, Codes &mixed) {
  const bk_swin &s = b.swin;
  int n = b.tokens, c = s.channels;
  for (int head = 0; head < s.heads; head++)
    for (int i = 0; i < n; i++) {
      uint8_t *row = &weights[((int64_t)head * n + i) * n];
      weigh(b, head, &q[head * b.depth], &k[head * b.depth], parts, i, row);
      for (int d = 0; d < b.depth; d++) {
        int32_t sum = 0;
        for (int j = 0; j < n; j++)
          sum += (row[j] - s.attention[head].zero) * (v[j * c + head * b.depth + d] - s.v[head].zero);
        mixed[i * c + head * b.depth + d] = (uint8_t)code_of((float)sum * b.mixed_unit[head], b.mixed);
      }
    }
}

// One window; `trace` as bk_swin_trace says, or null.
static void run_window(const bk_swin_block &b, const bk_swin_call &call, int64_t index, uint8_t *trace) {
  const bk_swin &s = b.swin;
  int n = b.tokens, c = s.channels;
  std::vector<int64_t> pixels(n);
  std::vector<int32_t> parts(n);
  find_tokens(b, call, index, pixels.data(), parts.data());
  std::vector<float> x((size_t)n * c);
  Codes normed1(n * c), q(n * c), k(n * c), v(n * c), weights((size_t)s.heads * n * n), mixed(n * c), normed2(n * c),
      hidden(n * s.hidden);
  for (int t = 0; t < n; t++) std::memcpy(&x[t * c], call.input + pixels[t] * call.input_stride, c * sizeof(float));

  normalize(b, x.data(), s.norm1, b.normed1, normed1.data());
  for (int t = 0; t < n; t++)
    for (int o = 0; o < c; o++) {
      int head = o / b.depth;
      q[t * c + o] = (uint8_t)code_of(linear(s.qkv, &normed1[t * c], c, o), b.q_places[head]);
      k[t * c + o] = (uint8_t)code_of(linear(s.qkv, &normed1[t * c], c, c + o), b.k_places[head]);
      v[t * c + o] = (uint8_t)code_of(linear(s.qkv, &normed1[t * c], c, 2 * c + o), b.v_places[head]);
    }
  attend(b, q, k, v, parts.data(), weights, mixed);
  for (int t = 0; t < n; t++)
    for (int o = 0; o < c; o++) x[t * c + o] += linear(s.proj, &mixed[t * c], c, o);
  normalize(b, x.data(), s.norm2, b.normed2, normed2.data());
  for (int t = 0; t < n; t++)
    for (int o = 0; o < s.hidden; o++)
      hidden[t * s.hidden + o] = (uint8_t)code_of(gelu(linear(s.fc1, &normed2[t * c], c, o)), b.hidden);
  for (int t = 0; t < n; t++)
    for (int o = 0; o < c; o++)
      call.output[pixels[t] * call.output_stride + o] = x[t * c + o] + linear(s.fc2, &hidden[t * s.hidden], s.hidden, o);
  if (!trace) return;
  for (const Codes *codes : {&normed1, &q, &k, &v, &weights, &mixed, &normed2, &hidden}) {
    std::memcpy(trace, codes->data(), codes->size());
    trace += codes->size();
  }
}

int64_t scalar_swin_workspace(const bk_swin_block &) { return 0; }

void scalar_swin(const bk_swin_block &b, const bk_swin_call &call, uint8_t *, int threads) {
  int64_t count = windows_of(b, call).count;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; i++) run_window(b, call, i, call.trace ? call.trace + i * bk_swin_trace(&b) : nullptr);
}
