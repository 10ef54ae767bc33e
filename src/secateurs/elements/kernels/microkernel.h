// The one microkernel, written over a vector policy V; each instruction set's file instantiates it.
//
// V: Reg, lanes, load, load_partial, store, store_partial, stream (a store past the caches), broadcast(const float*), zero,
//    set, fma(a, b, c) = a*b+c, add, max, min (both return the second operand where it is NaN), silu, pin (keeps an
//    address in a register of its own).
//
// Registers hold rows*columns pixels x Z vectors of filters. Per entry: Z weight vectors, and one broadcast input value per
// pixel. Pixels lie `Inner` floats apart in the scratch, a constant, so that all of them share one address register.
#pragma once
#include "tile.h"

#if defined(__clang__)
#define SECATEURS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SECATEURS_UNROLL _Pragma("GCC unroll 32")
#endif

namespace secateurs {
namespace {

constexpr int kPrefetchEntries = 8;

template <class V>
inline typename V::Reg load_filters(const float* source, int z, int valid) {
  const int left = valid - z * V::lanes;
  if (left >= V::lanes) return V::load(source + z * V::lanes);
  return left > 0 ? V::load_partial(source + z * V::lanes, left) : V::zero();
}

template <class V>
inline void store_filters(float* target, int z, int valid, typename V::Reg value) {
  const int left = valid - z * V::lanes;
  if (left >= V::lanes) {
    V::store(target + z * V::lanes, value);
  } else if (left > 0) {
    V::store_partial(target + z * V::lanes, value, left);
  }
}

// A second look at the tile that was just stored: unrolled into every tile the exponential would multiply the code.
template <class V>
__attribute__((noinline)) void silu_tile(const TileArguments& t, int vectors, int rows, int columns) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      float* output = t.output + r * t.output_row + c * t.output_column;
      for (int z = 0; z < vectors; ++z) store_filters<V>(output, z, t.valid, V::silu(load_filters<V>(output, z, t.valid)));
    }
  }
}

template <class V, int Z, int Rows, int Columns, int Inner, bool Streams>
void tile(const TileArguments& t) {
  typename V::Reg sum[Rows][Columns][Z];
  SECATEURS_UNROLL for (int z = 0; z < Z; ++z) {
    const typename V::Reg start = t.bias ? load_filters<V>(t.bias, z, t.valid) : V::zero();
    SECATEURS_UNROLL for (int r = 0; r < Rows; ++r)
      SECATEURS_UNROLL for (int c = 0; c < Columns; ++c) sum[r][c][z] = start;
  }
  if (t.residual) {
    SECATEURS_UNROLL for (int r = 0; r < Rows; ++r) {
      SECATEURS_UNROLL for (int c = 0; c < Columns; ++c) {
        const float* residual = t.residual + r * t.residual_row + c * t.residual_column;
        SECATEURS_UNROLL for (int z = 0; z < Z; ++z)
          sum[r][c][z] = V::add(sum[r][c][z], load_filters<V>(residual, z, t.valid));
      }
    }
  }
  const float* weights = t.weights;
  const ptrdiff_t weight_stride = t.weight_stride, row_stride = t.row_stride;
  const char* const input = t.input;
  const int32_t *const offsets = t.offsets, *const ahead = t.ahead;
  const char* far = t.far;
  const char* const far_end = t.far_end;
  const ptrdiff_t entries = t.entries;
  for (ptrdiff_t i = 0; i < entries; ++i) {
    const char* pixel = input + offsets[i];
    if (Streams) {
      const char* const line = input + ahead[i];
      __builtin_prefetch(line);
      __builtin_prefetch(line + 64);
      if (far < far_end) {
        __builtin_prefetch(far, 0, 2);
        far += 64;
      }
    }
    // With one vector per pixel the multiply takes the input value from memory itself; an indexed address would split it.
    if (Z == 1) V::pin(pixel);
    typename V::Reg weight[Z];
    SECATEURS_UNROLL for (int z = 0; z < Z; ++z) weight[z] = V::load(weights + z * V::lanes);
    if (Streams) {
      SECATEURS_UNROLL for (int b = 0; b < Z * V::lanes * 4; b += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(weights + kPrefetchEntries * weight_stride) + b);
    }
    weights += weight_stride;
    SECATEURS_UNROLL for (int r = 0; r < Rows; ++r) {
      SECATEURS_UNROLL for (int c = 0; c < Columns; ++c) {
        const typename V::Reg value =
            V::broadcast(reinterpret_cast<const float*>(pixel + c * Inner * static_cast<int>(sizeof(float))));
        SECATEURS_UNROLL for (int z = 0; z < Z; ++z) sum[r][c][z] = V::fma(value, weight[z], sum[r][c][z]);
      }
      pixel += row_stride;
    }
  }
  const typename V::Reg low = V::set(t.low), high = V::set(t.high);
  SECATEURS_UNROLL for (int r = 0; r < Rows; ++r) {
    SECATEURS_UNROLL for (int c = 0; c < Columns; ++c) {
      float* output = t.output + r * t.output_row + c * t.output_column;
      SECATEURS_UNROLL for (int z = 0; z < Z; ++z) {
        const typename V::Reg value = V::min(high, V::max(low, sum[r][c][z]));
        if (Inner == 4 && t.bypass) {
          V::stream(output + z * V::lanes, value);
        } else {
          store_filters<V>(output, z, t.valid, value);
        }
      }
    }
  }
  if (t.silu) silu_tile<V>(t, Z, Rows, Columns);
}

// Rows of the table: every width up to the given one.
template <class V, int Z, int Rows, int Inner, int Columns, bool Streams = true>
struct Widths {
  static int fill(Tile* out) {
    const int n = Widths<V, Z, Rows, Inner, Columns - 1, Streams>::fill(out);
    out[n] = Tile{Z * V::lanes, Rows, Columns, Inner, Streams, &tile<V, Z, Rows, Columns, Inner, Streams>};
    return n + 1;
  }
};
template <class V, int Z, int Rows, int Inner, bool Streams>
struct Widths<V, Z, Rows, Inner, 0, Streams> {
  static int fill(Tile*) { return 0; }
};

template <class V, int Inner>
void pack(float* target, const float* source, ptrdiff_t source_stride, int pixels, int channels) {
  if (Inner % V::lanes == 0 && channels == Inner) {
    for (int p = 0; p < pixels; ++p, target += Inner, source += source_stride) {
      SECATEURS_UNROLL for (int c = 0; c < Inner; c += V::lanes) V::store(target + c, V::load(source + c));
    }
    return;
  }
  for (int p = 0; p < pixels; ++p, target += Inner, source += source_stride) {
    for (int c = 0; c < channels; ++c) target[c] = source[c];
  }
}

inline void planar4(float* target, const float* source, ptrdiff_t source_stride, ptrdiff_t channel_stride, int pixels, int channels) {
  for (int p = 0; p < pixels; ++p, target += 4, source += source_stride) {
    for (int c = 0; c < channels; ++c) target[c] = source[c * channel_stride];
  }
}

inline ptrdiff_t locate(const LocateArguments& a) {
  ptrdiff_t count = 0;
  const uint16_t* mask = a.masks;
  for (int plane = 0; plane < a.planes; ++plane) {
    const bool last = plane + 1 == a.planes;
    const int32_t base = plane * a.plane_bytes, next = last ? a.wrap_bytes : base + a.plane_bytes;
    const int32_t* line = a.line_bytes;
    for (int p = 0; p < a.positions; ++p) {
      uint32_t bits = *mask++;
      if (last && (bits & ~static_cast<uint32_t>(a.last_mask))) return -1;
      if (count + __builtin_popcount(bits) > a.capacity) return -1;
      for (; bits; bits &= bits - 1) {
        a.offsets[count] = base + a.position_bytes[p] + 4 * __builtin_ctz(bits);
        a.ahead[count++] = next + *line++;
      }
    }
  }
  return count;
}

// Twelve independent chains of FMAs in registers.
template <class V>
double fma_rounds(int rounds) {
  typename V::Reg sum[12];
  SECATEURS_UNROLL for (int i = 0; i < 12; ++i) sum[i] = V::set(1.0f + static_cast<float>(i));
  const typename V::Reg scale = V::set(0.999f), shift = V::set(0.001f);
  for (int n = 0; n < rounds; ++n) {
    SECATEURS_UNROLL for (int i = 0; i < 12; ++i) sum[i] = V::fma(sum[i], scale, shift);
  }
  SECATEURS_UNROLL for (int i = 1; i < 12; ++i) sum[0] = V::add(sum[0], sum[i]);
  float kept[V::lanes];
  V::store(kept, sum[0]);
  volatile float sink = kept[0];
  (void)sink;
  return 12.0 * 2.0 * V::lanes * rounds;
}

}  // namespace
}  // namespace secateurs
