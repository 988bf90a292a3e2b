// Dropout masks from a counter.

#pragma once

#include "formats.h"

namespace {

// Philox-4x32-10 (Salmon et al., SC 2011) on LANES counters (first + lane, c1, c2, c3) at once: word[w][lane] are the
// four words of each. Half h of word w is number 2 * w + h of its counter, 16 bits.
constexpr int DRAWS = 8 * LANES;

struct Key {  // key of a dropout site at one update
    uint32_t k0, k1;
    uint32_t threshold;  // an element is kept if its number is at least this; 0: no dropout
    float scale;
};

constexpr uint32_t MULTIPLY0 = 0xD2511F53u, MULTIPLY1 = 0xCD9E8D57u, ADD0 = 0x9E3779B9u, ADD1 = 0xBB67AE85u;

#if defined(__AVX512F__) || defined(__AVX2__)
// The processor multiplies the low halves of 64-bit lanes and ignores what is in the high ones. So even and odd counters
// are kept apart, each in the low half of such a lane, and the high halves hold whatever came of them.
#if defined(__AVX512F__)
using Wide = __m512i;
inline Wide fill(uint32_t x) { return _mm512_set1_epi64(x); }
inline Wide multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
inline Wide high(Wide a) { return _mm512_srli_epi64(a, 32); }
inline Wide exclusive_or(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Wide add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
inline Wide numbered() { return _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0); }
inline void interleave(uint32_t *at, Wide even, Wide odd) {
    _mm512_storeu_si512(at, _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
}
#else
using Wide = __m256i;
inline Wide fill(uint32_t x) { return _mm256_set1_epi64x(x); }
inline Wide multiply(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
inline Wide high(Wide a) { return _mm256_srli_epi64(a, 32); }
inline Wide exclusive_or(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline Wide add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
inline Wide numbered() { return _mm256_set_epi64x(6, 4, 2, 0); }
inline void interleave(uint32_t *at, Wide even, Wide odd) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
}
#endif

inline void philox(uint32_t first, const uint32_t *token, const Key &key, uint32_t (*word)[LANES]) {
    constexpr int COUNTERS = sizeof(Wide) / 4, GROUPS = 2 * LANES / COUNTERS;  // group 2 g: even counters, 2 g + 1: odd
    Wide c0[GROUPS], c1[GROUPS], c2[GROUPS], c3[GROUPS];
    for (int g = 0; g < GROUPS; ++g) {
        c0[g] = add(fill(first + static_cast<uint32_t>(g / 2 * COUNTERS + g % 2)), numbered());
        c1[g] = fill(token[0]);
        c2[g] = fill(token[1]);
        c3[g] = fill(token[2]);
    }
    const Wide m0 = fill(MULTIPLY0), m1 = fill(MULTIPLY1);
    uint32_t k0 = key.k0, k1 = key.k1;
    for (int round = 0; round < 10; ++round) {
        const Wide w0 = fill(k0), w1 = fill(k1);
        for (int g = 0; g < GROUPS; ++g) {
            const Wide p0 = multiply(c0[g], m0), p1 = multiply(c2[g], m1);
            c0[g] = exclusive_or(high(p1), c1[g], w0);
            c2[g] = exclusive_or(high(p0), c3[g], w1);
            c1[g] = p1;
            c3[g] = p0;
        }
        k0 += ADD0;
        k1 += ADD1;
    }
    for (int g = 0; g < GROUPS; g += 2) {
        interleave(word[0] + g / 2 * COUNTERS, c0[g], c0[g + 1]);
        interleave(word[1] + g / 2 * COUNTERS, c1[g], c1[g + 1]);
        interleave(word[2] + g / 2 * COUNTERS, c2[g], c2[g + 1]);
        interleave(word[3] + g / 2 * COUNTERS, c3[g], c3[g + 1]);
    }
}
#else
inline void philox(uint32_t first, const uint32_t *token, const Key &key, uint32_t (*word)[LANES]) {
    for (int l = 0; l < LANES; ++l) {
        uint32_t c0 = first + static_cast<uint32_t>(l), c1 = token[0], c2 = token[1], c3 = token[2];
        uint32_t k0 = key.k0, k1 = key.k1;
        for (int round = 0; round < 10; ++round) {
            const uint64_t p0 = static_cast<uint64_t>(c0) * MULTIPLY0, p1 = static_cast<uint64_t>(c2) * MULTIPLY1;
            c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
            c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
            c1 = static_cast<uint32_t>(p1);
            c3 = static_cast<uint32_t>(p0);
            k0 += ADD0;
            k1 += ADD1;
        }
        word[0][l] = c0;
        word[1][l] = c1;
        word[2][l] = c2;
        word[3][l] = c3;
    }
}
#endif

// factor[l] = scale or 0 for the LANES numbers in this half of the words: shifted to the top, they compare as they are.
inline void factors_of(const uint32_t *word, int half, const Key &key, float *factor) {
    const int shift = half ? 0 : 16;
    const uint32_t limit = key.threshold << 16, bits = half ? 0xffff0000u : 0xffffffffu;
    const float scale = key.scale;
#pragma omp simd
    for (int l = 0; l < LANES; ++l) factor[l] = ((word[l] << shift) & bits) >= limit ? scale : 0.0f;
}

// factor[i - begin] = scale or 0 for elements i in [begin, end) of a row, and on to the end of the vector; begin is a
// multiple of LANES. Of each DRAWS neighbouring elements, the first LANES have number 0 of LANES counters, the next
// ones number 1 of the same, and so on.
inline void dropout_factors(int64_t begin, int64_t end, const uint32_t *token, const Key &key, float *factor) {
    uint32_t word[4][LANES];
    for (int64_t base = begin / DRAWS * DRAWS; base < end; base += DRAWS) {
        philox(static_cast<uint32_t>(base / 8), token, key, word);
        for (int number = 0; number < 8; ++number) {
            const int64_t from = base + number * LANES;
            if (from >= begin && from < end) factors_of(word[number / 2], number % 2, key, factor + from - begin);
        }
    }
}

}  // namespace
