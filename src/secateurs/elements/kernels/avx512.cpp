// AVX-512: two vectors of sixteen filters by fourteen pixels fill 31 of the 32 registers.
#include "microkernel.h"

#if defined(__AVX512F__) && defined(__AVX512VL__)
#include <immintrin.h>

#include <algorithm>

namespace secateurs {
namespace {

struct V16 {
  using Reg = __m512;
  static constexpr int lanes = 16;
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load_partial(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void stream(float* p, Reg v) { _mm512_stream_ps(p, v); }
  static void store_partial(float* p, Reg v, int n) { _mm512_mask_storeu_ps(p, mask(n), v); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set(float x) { return _mm512_set1_ps(x); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static void pin(const char*& p) { asm("" : "+r"(p)); }
  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Reg exp(Reg x) {
    x = _mm512_min_ps(set(88.0f), _mm512_max_ps(set(-87.0f), x));
    const Reg n = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Reg r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    Reg y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, _mm512_mul_ps(r, r), add(r, set(1.0f)));
    return _mm512_scalef_ps(y, n);
  }
  static Reg silu(Reg x) {
    x = max(set(-88.0f), x);  // below, the result is nearer to 0 than a float can tell
    return _mm512_div_ps(x, add(set(1.0f), exp(_mm512_sub_ps(zero(), x))));
  }
};

// Blocks of eight filters: half a vector, but all 32 registers.
struct V8 {
  using Reg = __m256;
  static constexpr int lanes = 8;
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load_partial(const float* p, int n) { return _mm256_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void stream(float* p, Reg v) { _mm256_stream_ps(p, v); }
  static void store_partial(float* p, Reg v, int n) { _mm256_mask_storeu_ps(p, mask(n), v); }
  static Reg broadcast(const float* p) { return _mm256_set1_ps(*p); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set(float x) { return _mm256_set1_ps(x); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static void pin(const char*& p) { asm("" : "+r"(p)); }
  static __mmask8 mask(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static Reg silu(Reg x) { return _mm512_castps512_ps256(V16::silu(_mm512_castps256_ps512(x))); }
};

// Sixteen channels of a position at a time: the offsets of those that stay are compressed together.
ptrdiff_t locate_compressed(const LocateArguments& a) {
  const __m512i channel_bytes = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
  ptrdiff_t count = 0;
  const uint16_t* mask = a.masks;
  for (int plane = 0; plane < a.planes; ++plane) {
    const bool last = plane + 1 == a.planes;
    const uint32_t missing = last ? ~static_cast<uint32_t>(a.last_mask) : 0u;
    const int32_t base = plane * a.plane_bytes;
    const __m512i next = _mm512_set1_epi32(last ? a.wrap_bytes : base + a.plane_bytes);
    const int32_t* line = a.line_bytes;
    for (int p = 0; p < a.positions; ++p) {
      const uint32_t bits = *mask++;
      const int kept = __builtin_popcount(bits);
      if (bits & missing || count + kept > a.capacity) return -1;
      const __m512i here = _mm512_add_epi32(_mm512_set1_epi32(base + a.position_bytes[p]), channel_bytes);
      _mm512_storeu_si512(a.offsets + count, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), here));
      _mm512_storeu_si512(a.ahead + count, _mm512_add_epi32(next, _mm512_loadu_si512(line)));
      count += kept;
      line += kept;
    }
  }
  return count;
}

// Sixteen pixels of up to four planes at a time: transposed within quarters of the registers, then the quarters.
void planar4_transposed(float* target, const float* source, ptrdiff_t source_stride, ptrdiff_t channel_stride, int pixels, int channels) {
  int done = 0;
  if (source_stride <= 2) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (; done + 16 <= pixels; done += 16, target += 64, source += 16 * source_stride) {
      __m512 plane[4];
      for (int c = 0; c < 4; ++c) {
        const float* from = source + std::min(c, channels - 1) * channel_stride;
        plane[c] = _mm512_loadu_ps(from);
        // The last value is not needed, and may lie past the end of the memory.
        if (source_stride == 2) plane[c] = _mm512_permutex2var_ps(plane[c], evens, _mm512_maskz_loadu_ps(0x7fff, from + 16));
      }
      const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(plane[0], plane[1])), low23 = _mm512_castps_pd(_mm512_unpacklo_ps(plane[2], plane[3]));
      const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(plane[0], plane[1])), high23 = _mm512_castps_pd(_mm512_unpackhi_ps(plane[2], plane[3]));
      // Pixel n + 4q in quarter q of pixel[n].
      const __m512 pixel[4] = {_mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)), _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)),
                               _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)), _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23))};
      const __m512 even01 = _mm512_shuffle_f32x4(pixel[0], pixel[1], 0x88), odd01 = _mm512_shuffle_f32x4(pixel[0], pixel[1], 0xdd);
      const __m512 even23 = _mm512_shuffle_f32x4(pixel[2], pixel[3], 0x88), odd23 = _mm512_shuffle_f32x4(pixel[2], pixel[3], 0xdd);
      // even01: pixels 0, 8, 1, 9 by quarters; the rest alike.
      _mm512_storeu_ps(target, _mm512_shuffle_f32x4(even01, even23, 0x88));
      _mm512_storeu_ps(target + 16, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
      _mm512_storeu_ps(target + 32, _mm512_shuffle_f32x4(even01, even23, 0xdd));
      _mm512_storeu_ps(target + 48, _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
    }
  }
  planar4(target, source, source_stride, channel_stride, pixels - done, channels);
}

Tile table[400];

int fill_table() {
  Tile* t = table;
  t += Widths<V16, 2, 1, 16, 14>::fill(t);
  t += Widths<V16, 2, 2, 16, 7>::fill(t);
  t += Widths<V16, 2, 3, 16, 4>::fill(t);
  t += Widths<V16, 2, 4, 16, 3>::fill(t);
  t += Widths<V16, 2, 1, 16, 14, false>::fill(t);
  t += Widths<V16, 2, 2, 16, 7, false>::fill(t);
  t += Widths<V16, 2, 3, 16, 4, false>::fill(t);
  t += Widths<V16, 2, 4, 16, 3, false>::fill(t);
  t += Widths<V16, 2, 1, 4, 14, false>::fill(t);
  t += Widths<V16, 2, 1, 32, 14, false>::fill(t);
  t += Widths<V16, 2, 2, 32, 7, false>::fill(t);
  t += Widths<V16, 2, 3, 32, 4, false>::fill(t);
  t += Widths<V16, 2, 1, 64, 14, false>::fill(t);
  t += Widths<V16, 2, 2, 64, 7, false>::fill(t);
  t += Widths<V16, 2, 3, 64, 4, false>::fill(t);
  t += Widths<V16, 1, 1, 16, 28>::fill(t);
  t += Widths<V16, 1, 2, 16, 14>::fill(t);
  t += Widths<V16, 1, 3, 16, 9>::fill(t);
  t += Widths<V16, 1, 4, 16, 7>::fill(t);
  t += Widths<V16, 1, 1, 16, 28, false>::fill(t);
  t += Widths<V16, 1, 2, 16, 14, false>::fill(t);
  t += Widths<V16, 1, 3, 16, 9, false>::fill(t);
  t += Widths<V16, 1, 4, 16, 7, false>::fill(t);
  t += Widths<V16, 1, 1, 4, 28, false>::fill(t);
  t += Widths<V8, 1, 1, 16, 28>::fill(t);
  t += Widths<V8, 1, 2, 16, 14>::fill(t);
  t += Widths<V8, 1, 1, 4, 28, false>::fill(t);
  return static_cast<int>(t - table);
}

}  // namespace

const Isa* isa_avx512() {
  static const Isa isa = {"avx512",      table,        fill_table(),  32.0,           &pack<V16, 16>,
                          &pack<V16, 4>, &planar4_transposed, &locate_compressed, &fma_rounds<V16>};
  return &isa;
}

}  // namespace secateurs
#else
namespace secateurs {
const Isa* isa_avx512() { return nullptr; }
}  // namespace secateurs
#endif
