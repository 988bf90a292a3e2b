// Number formats, sizes and threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;  // floats of a vector

inline int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }  // room for n values in whole vectors

using bf16 = uint16_t;

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void store(float *at, float x) { *at = x; }

inline void store(bf16 *at, float x) {  // round to nearest, ties to even, as PyTorch does
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    *at = static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline int threads_for(int64_t elements) {  // small work is not worth waking threads for
#ifdef _OPENMP
    if (omp_in_parallel()) return 1;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(omp_get_max_threads(), elements / 8192)));
#else
    (void)elements;
    return 1;
#endif
}

inline void prefetch(const void *at, int64_t bytes) {
#if defined(__GNUC__)
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(at) + i);
#else
    (void)at, (void)bytes;
#endif
}

}  // namespace
