// Which instruction set runs, and its tiles by shape.
#pragma once
#include "tile.h"

namespace secateurs {

constexpr int kMaxRows = 4, kMaxColumns = 28;

// How input lies and is fetched: sixteen channels to a pixel, the same without prefetching, four channels to a pixel; and
// pixels 32 or 64 floats apart, for input that is read where it lies.
enum Mode { kStreaming, kCached, kNarrow, kApart32, kApart64, kModes };

struct Dispatch {
  const Isa* isa;
  int sizes;            // how many different filter counts
  int filters[4];       // ascending
  TileFunction run[4][kModes][kMaxRows + 1][kMaxColumns + 1];  // [filters][mode][rows][columns]
  int widest[4][kModes][kMaxRows + 1];                         // 0 where no tile has so many rows
};

// The tables of the instruction set in use.
const Dispatch& dispatch();

// 0 = no limit.
void limit_tiles(int rows, int columns);
int row_limit();
int column_limit();

}  // namespace secateurs
