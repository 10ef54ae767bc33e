// AVX2 with FMA: two vectors of eight filters by six pixels fill 15 of the 16 registers.
#include "microkernel.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace secateurs {
namespace {

alignas(64) const int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct V8 {
  using Reg = __m256;
  static constexpr int lanes = 8;
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load_partial(const float* p, int n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void stream(float* p, Reg v) { _mm256_stream_ps(p, v); }
  static void store_partial(float* p, Reg v, int n) { _mm256_maskstore_ps(p, mask(n), v); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set(float x) { return _mm256_set1_ps(x); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static void pin(const char*&) {}
  static __m256i mask(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - n)); }
  static Reg exp(Reg x) {
    x = _mm256_min_ps(set(88.0f), _mm256_max_ps(set(-87.0f), x));
    const Reg n = _mm256_round_ps(_mm256_mul_ps(x, set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Reg r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    Reg y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, _mm256_mul_ps(r, r), add(r, set(1.0f)));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
  }
  static Reg silu(Reg x) {
    x = max(set(-88.0f), x);  // below, the result is nearer to 0 than a float can tell
    return _mm256_div_ps(x, add(set(1.0f), exp(_mm256_sub_ps(zero(), x))));
  }
};

Tile table[64];

int fill_table() {
  Tile* t = table;
  t += Widths<V8, 2, 1, 16, 6>::fill(t);
  t += Widths<V8, 2, 2, 16, 3>::fill(t);
  t += Widths<V8, 2, 3, 16, 2>::fill(t);
  t += Widths<V8, 2, 1, 4, 6, false>::fill(t);
  t += Widths<V8, 1, 1, 16, 12>::fill(t);
  t += Widths<V8, 1, 2, 16, 6>::fill(t);
  t += Widths<V8, 1, 1, 4, 12, false>::fill(t);
  return static_cast<int>(t - table);
}

}  // namespace

const Isa* isa_avx2() {
  static const Isa isa = {"avx2",      table,        fill_table(),  16.0,           &pack<V8, 16>,
                          &pack<V8, 4>, &planar4, &locate, &fma_rounds<V8>};
  return &isa;
}

}  // namespace secateurs
#else
namespace secateurs {
const Isa* isa_avx2() { return nullptr; }
}  // namespace secateurs
#endif
