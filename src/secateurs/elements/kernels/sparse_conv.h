/* Sparse convolution for kernel elements pruned in blocks of filters. C ABI, no dependencies.
 *
 * A block of B filters shares, for every input channel, the kernel positions that stay. The convolution walks the
 * list of these (channel, position) entries; it never multiplies by a pruned element and never builds an im2col
 * matrix. All functions may be called from several threads. */
#ifndef SECATEURS_SPARSE_CONV_H
#define SECATEURS_SPARSE_CONV_H

#include <stdint.h>

#if defined(_WIN32)
#define SECATEURS_API __declspec(dllexport)
#else
#define SECATEURS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SECATEURS_ABI_VERSION 1

enum secateurs_activation {
  SECATEURS_NONE = 0,
  SECATEURS_RELU = 1,
  SECATEURS_RELU6 = 2,
  SECATEURS_SILU = 3
};

enum secateurs_status {
  SECATEURS_OK = 0,
  SECATEURS_BAD_SHAPE = 1,
  SECATEURS_BAD_PATTERN = 2,
  SECATEURS_OUT_OF_MEMORY = 3,
  SECATEURS_BAD_LAYOUT = 4
};

/* Geometry of one call. Strides count floats. The output and the residual have channel stride 1 (NHWC, any pitch);
 * the input may have any strides, NHWC being the fast one. Padding on the right and at the bottom follows from the
 * output size. */
typedef struct secateurs_conv {
  int32_t batch, in_channels, in_height, in_width;
  int32_t out_channels, out_height, out_width;
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width;
  int32_t pad_top, pad_left;
  int32_t dilation_height, dilation_width;
  int32_t groups;
  int32_t block;      /* filters that share a pattern: a multiple of 8 */
  int32_t activation; /* enum secateurs_activation, applied last */
  int32_t threads;
  int32_t in_border;  /* zero pixels around the input in memory, on every side: reading them saves copying the input */
  int64_t in_stride_batch, in_stride_channel, in_stride_row, in_stride_column;
  int64_t out_stride_batch, out_stride_row, out_stride_column;
  int64_t residual_stride_batch, residual_stride_row, residual_stride_column;
} secateurs_conv;

/* output = activation(convolution(input) + bias + residual).
 *
 * masks   [blocks, planes, kernel_height * kernel_width]  what stays: bit k stands for input channel 16 * plane + k of the
 *         convolution group; planes = ceil(in_channels / groups / 16), blocks = groups * ceil(out_channels / groups / block)
 * starts  [blocks + 1]  number of bits set before every block
 * weights [starts[blocks], block]  in the order of the bits: block, plane, position, channel. Filters past the end of a
 *         convolution group are ignored, but must be there
 * bias    [out_channels] or NULL; residual like output or NULL (it may be the output itself)
 * Returns a secateurs_status. */
SECATEURS_API int secateurs_sparse_conv_f32(const secateurs_conv* conv, const float* input, const float* weights,
                                            const uint16_t* masks, const int32_t* starts, const float* bias,
                                            const float* residual, float* output);

/* Several convolutions one after the other, without going back to the caller in between. *done gets how many ran. */
typedef struct secateurs_call {
  const secateurs_conv* conv;
  const float* input;
  const float* weights;
  const uint16_t* masks;
  const int32_t* starts;
  const float* bias;
  const float* residual;
  float* output;
} secateurs_call;
SECATEURS_API int secateurs_sparse_convs_f32(const secateurs_call* calls, int count, int* done);

/* One convolution `runs` times; *milliseconds gets the fastest run's wall time. For choosing between kernels. */
SECATEURS_API int secateurs_time_conv_f32(const secateurs_conv* conv, const float* input, const float* weights,
                                          const uint16_t* masks, const int32_t* starts, const float* bias,
                                          const float* residual, float* output, int runs, double* milliseconds);

/* SECATEURS_ABI_VERSION of the library. */
SECATEURS_API int secateurs_abi_version(void);

/* Instruction set in use: avx512, avx2, neon or plain. The environment variable SECATEURS_ISA forces one. */
SECATEURS_API const char* secateurs_isa(void);

/* Select an instruction set by name; NULL or "" goes back to the best. Returns 0, or 1 where the machine lacks it. */
SECATEURS_API int secateurs_set_isa(const char* name);

/* The microkernel table of the instruction set in use: how many rows it has, and one row.
 * shape = {filters, rows, columns, channels interleaved per pixel, whether it prefetches}. Returns 0, or 1 past the end. */
SECATEURS_API int secateurs_tile_count(void);
SECATEURS_API int secateurs_tile(int index, char* name, int name_size, int32_t shape[5]);

/* For tests and benchmarks: use no tile higher or wider than this (0 = no limit). */
SECATEURS_API void secateurs_limit_tiles(int rows, int columns);

/* For tests: fill scratch memory with NaN before use, so that reading what was not written shows. */
SECATEURS_API void secateurs_poison_scratch(int on);

/* Multiply-adds per second, times two, of independent vector FMAs in registers, over about `milliseconds`. */
SECATEURS_API double secateurs_fma_peak(double milliseconds);

#ifdef __cplusplus
}
#endif
#endif
