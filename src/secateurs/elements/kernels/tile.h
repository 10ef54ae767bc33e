// What the driver and the microkernels of every instruction set agree on. Included by all translation units.
#pragma once
#include <cstddef>
#include <cstdint>

namespace secateurs {

// One tile: `rows` x `columns` output pixels of `filters` output channels.
struct TileArguments {
  const char* input;        // scratch address of the tile's first pixel, kernel position 0, channel 0
  const int32_t* offsets;   // [entries] bytes from a pixel to the input value that an entry multiplies
  const int32_t* ahead;     // [entries] bytes to a scratch line that a later entry will read, to be prefetched
  const char* far;          // memory that will be needed in a while, one line per entry up to far_end, or null
  const char* far_end;
  const float* weights;     // [entries, weight_stride]
  ptrdiff_t weight_stride;  // floats
  ptrdiff_t entries;
  ptrdiff_t row_stride;     // bytes in the scratch between output rows
  const float* bias;        // [valid] or null
  const float* residual;    // or null
  ptrdiff_t residual_column, residual_row;  // floats
  float* output;
  ptrdiff_t output_column, output_row;  // floats
  int valid;                            // filters that exist, 1 .. filters
  int silu;
  int bypass;               // narrow input only: write past the caches; the output is 64-byte aligned
  float low, high;  // clamp, infinite where there is none
};

using TileFunction = void (*)(const TileArguments&);

// `streams`: prefetches what it walks; without, for layers whose weights and input lie in the first-level cache anyway.
struct Tile {
  int filters, rows, columns;
  int inner;  // floats between neighbouring pixels
  bool streams;
  TileFunction run;
};

// Copies `pixels` pixels of `channels` (1 .. inner) floats, `source_stride` floats apart, to pixels `inner` floats apart.
using PackFunction = void (*)(float* target, const float* source, ptrdiff_t source_stride, int pixels, int channels);

// The same for planar memory: channels lie `channel_stride` floats apart, pixels go to four floats each (channels 1 .. 4).
using PlanarFunction = void (*)(float* target, const float* source, ptrdiff_t source_stride, ptrdiff_t channel_stride, int pixels,
                                int channels);

// Turns a block's masks into the byte offsets that its tiles walk.
struct LocateArguments {
  const uint16_t* masks;          // [planes, positions], bit k: channel 16 * plane + k stays at that position
  int planes, positions;
  uint16_t last_mask;             // the channels that exist in the last plane
  const int32_t* position_bytes;  // [positions]
  int32_t plane_bytes;
  const int32_t* line_bytes;      // [16 * positions + 16] what to prefetch while a plane is walked, within the next plane
  int32_t wrap_bytes;             // added to line_bytes in the last plane: the next tile's first plane
  ptrdiff_t capacity;             // entries that fit, sixteen to spare
  int32_t* offsets;
  int32_t* ahead;
};

// Returns the number of entries, or -1 where there are more than fit or a channel does not exist.
using LocateFunction = ptrdiff_t (*)(const LocateArguments&);

struct Isa {
  const char* name;
  const Tile* tiles;
  int tile_count;
  double filters_per_cycle;  // multiply-adds per cycle: weighs tiles against each other
  PackFunction pack16, pack4;
  PlanarFunction planar4;
  LocateFunction locate;
  double (*fma_round)(int rounds);  // floating point operations done, for the peak measurement
};

const Isa* isa_plain();
const Isa* isa_avx2();
const Isa* isa_avx512();
const Isa* isa_neon();

}  // namespace secateurs
