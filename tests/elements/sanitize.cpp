// Runs the kernels over random geometries against plain loops; built with sanitizers by test_sanitizers.py.
//
// Every buffer has exactly its size, so that one element too many is an error, and scratch memory is full of NaN.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "sparse_conv.h"

namespace {

std::mt19937 random_bits(1);

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

// Memory of its own for every tensor: a vector's capacity would hide an overrun.
std::unique_ptr<float[]> noise(size_t count) {
  std::unique_ptr<float[]> values(new float[count]);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (size_t i = 0; i < count; ++i) values[i] = uniform(random_bits);
  return values;
}

struct Case {
  secateurs_conv c = {};
  std::unique_ptr<float[]> input, weights, bias, residual, output;
  std::vector<uint16_t> masks;
  std::vector<int32_t> starts{0};
  int64_t first = 0;  // of the input's first pixel

  Case() {
    const int kernels[][2] = {{1, 1}, {3, 3}, {1, 3}, {5, 2}};
    const int* kernel = kernels[between(0, 3)];
    c.kernel_height = kernel[0];
    c.kernel_width = kernel[1];
    c.groups = between(0, 3) ? 1 : between(2, 3);
    c.in_channels = c.groups * between(1, between(0, 1) ? 4 : 40);
    c.out_channels = c.groups * between(1, 70);
    c.block = 8 * between(1, 5);
    const bool direct = between(0, 3) == 0;  // input that may be read where it lies
    if (direct) {
      c.groups = 1;
      c.in_channels = 16 << between(0, 2);
      c.out_channels = 32 * between(1, 2);
      c.block = 32;
    }
    c.batch = between(1, 2);
    c.stride_height = between(1, 3);
    c.stride_width = between(1, 3);
    c.dilation_height = between(1, 2);
    c.dilation_width = between(1, 2);
    c.pad_top = between(0, 2);
    c.pad_left = between(0, 2);
    c.in_height = (c.kernel_height - 1) * c.dilation_height + between(1, 12);
    c.in_width = (c.kernel_width - 1) * c.dilation_width + between(1, 40);
    c.out_height = (c.in_height + c.pad_top + between(0, 2) - (c.kernel_height - 1) * c.dilation_height - 1) / c.stride_height + 1;
    c.out_width = (c.in_width + c.pad_left + between(0, 2) - (c.kernel_width - 1) * c.dilation_width - 1) / c.stride_width + 1;
    c.threads = between(1, 3);
    c.activation = between(0, 3);
    const bool planar = !direct && between(0, 2) == 0;
    c.in_border = direct ? between(0, 3) : 0;
    const int64_t rows = c.in_height + 2 * c.in_border, columns = c.in_width + 2 * c.in_border;
    c.in_stride_batch = c.in_channels * rows * columns;
    c.in_stride_channel = planar ? rows * columns : 1;
    c.in_stride_row = planar ? columns : columns * c.in_channels;
    c.in_stride_column = planar ? 1 : c.in_channels;
    c.out_stride_column = c.residual_stride_column = c.out_channels;
    c.out_stride_row = c.residual_stride_row = int64_t{c.out_width} * c.out_channels;
    c.out_stride_batch = c.residual_stride_batch = c.out_stride_row * c.out_height;
    const int channels = c.in_channels / c.groups, planes = (channels + 15) / 16, positions = c.kernel_height * c.kernel_width;
    const int blocks = c.groups * ((c.out_channels / c.groups + c.block - 1) / c.block);
    for (int b = 0; b < blocks; ++b) {
      int count = 0;
      for (int i = 0; i < planes * positions; ++i) {
        const int exist = std::min(16, channels - i / positions * 16);
        masks.push_back(static_cast<uint16_t>(random_bits() & random_bits() & ((1u << exist) - 1u)));
        count += __builtin_popcount(masks.back());
      }
      starts.push_back(starts.back() + count);
    }
    input = noise(static_cast<size_t>(c.batch) * c.in_stride_batch);
    first = c.in_border * (c.in_stride_row + c.in_stride_column);
    for (int64_t i = 0; c.in_border && i < c.batch * rows * columns; ++i) {
      const int64_t y = i / columns % rows - c.in_border, x = i % columns - c.in_border;
      if (y < 0 || y >= c.in_height || x < 0 || x >= c.in_width) std::fill_n(&input[i * c.in_channels], c.in_channels, 0.0f);
    }
    weights = noise(std::max<size_t>(1, static_cast<size_t>(starts.back()) * c.block));
    if (between(0, 1)) bias = noise(static_cast<size_t>(c.out_channels));
    const size_t outputs = static_cast<size_t>(c.batch) * c.out_stride_batch;
    if (between(0, 1)) residual = noise(outputs);
    output = noise(outputs);
  }

  double expected(int n, int o, int y, int x) const {
    const int channels = c.in_channels / c.groups, per_group = c.out_channels / c.groups, planes = (channels + 15) / 16;
    const int group = o / per_group, blocks = (per_group + c.block - 1) / c.block, positions = c.kernel_height * c.kernel_width;
    const int block = group * blocks + o % per_group / c.block;
    double sum = bias ? bias[o] : 0.0;
    const float* w = weights.get() + static_cast<size_t>(starts[block]) * c.block + o % per_group % c.block;
    for (int plane = 0; plane < planes; ++plane) {
      for (int p = 0; p < positions; ++p) {
        for (int bit = 0; bit < 16; ++bit) {
          if (!(masks[static_cast<size_t>((block * planes + plane) * positions + p)] >> bit & 1)) continue;
          const int iy = y * c.stride_height + p / c.kernel_width * c.dilation_height - c.pad_top;
          const int ix = x * c.stride_width + p % c.kernel_width * c.dilation_width - c.pad_left;
          if (iy >= 0 && iy < c.in_height && ix >= 0 && ix < c.in_width) {
            const int channel = group * channels + plane * 16 + bit;
            sum += double{*w} * input[first + n * c.in_stride_batch + channel * c.in_stride_channel + iy * c.in_stride_row + ix * c.in_stride_column];
          }
          w += c.block;
        }
      }
    }
    if (residual) sum += residual[n * c.out_stride_batch + y * c.out_stride_row + x * c.out_stride_column + o];
    if (c.activation == SECATEURS_SILU) return sum / (1.0 + std::exp(-sum));
    if (c.activation == SECATEURS_NONE) return sum;
    return std::min(std::max(sum, 0.0), c.activation == SECATEURS_RELU6 ? 6.0 : 1e30);
  }

  bool run(const char* isa) {
    const int status = secateurs_sparse_conv_f32(&c, input.get() + first, weights.get(), masks.data(), starts.data(), bias.get(), residual.get(), output.get());
    if (status != SECATEURS_OK) {
      std::printf("%s: status %d\n", isa, status);
      return false;
    }
    for (int n = 0; n < c.batch; ++n)
      for (int o = 0; o < c.out_channels; ++o)
        for (int y = 0; y < c.out_height; ++y)
          for (int x = 0; x < c.out_width; ++x) {
            const double wanted = expected(n, o, y, x);
            const double got = output[n * c.out_stride_batch + y * c.out_stride_row + x * c.out_stride_column + o];
            if (!(std::fabs(got - wanted) <= 1e-4 * (1.0 + std::fabs(wanted)))) {
              std::printf("%s: output %d,%d,%d,%d is %g, not %g\n", isa, n, o, y, x, got, wanted);
              return false;
            }
          }
    return true;
  }
};

}  // namespace

int main(int count, char** values) {
  const int cases = count > 1 ? std::stoi(values[1]) : 100;
  secateurs_poison_scratch(1);
  for (const char* isa : {"avx512", "avx2", "neon", "plain"}) {
    if (secateurs_set_isa(isa)) continue;
    random_bits.seed(1);
    for (int i = 0; i < cases; ++i) {
      secateurs_limit_tiles(between(0, 4), between(0, 16));
      if (!Case().run(isa)) {
        std::printf("case %d\n", i);
        return 1;
      }
    }
    std::printf("%s: %d cases\n", isa, cases);
  }
  return 0;
}
