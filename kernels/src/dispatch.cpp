// Which instruction set this CPU has, and the C interface's way to its kernels.

#include "convolution.hpp"
#include "swin.hpp"

namespace {

int detect() {
#ifdef BK_X86
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return BK_SCALAR;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni");
  if (!wide) return BK_AVX2;
  return __builtin_cpu_supports("avx512vbmi") ? BK_VBMI : BK_VNNI;
#else
  return BK_SCALAR;
#endif
}

const Level &level_of(int level) {
#ifdef BK_X86
  const Level *levels[] = {&scalar_level, &avx2_level, &vnni_level, &vbmi_level};
  return *levels[level];
#else
  (void)level;
  return scalar_level;
#endif
}

}  // namespace

extern "C" int bk_abi(void) { return BK_ABI; }

extern "C" int bk_best_level(void) {
  static const int best = detect();
  return best;
}

extern "C" int64_t bk_workspace(const bk_convolution *c, const bk_input *input, int threads) {
  return level_of(c->level).workspace[c->method](*c, *input, threads);
}

extern "C" void bk_run(const bk_convolution *c, const bk_input *input, const bk_output *output, void *workspace,
                       int threads) {
  level_of(c->level).run[c->method](*c, *input, *output, static_cast<uint8_t *>(workspace), threads);
}

extern "C" void bk_finish(int64_t pixels, int32_t channels, const void *values, int64_t stride, const bk_output *output,
                          int level, int threads) {
  level_of(level).finish(pixels, channels, values, stride, *output, threads);
}

extern "C" void bk_attend(const bk_attention *attention, int level, int threads) {
  level_of(level).attend(*attention, threads);
}

extern "C" int64_t bk_swin_workspace(const bk_swin_block *block, int threads) {
  return threads * level_of(block->level).swin_workspace(*block);
}

extern "C" void bk_swin_run(const bk_swin_block *block, const bk_swin_call *call, void *workspace, int threads) {
  level_of(block->level).swin(*block, *call, static_cast<uint8_t *>(workspace), threads);
}

extern "C" double bk_peak(int level) { return level_of(level).peak(4000000); }
