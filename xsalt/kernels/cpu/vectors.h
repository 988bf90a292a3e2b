// Vectors of LANES floats that the compiler keeps in registers, and what is computed with them.

#pragma once

#include "formats.h"

#if !defined(__GNUC__)
#error "vector types are an extension of GCC and Clang"
#endif

namespace {

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Floats &at(float *x) { return *reinterpret_cast<Floats *>(x); }
inline const Floats &at(const float *x) { return *reinterpret_cast<const Floats *>(x); }

inline Integers widened(const uint8_t *x) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
#else
    Integers wide;
    for (int l = 0; l < LANES; ++l) wide[l] = x[l];
    return wide;
#endif
}

inline Floats loaded(const float *x) { return at(x); }

inline Floats loaded(const bf16 *x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x))), 16);
#else
    float wide[LANES];
    for (int l = 0; l < LANES; ++l) wide[l] = to_float(x[l]);
    return at(wide);
#endif
}

inline void store(float *out, Floats x) { at(out) = x; }

inline void store(bf16 *out, Floats x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    float in[LANES];
    std::memcpy(in, &x, sizeof x);
#pragma omp simd
    for (int l = 0; l < LANES; ++l) store(out + l, in[l]);
#endif
}

// The same for `count` values, a vector or less.
template <typename X>
inline Floats loaded(const X *x, int64_t count) {
    if (count == LANES) return loaded(x);
    X filled[LANES] = {};
    std::memcpy(filled, x, count * sizeof(X));
    return loaded(filled);
}

template <typename X>
inline void store(X *out, Floats x, int64_t count) {
    if (count == LANES) {
        store(out, x);
        return;
    }
    X filled[LANES];
    store(filled, x);
    std::memcpy(out, filled, count * sizeof(X));
}

template <typename F>
inline float reduce(Floats x, F &&join) {
    typedef float Half __attribute__((vector_size(2 * LANES)));
    typedef float Quarter __attribute__((vector_size(LANES)));
    Half half[2];
    std::memcpy(half, &x, sizeof x);
    const Half h = join(half[0], half[1]);
    Quarter quarter[2];
    std::memcpy(quarter, &h, sizeof h);
    const Quarter q = join(quarter[0], quarter[1]);
    return join(join(q[0], q[1]), join(q[2], q[3]));
}

inline float sum_of(Floats x) {
    return reduce(x, [](auto a, auto b) { return a + b; });
}

inline float largest_of(Floats x) {
    return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

// exp(x) for x <= 0 to 2 units in the last place: 2**n * exp(r), |r| <= ln(2) / 2, by its Taylor series.
inline Floats exp_negative(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2**23: the last bits of the sum are n, rounded
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * reinterpret_cast<Floats>((reinterpret_cast<Integers>(shifted) + 127) << 23);
}

}  // namespace
