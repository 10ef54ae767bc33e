#include "dispatch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "sparse_conv.h"

namespace secateurs {
namespace {

bool runs_here(const char* name) {
#if defined(__x86_64__) || defined(__i386__)
  if (!std::strcmp(name, "avx512")) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
  }
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  (void)name;
  return true;
}

Dispatch tables(const Isa* isa) {
  Dispatch d = {};
  d.isa = isa;
  for (int filters = 1; filters <= 64; ++filters) {
    bool has = false;
    for (int i = 0; i < isa->tile_count; ++i) {
      const Tile& t = isa->tiles[i];
      if (t.filters != filters) continue;
      has = true;
      const Mode mode = t.inner == 4 ? kNarrow : t.inner == 32 ? kApart32 : t.inner == 64 ? kApart64 : t.streams ? kStreaming : kCached;
      d.run[d.sizes][mode][t.rows][t.columns] = t.run;
      if (t.columns > d.widest[d.sizes][mode][t.rows]) d.widest[d.sizes][mode][t.rows] = t.columns;
    }
    if (!has) continue;
    // Where a table has no such tiles the streaming ones serve.
    if (!d.widest[d.sizes][kCached][1]) {
      std::memcpy(d.run[d.sizes][kCached], d.run[d.sizes][kStreaming], sizeof d.run[0][0]);
      std::memcpy(d.widest[d.sizes][kCached], d.widest[d.sizes][kStreaming], sizeof d.widest[0][0]);
    }
    d.filters[d.sizes++] = filters;
  }
  return d;
}

struct Made {
  const char* name;
  const Isa* (*make)();
};

struct Choice {
  Dispatch all[4];
  int count = 0;
  std::atomic<const Dispatch*> now{nullptr};

  Choice() {
    // Asked by name first: even the table of an instruction set is filled by its own instructions.
    for (const Made& made : {Made{"avx512", isa_avx512}, {"avx2", isa_avx2}, {"neon", isa_neon}, {"plain", isa_plain}}) {
      const Isa* isa = runs_here(made.name) ? made.make() : nullptr;
      if (isa) all[count++] = tables(isa);
    }
    const char* asked = std::getenv("SECATEURS_ISA");
    if (select(asked)) {
      std::fprintf(stderr, "secateurs: SECATEURS_ISA=%s is not available here, using %s\n", asked, all[0].isa->name);
      select(nullptr);
    }
  }

  int select(const char* name) {
    if (!name || !*name) {
      now = &all[0];
      return 0;
    }
    for (int i = 0; i < count; ++i) {
      if (!std::strcmp(all[i].isa->name, name)) {
        now = &all[i];
        return 0;
      }
    }
    return 1;
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

std::atomic<int> rows_at_most{0}, columns_at_most{0};

}  // namespace

const Dispatch& dispatch() { return *choice().now.load(std::memory_order_acquire); }
void limit_tiles(int rows, int columns) {
  rows_at_most = rows;
  columns_at_most = columns;
}
int row_limit() { return rows_at_most ? rows_at_most.load() : kMaxRows; }
int column_limit() { return columns_at_most ? columns_at_most.load() : kMaxColumns; }

}  // namespace secateurs

extern "C" {

int secateurs_abi_version(void) { return SECATEURS_ABI_VERSION; }
const char* secateurs_isa(void) { return secateurs::dispatch().isa->name; }
int secateurs_set_isa(const char* name) { return secateurs::choice().select(name); }
int secateurs_tile_count(void) { return secateurs::dispatch().isa->tile_count; }

int secateurs_tile(int index, char* name, int name_size, int32_t shape[5]) {
  const secateurs::Isa& isa = *secateurs::dispatch().isa;
  if (index < 0 || index >= isa.tile_count) return 1;
  const secateurs::Tile& t = isa.tiles[index];
  if (name && name_size > 0) {
    std::snprintf(name, static_cast<size_t>(name_size), "f32_spconv_%dx%dx%d_i%d%s__%s", t.rows, t.columns, t.filters, t.inner,
                  t.streams ? "_ahead" : "", isa.name);
  }
  shape[0] = t.filters;
  shape[1] = t.rows;
  shape[2] = t.columns;
  shape[3] = t.inner;
  shape[4] = t.streams;
  return 0;
}

void secateurs_limit_tiles(int rows, int columns) { secateurs::limit_tiles(rows, columns); }

}  // extern "C"
