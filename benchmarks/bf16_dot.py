"""Whether bfloat16 would make the sparse convolution faster: the rate of its dot product against that of the fp32 FMA.

    python benchmarks/bf16_dot.py

AVX512_BF16 has one instruction, VDPBF16PS: 16 lanes, two multiply-adds each, added to fp32. It pays only if it issues
at more than half the rate of the fp32 multiply-add, which does one. Both run on fourteen independent registers, in
turns; the row in ``benchmarks/results/bf16_dot.csv`` holds the medians. Needs g++ or clang++ and a processor with
AVX512_BF16.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from sparse_conv import device

from secateurs.latency.lock import measuring

RESULTS = Path(__file__).parent / "results" / "bf16_dot.csv"
PROGRAM = r"""
#include <immintrin.h>
#include <chrono>
#include <cstdio>

template <class Step>
double rate(Step step) {
  __m512 sum[14];
  for (int i = 0; i < 14; ++i) sum[i] = _mm512_set1_ps(1.0f + i);
  const auto begin = std::chrono::steady_clock::now();
  constexpr int rounds = 400000;
  for (int n = 0; n < rounds; ++n) {
    #pragma GCC unroll 14
    for (int i = 0; i < 14; ++i) sum[i] = step(sum[i]);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (int i = 1; i < 14; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  volatile float sink = sum[0][0];
  (void)sink;
  return rounds * 14 / seconds / 1e9;
}

int main() {
  if (!__builtin_cpu_supports("avx512bf16")) return 2;
  __m512 scale = _mm512_set1_ps(0.999f), shift = _mm512_set1_ps(0.001f);
  __m512bh a = (__m512bh)_mm512_set1_epi16(0x3c00), b = (__m512bh)_mm512_set1_epi16(0x3d00);
  asm volatile("" : "+v"(scale), "+v"(shift), "+v"(a), "+v"(b));
  for (int turn = 0; turn < 30; ++turn) {
    const double fma = rate([&](__m512 s) { return _mm512_fmadd_ps(s, scale, shift); });
    const double dot = rate([&](__m512 s) { return _mm512_dpbf16_ps(s, a, b); });
    std::printf("%.3f %.3f\n", fma, dot);
  }
}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "dot.cpp", Path(folder) / "dot"
        source.write_text(PROGRAM)
        flags = ["-std=c++17", "-O2", "-mavx512f", "-mavx512bf16"]
        subprocess.run([os.environ.get("CXX", "g++"), *flags, str(source), "-o", str(program)], check=True)
        with measuring():
            done = subprocess.run([str(program)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit("This processor has no AVX512_BF16; nothing is measured.")
    pairs = [tuple(float(number) for number in line.split()) for line in done.stdout.splitlines()]
    fma, dot = (statistics.median(pair[i] for pair in pairs) for i in range(2))
    row = {
        "fma_per_ns": round(fma, 2), "dot_per_ns": round(dot, 2), "multiply_adds_ratio": round(2 * dot / fma, 2),
        "device": device(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    print(row)


if __name__ == "__main__":
    main()
