// Which instruction set this CPU has, and the C interface's way to its kernels.

#include "convolution.hpp"
#include "swin.hpp"

#if defined(BK_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(BK_ARM)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#ifdef BK_X86

static const Level *const LEVELS[BK_LEVELS] = {&scalar_level, &avx2_level, &vnni_level, &vbmi_level};

static int detect() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return BK_SCALAR;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni");
  if (!wide) return BK_AVX2;
  return __builtin_cpu_supports("avx512vbmi") ? BK_VBMI : BK_VNNI;
}

#elif defined(BK_ARM)

static const Level *const LEVELS[BK_LEVELS] = {&scalar_level, nullptr, nullptr, nullptr, &neon_level};

static int detect() {
#ifdef __APPLE__
  int there = 0;
  size_t size = sizeof there;
  return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) && there ? BK_NEON : BK_SCALAR;
#else
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? BK_NEON : BK_SCALAR;
#endif
}

#else

static const Level *const LEVELS[BK_LEVELS] = {&scalar_level};

static int detect() { return BK_SCALAR; }

#endif

const Level &level_of(int level) { return *LEVELS[level]; }

extern "C" int bk_abi(void) { return BK_ABI; }

extern "C" int bk_has(int level) {
  static const int best = detect();
  return level >= 0 && level <= best && LEVELS[level];
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

extern "C" void bk_denoise(const bk_denoising *denoising, int level, int threads) {
  level_of(level).denoise(*denoising, threads);
}

extern "C" int64_t bk_swin_workspace(const bk_swin_block *block, int threads) {
  return threads * level_of(block->level).swin_workspace(*block);
}

extern "C" void bk_swin_run(const bk_swin_block *block, const bk_swin_call *call, void *workspace, int threads) {
  level_of(block->level).swin(*block, *call, static_cast<uint8_t *>(workspace), threads);
}

extern "C" double bk_peak(int level) { return level_of(level).peak(4000000); }
