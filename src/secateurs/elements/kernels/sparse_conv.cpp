// The driver: cuts the output into bands, copies each band's input once into padded scratch, and walks the entries of
// every block of filters over the band's tiles.
#include "sparse_conv.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <memory>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "dispatch.h"
#include "pool.h"

namespace secateurs {
namespace {

// What a tile costs besides its FMAs, in cycles per entry: loop, weights from the second-level cache, latency.
constexpr double kTileOverhead = 0.6;
constexpr int kItemsPerThread = 3;
constexpr double kSmallWork = 2e5;  // vectors of 32 multiply-adds; below, a second band per thread costs more than waiting
constexpr size_t kAlign = 64;
constexpr ptrdiff_t kFirstLevel = 48 * 1024;  // weights and one tile's input that need no prefetching

std::atomic<bool> poison{false};

ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

ptrdiff_t second_level_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes >= 128 * 1024) return bytes;
#endif
  return 512 * 1024;
}

// Time that this thread has really run, where the system tells it.
double thread_seconds() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec now;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0) return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Memory that one thread reuses from call to call.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  char* get(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      bytes = (bytes + kAlign - 1) / kAlign * kAlign;
      memory_ = static_cast<char*>(std::malloc(bytes + kAlign));
      if (!memory_) return nullptr;
      size_ = bytes;
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<char*>((address + kAlign - 1) / kAlign * kAlign);
  }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// A rectangle of the output. Its input lies in scratch as [plane of `inner` channels][row][phase][column][inner]:
// columns that are `stride` apart in the image are neighbours, so that a tile's pixels are always `inner` floats apart.
struct Band {
  int y0, y1, x0, x1;
  int rows, columns;          // of the input, padding included
  int phase_columns;
  int32_t pixel_bytes, row_bytes, plane_bytes;
};

struct Item {
  int image, group, band, block;
};

struct Job {
  const secateurs_conv* conv;
  const float* input;
  const float* weights;
  const uint16_t* masks;
  const int32_t* starts;
  const float* bias;
  const float* residual;
  float* output;

  const Dispatch* dispatch;
  int height, width, out_height, out_width;  // after flattening of 1x1 convolutions
  int group_inputs, group_outputs, blocks_per_group, inner;
  int planes, mask_planes;  // of `inner` and of 16 channels
  ptrdiff_t max_entries;
  double work;  // vectors of 32 multiply-adds
  size_t scratch_bytes;
  float low, high;
  Mode mode;
  bool direct;  // tiles read the input where it lies, nothing is copied
  bool prefetch_weights;
  bool bypass;
  bool prefetch_output;
  std::vector<Band> bands;
  Shares* shares;
  std::atomic<int> status{SECATEURS_OK};

  Item item(int index) const {
    const int block = index % blocks_per_group, rest = index / blocks_per_group;
    const int band = rest % static_cast<int>(bands.size()), outer = rest / static_cast<int>(bands.size());
    return {outer / conv->groups, outer % conv->groups, band, block};
  }
  int items() const { return conv->batch * conv->groups * static_cast<int>(bands.size()) * blocks_per_group; }
};

int64_t band_bytes(const Job& job, int rows, int columns) {
  const secateurs_conv& c = *job.conv;
  const int64_t in_rows = static_cast<int64_t>(rows - 1) * c.stride_height + (c.kernel_height - 1) * int64_t{c.dilation_height} + 1;
  const int64_t in_columns = static_cast<int64_t>(columns - 1) * c.stride_width + (c.kernel_width - 1) * int64_t{c.dilation_width} + 1;
  return job.planes * (in_rows * ceil_div(in_columns, c.stride_width) * c.stride_width * job.inner * 4 + 64);
}

Band make_band(const Job& job, int y0, int y1, int x0, int x1) {
  const secateurs_conv& c = *job.conv;
  Band b = {y0, y1, x0, x1, 0, 0, 0, 0, 0, 0};
  if (job.direct) {
    b.pixel_bytes = static_cast<int32_t>(c.in_stride_column * c.stride_width * 4);
    b.row_bytes = static_cast<int32_t>(c.in_stride_row * 4);
    b.plane_bytes = 64;
    return b;
  }
  b.rows = (y1 - y0 - 1) * c.stride_height + (c.kernel_height - 1) * c.dilation_height + 1;
  b.columns = (x1 - x0 - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width + 1;
  b.phase_columns = static_cast<int>(ceil_div(b.columns, c.stride_width));
  b.pixel_bytes = job.inner * 4;
  b.row_bytes = c.stride_width * b.phase_columns * b.pixel_bytes;
  // The extra line keeps planes from meeting in the same cache sets.
  b.plane_bytes = b.rows * b.row_bytes + 64;
  return b;
}

// Bands as high as the second-level cache allows beside a block's weights, and enough of them for the threads.
void cut_bands(Job& job) {
  const secateurs_conv& c = *job.conv;
  const int64_t budget = second_level_cache_bytes() * 3 / 10;
  int columns = job.out_width, rows = job.out_height;
  while (!job.direct && columns > 64 && band_bytes(job, 1, columns) > budget) columns = static_cast<int>(ceil_div(columns, 2));
  columns = static_cast<int>(ceil_div(job.out_width, ceil_div(job.out_width, columns)));
  while (!job.direct && rows > 1 && band_bytes(job, rows, columns) > budget) rows = std::max(1, std::min(rows - 1, rows * 7 / 8));
  const int others = c.batch * c.groups * job.blocks_per_group * static_cast<int>(ceil_div(job.out_width, columns));
  if (c.threads > 1) {
    const int wanted = static_cast<int>(ceil_div((job.work < kSmallWork ? 1 : kItemsPerThread) * c.threads, others));
    rows = std::max(1, std::min(rows, job.out_height / wanted));
  }
  rows = static_cast<int>(ceil_div(job.out_height, ceil_div(job.out_height, rows)));
  for (int y = 0; y < job.out_height; y += rows) {
    for (int x = 0; x < job.out_width; x += columns) {
      job.bands.push_back(make_band(job, y, std::min(y + rows, job.out_height), x, std::min(x + columns, job.out_width)));
    }
  }
}

// Whether kernel taps at multiples of `dilation` under this stride ever touch scratch row `row`.
bool row_used(const Band& b, const secateurs_conv& c, int row) {
  if (c.stride_height == 1 && c.dilation_height == 1) return true;
  for (int i = 0; i < c.kernel_height; ++i) {
    const int at = row - i * c.dilation_height;
    if (at >= 0 && at % c.stride_height == 0 && at / c.stride_height < b.y1 - b.y0) return true;
  }
  return false;
}

bool phase_used(const secateurs_conv& c, int phase) {
  for (int j = 0; j < c.kernel_width; ++j) {
    if (j * c.dilation_width % c.stride_width == phase) return true;
  }
  return false;
}

void pack_row(const Job& job, const Band& b, const float* row, char* target, int phase) {
  const secateurs_conv& c = *job.conv;
  const int first = b.x0 * c.stride_width - c.pad_left + phase;  // input column of scratch column 0
  const int left = first >= 0 ? 0 : std::min<int>(b.phase_columns, static_cast<int>(ceil_div(-first, c.stride_width)));
  const int end = first >= job.width ? 0 : static_cast<int>(ceil_div(job.width - first, c.stride_width));
  const int right = std::max(left, std::min(b.phase_columns, end));
  const PackFunction pack = job.inner == 16 ? job.dispatch->isa->pack16 : job.dispatch->isa->pack4;
  const ptrdiff_t step = c.in_stride_column * c.stride_width;
  for (int plane = 0; plane < job.planes; ++plane, target += b.plane_bytes) {
    float* out = reinterpret_cast<float*>(target);
    const int channels = std::min(job.inner, job.group_inputs - plane * job.inner);
    // Mostly a pixel or none: too little for a call.
    for (int i = 0; i < left * job.inner; ++i) out[i] = 0.0f;
    for (int i = right * job.inner; i < b.phase_columns * job.inner; ++i) out[i] = 0.0f;
    if (right == left) continue;
    const float* from = row + (first + static_cast<ptrdiff_t>(left) * c.stride_width) * c.in_stride_column +
                        static_cast<ptrdiff_t>(plane) * job.inner * c.in_stride_channel;
    float* to = out + left * job.inner;
    if (c.in_stride_channel == 1) {
      pack(to, from, step, right - left, channels);
      continue;
    }
    if (job.inner == 4) {
      job.dispatch->isa->planar4(to, from, step, c.in_stride_channel, right - left, channels);
      continue;
    }
    for (int k = 0; k < channels; ++k) {
      for (int p = 0; p < right - left; ++p) to[p * job.inner + k] = from[p * step + k * c.in_stride_channel];
    }
  }
}

void pack_band(const Job& job, const Band& b, int image, int group, char* scratch) {
  const secateurs_conv& c = *job.conv;
  if (poison) std::fill_n(reinterpret_cast<float*>(scratch), job.scratch_bytes / 4, std::numeric_limits<float>::quiet_NaN());
  const float* input = job.input + image * c.in_stride_batch + static_cast<ptrdiff_t>(group) * job.group_inputs * c.in_stride_channel;
  for (int r = 0; r < b.rows; ++r) {
    if (!row_used(b, c, r)) continue;
    const int y = b.y0 * c.stride_height - c.pad_top + r;
    for (int phase = 0; phase < c.stride_width; ++phase) {
      if (!phase_used(c, phase)) continue;
      char* target = scratch + r * b.row_bytes + static_cast<ptrdiff_t>(phase) * b.phase_columns * b.pixel_bytes;
      if (y >= 0 && y < job.height) {
        pack_row(job, b, input + y * c.in_stride_row, target, phase);
      } else {
        for (int plane = 0; plane < job.planes; ++plane) {
          std::memset(target + static_cast<ptrdiff_t>(plane) * b.plane_bytes, 0, static_cast<size_t>(b.phase_columns) * b.pixel_bytes);
        }
      }
    }
  }
}

// How a band is covered: `rows` at a time (fewer in the last round), each round in `pieces[rows]` tiles of equal width.
struct Cover {
  int rows;
  int pieces[kMaxRows + 1];
};

Cover cover(const Job& job, int size, int height, int width) {
  const Dispatch& d = *job.dispatch;
  const double per_pixel = d.filters[size] / std::min<double>(d.isa->filters_per_cycle, d.filters[size] * 2.0);
  Cover best = {1, {0, 0, 0, 0, 0}};
  double costs[kMaxRows + 1] = {0}, best_cost = std::numeric_limits<double>::infinity();
  for (int rows = 1; rows <= std::min(kMaxRows, row_limit()); ++rows) {
    const int widest = std::min(d.widest[size][job.mode][rows], column_limit());
    if (!widest) break;
    best.pieces[rows] = static_cast<int>(ceil_div(width, widest));
    costs[rows] = rows * width * per_pixel + best.pieces[rows] * kTileOverhead;
    const double total = height / rows * costs[rows] + costs[height % rows];
    if (height >= rows && total < best_cost) {
      best_cost = total;
      best.rows = rows;
    }
  }
  return best;
}

// The smallest tile that holds `filters`, else the largest; never wider than the `columns` that a row of weights has left.
int size_for(const Dispatch& d, int filters, int columns) {
  int size = 0;
  while (size + 1 < d.sizes && d.filters[size] < filters && d.filters[size + 1] <= columns) ++size;
  return size;
}

// Memory that a later item will need, handed out to the tiles of this one to be prefetched into the second-level cache.
class Upcoming {
 public:
  void clear() { ranges_.clear(); }
  void add(const void* begin, ptrdiff_t bytes) {
    if (bytes > 0) ranges_.push_back({static_cast<const char*>(begin), static_cast<const char*>(begin) + bytes});
  }
  void share_among(int tiles) {
    ptrdiff_t lines = 0;
    for (const Range& r : ranges_) lines += ceil_div(r.end - r.begin, 64);
    lines_per_tile_ = ceil_div(lines, std::max(1, tiles));
    next_ = 0;
  }
  void take(TileArguments& t) {
    t.far = t.far_end = nullptr;
    if (next_ == ranges_.size()) return;
    Range& r = ranges_[next_];
    t.far = r.begin;
    t.far_end = r.end - r.begin > lines_per_tile_ * 64 ? r.begin + lines_per_tile_ * 64 : r.end;
    r.begin = t.far_end;
    if (r.begin == r.end) ++next_;
  }

 private:
  struct Range {
    const char *begin, *end;
  };
  std::vector<Range> ranges_;
  size_t next_ = 0;
  ptrdiff_t lines_per_tile_ = 0;
};

// What one thread reuses from item to item.
struct Worker {
  const char* input;  // of the band's first pixel: scratch memory, or the input itself
  int32_t *offsets, *ahead, *position_bytes, *line_bytes;
  int32_t wrap_bytes;  // from a tile to its neighbour
  Upcoming upcoming;
};

// All tiles of one band for `t.valid` filters from `filter` on.
void run_filters(const Job& job, const Band& b, const Item& item, Worker& w, TileArguments t, int filter, int size, const Cover& plan) {
  const secateurs_conv& c = *job.conv;
  const Dispatch& d = *job.dispatch;
  const int height = b.y1 - b.y0, width = b.x1 - b.x0;
  float* output = job.output + item.image * c.out_stride_batch + filter;
  const float* residual = job.residual ? job.residual + item.image * c.residual_stride_batch + filter : nullptr;
  t.bias = job.bias ? job.bias + filter : nullptr;
  for (int y = 0; y < height; y += plan.rows) {
    const int rows = std::min(plan.rows, height - y), pieces = plan.pieces[rows];
    for (int piece = 0; piece < pieces; ++piece) {
      const int x = width * piece / pieces, columns = width * (piece + 1) / pieces - x;
      const ptrdiff_t row = b.y0 + y, column = b.x0 + x;
      t.input = w.input + static_cast<ptrdiff_t>(y) * c.stride_height * b.row_bytes + static_cast<ptrdiff_t>(x) * b.pixel_bytes;
      t.output = output + row * c.out_stride_row + column * c.out_stride_column;
      if (residual) t.residual = residual + row * c.residual_stride_row + column * c.residual_stride_column;
      w.upcoming.take(t);
      d.run[size][job.mode][rows][columns](t);
    }
  }
}

int tiles_of(const Cover& plan, int height) {
  const int rest = height % plan.rows;
  return height / plan.rows * plan.pieces[plan.rows] + (rest ? plan.pieces[rest] : 0);
}

// The scratch lines of one plane that a tile reads, in pairs, spread over as many slots as a plane has entries.
void list_lines(const Job& job, const Band& b, Worker& w) {
  const secateurs_conv& c = *job.conv;
  const Cover plan = cover(job, size_for(*job.dispatch, std::min(c.block, job.group_outputs), c.block), b.y1 - b.y0, b.x1 - b.x0);
  const int columns = static_cast<int>(ceil_div(b.x1 - b.x0, plan.pieces[plan.rows]));
  const int rows = std::min(b.rows, (plan.rows - 1) * c.stride_height + (c.kernel_height - 1) * c.dilation_height + 1);
  const int pixels = columns + (c.kernel_width - 1) * c.dilation_width / c.stride_width;
  const int slots = 16 * c.kernel_height * c.kernel_width + 16;
  w.wrap_bytes = columns * b.pixel_bytes;
  int count = 0;
  for (int row = 0; row < rows && count < slots; ++row) {
    if (!row_used(b, c, row)) continue;
    for (int phase = 0; phase < c.stride_width; ++phase) {
      if (!phase_used(c, phase)) continue;
      for (int pixel = 0; pixel < pixels && count < slots; pixel += 2) {
        w.line_bytes[count++] = row * b.row_bytes + (phase * b.phase_columns + pixel) * b.pixel_bytes;
      }
    }
  }
  std::fill(w.line_bytes + count, w.line_bytes + slots, w.line_bytes[count - 1]);
}

void list_positions(const Job& job, const Band& b, int32_t* position_bytes) {
  const secateurs_conv& c = *job.conv;
  for (int i = 0; i < c.kernel_height; ++i) {
    for (int j = 0; j < c.kernel_width; ++j) {
      const int at = j * c.dilation_width;
      if (job.direct) {
        *position_bytes++ = i * c.dilation_height * b.row_bytes + at * static_cast<int>(c.in_stride_column) * 4;
        continue;
      }
      *position_bytes++ = i * c.dilation_height * b.row_bytes + (at % c.stride_width * b.phase_columns + at / c.stride_width) * b.pixel_bytes;
    }
  }
}

// Fills the worker's offsets with the entries of a block; false where its masks do not fit its start and end.
bool locate_block(const Job& job, const Band& b, int block, Worker& w) {
  const secateurs_conv& c = *job.conv;
  const ptrdiff_t count = job.starts[block + 1] - job.starts[block];
  const int positions = c.kernel_height * c.kernel_width;
  LocateArguments a = {};
  a.masks = job.masks + static_cast<ptrdiff_t>(block) * job.mask_planes * positions;
  a.planes = job.mask_planes;
  a.positions = positions;
  const int last = job.group_inputs - 16 * (job.mask_planes - 1);
  a.last_mask = static_cast<uint16_t>((1u << last) - 1u);
  a.position_bytes = w.position_bytes;
  a.plane_bytes = b.plane_bytes;
  a.line_bytes = w.line_bytes;
  a.wrap_bytes = w.wrap_bytes;
  a.capacity = count;
  a.offsets = w.offsets;
  a.ahead = w.ahead;
  return job.dispatch->isa->locate(a) == count;
}

void run_block(Job& job, const Band& b, const Item& item, Worker& w) {
  const secateurs_conv& c = *job.conv;
  const int block = item.group * job.blocks_per_group + item.block;
  const int filters = std::min(c.block, job.group_outputs - item.block * c.block);
  const int height = b.y1 - b.y0, width = b.x1 - b.x0;
  TileArguments t = {};
  t.offsets = w.offsets;
  t.ahead = w.ahead;
  t.weight_stride = c.block;
  t.entries = job.starts[block + 1] - job.starts[block];
  t.row_stride = static_cast<ptrdiff_t>(c.stride_height) * b.row_bytes;
  t.residual_column = c.residual_stride_column;
  t.residual_row = c.residual_stride_row;
  t.output_column = c.out_stride_column;
  t.output_row = c.out_stride_row;
  t.silu = c.activation == SECATEURS_SILU;
  t.low = job.low;
  t.high = job.high;
  t.bypass = job.bypass;
  for (int done = 0; done < filters;) {
    const int size = size_for(*job.dispatch, filters - done, c.block - done);
    const Cover plan = cover(job, size, height, width);
    if (done == 0) {
      if (!locate_block(job, b, block, w)) {
        job.status = SECATEURS_BAD_PATTERN;
        return;
      }
      w.upcoming.share_among(tiles_of(plan, height));
    }
    t.valid = std::min(filters - done, job.dispatch->filters[size]);
    t.weights = job.weights + static_cast<ptrdiff_t>(job.starts[block]) * c.block + done;
    run_filters(job, b, item, w, t, item.group * job.group_outputs + item.block * c.block + done, size, plan);
    done += t.valid;
  }
}

// What the item after this one will need that is not in the second-level cache yet.
void look_ahead(const Job& job, int index, const Item& item, Upcoming& upcoming) {
  const secateurs_conv& c = *job.conv;
  upcoming.clear();
  if (item.block == 0 && job.prefetch_output) {
    const Band& b = job.bands[static_cast<size_t>(item.band)];
    for (int y = b.y0; y < b.y1; ++y) {
      if (job.residual) {
        upcoming.add(job.residual + item.image * c.residual_stride_batch + y * c.residual_stride_row + b.x0 * c.residual_stride_column,
                     (b.x1 - b.x0) * c.residual_stride_column * 4);
      }
      upcoming.add(job.output + item.image * c.out_stride_batch + y * c.out_stride_row + b.x0 * c.out_stride_column,
                   (b.x1 - b.x0) * c.out_stride_column * 4);
    }
  }
  if (index + 1 >= job.items()) return;
  const Item next = job.item(index + 1);
  const int block = next.group * job.blocks_per_group + next.block;
  if (job.prefetch_weights) {
    upcoming.add(job.weights + static_cast<ptrdiff_t>(job.starts[block]) * c.block,
                 static_cast<ptrdiff_t>(job.starts[block + 1] - job.starts[block]) * c.block * 4);
  }
  if ((next.band == item.band && next.image == item.image) || c.groups > 1 || c.in_stride_channel != 1) return;
  const Band& b = job.bands[static_cast<size_t>(next.band)];
  const int overlap = next.image == item.image ? job.bands[static_cast<size_t>(item.band)].y1 * c.stride_height - c.pad_top +
                                                     (c.kernel_height - 1) * c.dilation_height + 1 - c.stride_height : 0;
  const int x = std::max(0, b.x0 * c.stride_width - c.pad_left), end = std::min(job.width, b.x0 * c.stride_width - c.pad_left + b.columns);
  const int first = std::max({0, b.y0 * c.stride_height - c.pad_top, b.x0 ? 0 : overlap});
  for (int y = first; y < std::min(job.height, b.y0 * c.stride_height - c.pad_top + b.rows); ++y) {
    upcoming.add(job.input + next.image * c.in_stride_batch + y * c.in_stride_row + x * c.in_stride_column, (end - x) * c.in_stride_column * 4);
  }
}

void work(void* context, int thread) {
  Job& job = *static_cast<Job*>(context);
  const secateurs_conv& c = *job.conv;
  static thread_local Scratch input_scratch, list_scratch;
  // Vector code stores sixteen at a time, up to fifteen past the end.
  const size_t entries = static_cast<size_t>(job.max_entries) + 16, positions = static_cast<size_t>(c.kernel_height) * c.kernel_width;
  Worker w = {};
  char* const scratch = input_scratch.get(job.scratch_bytes);
  w.input = scratch;
  w.offsets = reinterpret_cast<int32_t*>(list_scratch.get((2 * entries + 17 * positions + 16) * 4));
  if (!scratch || !w.offsets) {
    job.status = SECATEURS_OUT_OF_MEMORY;
    return;
  }
  w.ahead = w.offsets + entries;
  w.position_bytes = w.ahead + entries;
  w.line_bytes = w.position_bytes + positions;
  std::fill_n(w.line_bytes, 16 * positions + 16, 0);
  Item packed = {-1, -1, -1, -1};
  for (int index = job.shares->next(thread); index >= 0; index = job.shares->next(thread)) {
    const Item item = job.item(index);
    const Band& band = job.bands[static_cast<size_t>(item.band)];
    if (item.image != packed.image || item.group != packed.group || item.band != packed.band) {
      if (job.direct) {
        w.input = reinterpret_cast<const char*>(job.input + item.image * c.in_stride_batch +
                                                (band.y0 * c.stride_height - c.pad_top) * c.in_stride_row +
                                                (band.x0 * c.stride_width - c.pad_left) * c.in_stride_column);
      } else {
        pack_band(job, band, item.image, item.group, scratch);
      }
      list_positions(job, band, w.position_bytes);
      if (job.mode == kStreaming) list_lines(job, band, w);
      packed = item;
    }
    if (job.mode == kStreaming) look_ahead(job, index, item, w.upcoming);
    run_block(job, band, item, w);
  }
#if defined(__SSE__)
  if (job.bypass) _mm_sfence();  // stores past the caches become visible to the other threads
#endif
}

bool shapes_are_sound(const secateurs_conv& c) {
  const int32_t positive[] = {c.batch,         c.in_channels,   c.in_height,    c.in_width,        c.out_channels,   c.out_height,
                              c.out_width,     c.kernel_height, c.kernel_width, c.stride_height,   c.stride_width,   c.dilation_height,
                              c.dilation_width, c.groups,       c.block,        c.threads};
  for (int32_t value : positive) {
    if (value < 1) return false;
  }
  return c.pad_top >= 0 && c.pad_left >= 0 && c.in_channels % c.groups == 0 && c.out_channels % c.groups == 0 && c.block % 8 == 0 &&
         static_cast<int64_t>(c.kernel_height) * c.kernel_width <= 4096 && c.in_channels / c.groups < (1 << 24) &&
         c.activation >= SECATEURS_NONE && c.activation <= SECATEURS_SILU;
}

// Few multiply-adds per output, more outputs than the second-level cache holds: then storing is what takes the time, and
// writing past the caches saves reading the lines first. Only where every store is a whole aligned vector.
bool writes_past_caches(const Job& job) {
  const secateurs_conv& c = *job.conv;
  const int64_t outputs = int64_t{c.out_channels} * c.out_height * c.out_width;
  const bool aligned = reinterpret_cast<uintptr_t>(job.output) % 64 == 0 && c.out_stride_column % 16 == 0 &&
                       c.out_stride_row % 16 == 0 && c.out_stride_batch % 16 == 0;
  return job.inner == 4 && aligned && c.activation != SECATEURS_SILU && job.group_outputs % 16 == 0 && c.block % 16 == 0 &&
         outputs * 4 > second_level_cache_bytes();
}

// Whether tiles may read the input where it lies: channels innermost, zeros around it where padding is read, pixels as far
// apart as there are tiles for, and little enough to stay in the caches without prefetching. Sets the mode.
bool reads_input(Job& job) {
  const secateurs_conv& c = *job.conv;
  if (job.mode != kCached || c.groups != 1 || c.in_channels % 16 || c.in_stride_channel != 1) return false;
  const int below = (job.out_height - 1) * c.stride_height + (c.kernel_height - 1) * c.dilation_height - c.pad_top - (job.height - 1);
  const int beside = (job.out_width - 1) * c.stride_width + (c.kernel_width - 1) * c.dilation_width - c.pad_left - (job.width - 1);
  if (c.in_border < std::max({c.pad_top, c.pad_left, below, beside})) return false;
  if ((c.kernel_height - 1) * int64_t{c.dilation_height} * c.in_stride_row >= (1 << 28)) return false;
  const int64_t apart = c.in_stride_column * c.stride_width;
  if (apart == 16) return true;
  const Mode mode = apart == 32 ? kApart32 : apart == 64 ? kApart64 : kCached;
  const int largest = job.dispatch->sizes - 1;
  if (mode == kCached || !job.dispatch->widest[largest][mode][1] || c.out_channels % job.dispatch->filters[largest] ||
      c.block % job.dispatch->filters[largest]) {
    return false;
  }
  job.mode = mode;
  return true;
}

// A 1x1 convolution without padding or stride sees the image as one long row, where memory allows it.
void flatten_rows(Job& job) {
  const secateurs_conv& c = *job.conv;
  const bool pointwise = c.kernel_height == 1 && c.kernel_width == 1 && c.stride_height == 1 && c.stride_width == 1 &&
                         c.pad_top == 0 && c.pad_left == 0 && c.out_height == c.in_height && c.out_width == c.in_width;
  const bool dense_rows = c.in_stride_row == c.in_stride_column * c.in_width && c.out_stride_row == c.out_stride_column * c.out_width &&
                          (!job.residual || c.residual_stride_row == c.residual_stride_column * c.out_width);
  if (pointwise && dense_rows && static_cast<int64_t>(c.in_height) * c.in_width < (1 << 30)) {
    job.width = job.out_width = c.in_height * c.in_width;
    job.height = job.out_height = 1;
  }
}

int run(Job& job) {
  const secateurs_conv& c = *job.conv;
  job.dispatch = &dispatch();
  job.height = c.in_height;
  job.width = c.in_width;
  job.out_height = c.out_height;
  job.out_width = c.out_width;
  flatten_rows(job);
  job.group_inputs = c.in_channels / c.groups;
  job.group_outputs = c.out_channels / c.groups;
  job.blocks_per_group = static_cast<int>(ceil_div(job.group_outputs, c.block));
  job.inner = job.group_inputs <= 4 ? 4 : 16;
  job.planes = static_cast<int>(ceil_div(job.group_inputs, job.inner));
  job.mask_planes = static_cast<int>(ceil_div(job.group_inputs, 16));
  const float infinity = std::numeric_limits<float>::infinity();
  job.low = c.activation == SECATEURS_RELU || c.activation == SECATEURS_RELU6 ? 0.0f : -infinity;
  job.high = c.activation == SECATEURS_RELU6 ? 6.0f : infinity;
  const int blocks = c.groups * job.blocks_per_group;
  job.max_entries = 0;
  for (int i = 0; i < blocks; ++i) {
    if (job.starts[i + 1] < job.starts[i]) return SECATEURS_BAD_PATTERN;
    job.max_entries = std::max<ptrdiff_t>(job.max_entries, job.starts[i + 1] - job.starts[i]);
  }
  job.work = static_cast<double>(job.starts[blocks] - job.starts[0]) * c.block / 32 * job.out_height * job.out_width * c.batch;
  job.prefetch_weights = static_cast<ptrdiff_t>(job.starts[blocks] - job.starts[0]) * c.block * 4 > second_level_cache_bytes() / 4;
  const ptrdiff_t walked = job.max_entries * c.block * 4 + job.planes * 4096;
  const int64_t input_bytes = int64_t{c.in_channels} * c.in_height * c.in_width * 4;
  const bool cached = walked <= kFirstLevel && input_bytes <= second_level_cache_bytes() / 2;
  job.mode = job.inner == 4 ? kNarrow : cached ? kCached : kStreaming;
  job.prefetch_output = int64_t{c.out_channels} * c.out_height * c.out_width * 4 > second_level_cache_bytes();
  job.bypass = writes_past_caches(job);
  job.direct = reads_input(job);
  cut_bands(job);
  int64_t bytes = 64;
  for (const Band& b : job.bands) bytes = job.direct ? bytes : std::max<int64_t>(bytes, band_bytes(job, b.y1 - b.y0, b.x1 - b.x0));
  if (bytes >= (int64_t{1} << 31)) return SECATEURS_BAD_SHAPE;
  job.scratch_bytes = static_cast<size_t>(bytes);
  const int items = job.items(), threads = std::min(c.threads, items);
  std::vector<double> costs(static_cast<size_t>(items));
  double total = 0.0;
  for (int i = 0; i < items; ++i) {
    const Item item = job.item(i);
    const Band& b = job.bands[static_cast<size_t>(item.band)];
    const int block = item.group * job.blocks_per_group + item.block;
    const double entries = job.starts[block + 1] - job.starts[block] + 8.0;  // eight for storing the outputs
    total += entries * (b.y1 - b.y0) * (b.x1 - b.x0);
    costs[static_cast<size_t>(i)] = total;
  }
  Shares shares(costs, threads);
  job.shares = &shares;
  run_parallel(threads, &work, &job);
  return job.status;
}

}  // namespace
}  // namespace secateurs

extern "C" {

int secateurs_sparse_conv_f32(const secateurs_conv* conv, const float* input, const float* weights, const uint16_t* masks,
                              const int32_t* starts, const float* bias, const float* residual, float* output) {
  if (!conv || !secateurs::shapes_are_sound(*conv)) return SECATEURS_BAD_SHAPE;
  if (!input || !starts || !output || !masks || !weights) return SECATEURS_BAD_LAYOUT;
  secateurs::Job job;
  job.conv = conv;
  job.input = input;
  job.weights = weights;
  job.masks = masks;
  job.starts = starts;
  job.bias = bias;
  job.residual = residual;
  job.output = output;
  try {
    return secateurs::run(job);
  } catch (...) {
    return SECATEURS_OUT_OF_MEMORY;
  }
}

int secateurs_sparse_convs_f32(const secateurs_call* calls, int count, int* done) {
  for (*done = 0; *done < count; ++*done) {
    const secateurs_call& c = calls[*done];
    const int status = secateurs_sparse_conv_f32(c.conv, c.input, c.weights, c.masks, c.starts, c.bias, c.residual, c.output);
    if (status != SECATEURS_OK) return status;
  }
  return SECATEURS_OK;
}

int secateurs_time_conv_f32(const secateurs_conv* conv, const float* input, const float* weights, const uint16_t* masks,
                            const int32_t* starts, const float* bias, const float* residual, float* output, int runs,
                            double* milliseconds) {
  *milliseconds = 0.0;
  for (int i = 0; i < runs; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const int status = secateurs_sparse_conv_f32(conv, input, weights, masks, starts, bias, residual, output);
    const double took = 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (status != SECATEURS_OK) return status;
    if (i == 0 || took < *milliseconds) *milliseconds = took;
  }
  return SECATEURS_OK;
}

void secateurs_poison_scratch(int on) { secateurs::poison = on != 0; }

double secateurs_fma_peak(double milliseconds) {
  const secateurs::Isa& isa = *secateurs::dispatch().isa;
  const double begin = secateurs::thread_seconds();
  double flops = 0.0, seconds = 0.0;
  do {
    flops += isa.fma_round(2000);
    seconds = secateurs::thread_seconds() - begin;
  } while (seconds * 1e3 < milliseconds);
  return flops / seconds;
}

}  // extern "C"
