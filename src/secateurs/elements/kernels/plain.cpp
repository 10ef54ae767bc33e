// Plain C++: the same walk with scalar arithmetic, for every other machine and as the judge of the vector files.
#include "microkernel.h"

#include <cmath>

namespace secateurs {
namespace {

struct V8 {
  struct Reg {
    float lane[8];
  };
  static constexpr int lanes = 8;
  static Reg load(const float* p) { return load_partial(p, 8); }
  static Reg load_partial(const float* p, int n) {
    Reg v = zero();
    for (int i = 0; i < n; ++i) v.lane[i] = p[i];
    return v;
  }
  static void store(float* p, const Reg& v) { store_partial(p, v, 8); }
  static void stream(float* p, const Reg& v) { store(p, v); }
  static void store_partial(float* p, const Reg& v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v.lane[i];
  }
  static Reg broadcast(const float* p) { return set(*p); }
  static Reg zero() { return set(0.0f); }
  static Reg set(float x) {
    Reg v;
    for (float& lane : v.lane) lane = x;
    return v;
  }
  static Reg fma(const Reg& a, const Reg& b, Reg c) {
    for (int i = 0; i < 8; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  static Reg add(Reg a, const Reg& b) {
    for (int i = 0; i < 8; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static Reg max(const Reg& a, Reg b) {
    for (int i = 0; i < 8; ++i) b.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return b;
  }
  static Reg min(const Reg& a, Reg b) {
    for (int i = 0; i < 8; ++i) b.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return b;
  }
  static void pin(const char*&) {}
  static Reg silu(Reg x) {
    for (float& lane : x.lane) lane = lane / (1.0f + std::exp(-lane));
    return x;
  }
};

Tile table[16];

int fill_table() {
  Tile* t = table;
  t += Widths<V8, 1, 1, 16, 4>::fill(t);
  t += Widths<V8, 1, 2, 16, 2>::fill(t);
  t += Widths<V8, 1, 1, 4, 4, false>::fill(t);
  return static_cast<int>(t - table);
}

}  // namespace

const Isa* isa_plain() {
  static const Isa isa = {"plain",      table,        fill_table(),  2.0,           &pack<V8, 16>,
                          &pack<V8, 4>, &planar4, &locate, &fma_rounds<V8>};
  return &isa;
}

}  // namespace secateurs
