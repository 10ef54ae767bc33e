// NEON (64-bit ARM): four vectors of four filters by five pixels; six would fit, but compilers then spill.
#include "microkernel.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace secateurs {
namespace {

struct V4 {
  using Reg = float32x4_t;
  static constexpr int lanes = 4;
  static Reg load(const float* p) { return vld1q_f32(p); }
  static Reg load_partial(const float* p, int n) {
    float kept[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; ++i) kept[i] = p[i];
    return vld1q_f32(kept);
  }
  static void store(float* p, Reg v) { vst1q_f32(p, v); }
  static void stream(float* p, Reg v) { store(p, v); }
  static void store_partial(float* p, Reg v, int n) {
    float kept[4];
    vst1q_f32(kept, v);
    for (int i = 0; i < n; ++i) p[i] = kept[i];
  }
  static Reg broadcast(const float* p) { return vld1q_dup_f32(p); }
  static Reg zero() { return vdupq_n_f32(0.0f); }
  static Reg set(float x) { return vdupq_n_f32(x); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg max(Reg a, Reg b) { return vmaxq_f32(a, b); }  // NaN wins on either side here
  static Reg min(Reg a, Reg b) { return vminq_f32(a, b); }
  static void pin(const char*&) {}
  static Reg exp(Reg x) {
    x = min(set(88.0f), max(set(-87.0f), x));
    const Reg n = vrndnq_f32(vmulq_f32(x, set(1.44269504f)));
    Reg r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    Reg y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, vmulq_f32(r, r), add(r, set(1.0f)));
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(y, vreinterpretq_f32_s32(power));
  }
  static Reg silu(Reg x) {
    x = max(set(-88.0f), x);  // below, the result is nearer to 0 than a float can tell
    return vdivq_f32(x, add(set(1.0f), exp(vnegq_f32(x))));
  }
};

Tile table[64];

int fill_table() {
  Tile* t = table;
  t += Widths<V4, 4, 1, 16, 5>::fill(t);
  t += Widths<V4, 4, 2, 16, 2>::fill(t);
  t += Widths<V4, 4, 1, 4, 5, false>::fill(t);
  t += Widths<V4, 2, 1, 16, 12>::fill(t);
  t += Widths<V4, 2, 2, 16, 6>::fill(t);
  t += Widths<V4, 2, 1, 4, 12, false>::fill(t);
  return static_cast<int>(t - table);
}

}  // namespace

const Isa* isa_neon() {
  static const Isa isa = {"neon",      table,        fill_table(),  8.0,           &pack<V4, 16>,
                          &pack<V4, 4>, &planar4, &locate, &fma_rounds<V4>};
  return &isa;
}

}  // namespace secateurs
#else
namespace secateurs {
const Isa* isa_neon() { return nullptr; }
}  // namespace secateurs
#endif
