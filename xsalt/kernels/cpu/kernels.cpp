// The fused kernels for the CPU: embedding mixup, dropout + residual + LayerNorm, softmax + dropout of attention.
//
// Plain C++ over raw pointers, so that building needs no torch; xsalt/kernels/cpu/__init__.py calls the functions through
// ctypes. What each must compute is written in PyTorch in xsalt/kernels/reference.py.
//
// Shapes in names: T tokens, D width, S longest sequence. Every result is the same for any number of threads: rows are
// independent, and sums over tokens are made column by column in token order.

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

// ---------------------------------------------------------------------------------------------------- number formats

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

// ------------------------------------------------------------------------------------------------------ dropout masks

// Philox-4x32-10 (Salmon et al., SC 2011) on LANES counters (first + lane, c1, c2, c3) at once: word[w][lane] are the
// four words of each. Half h of word w is number 2 * w + h of its counter, 16 bits.
constexpr int LANES = 16;
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

inline int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }  // room for n values in whole vectors

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

// ------------------------------------------------------------------------------------------------------------- pieces

inline int threads_for(int64_t elements) {  // small work is not worth waking threads for
#ifdef _OPENMP
    if (omp_in_parallel()) return 1;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(omp_get_max_threads(), elements / 8192)));
#else
    (void)elements;
    return 1;
#endif
}

inline void moments(const float *x_D, int64_t D, float eps, float *mean, float *rstd) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < D; ++d) sum += x_D[d];
    float m = sum / static_cast<float>(D), squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < D; ++d) squares += (x_D[d] - m) * (x_D[d] - m);
    *mean = m;
    *rstd = 1.0f / std::sqrt(squares / static_cast<float>(D) + eps);
}

inline void prefetch(const void *at, int64_t bytes) {
#if defined(__GNUC__)
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(at) + i);
#else
    (void)at, (void)bytes;
#endif
}

template <typename W>
struct Embedding {  // what a token's embedding is made of
    const W *table_AD;
    int64_t D;
    const int64_t *row_T, *other_T;       // other_T: null without mixup
    const float *r;                       // (R, D) or (R, 1)
    const int64_t *r_row_T;               // row of r for each token; null: the token itself
    int64_t r_width;
    const float *position_PD, *type_YD;
    const int64_t *position_T, *type_T;

    inline bool mixed(int64_t t) const { return other_T && other_T[t] != row_T[t]; }
    inline const float *share(int64_t t) const { return r + (r_row_T ? r_row_T[t] : t) * r_width; }

    // Rows lie anywhere in the table, where the processor does not foresee them: they are asked for a token early.
    inline void foresee(int64_t t) const {
        prefetch(table_AD + row_T[t] * D, D * sizeof(W));
        if (mixed(t)) prefetch(table_AD + other_T[t] * D, D * sizeof(W));
    }

    // Calls f with a function d -> word + position + type of token t: as a loop's body it is made in registers.
    template <typename F>
    inline void visit(int64_t t, F &&f) const {
        const W *a = table_AD + row_T[t] * D;
        const float *p = position_PD + position_T[t] * D, *y = type_YD + type_T[t] * D;
        if (!mixed(t)) {
            f([=](int64_t d) { return to_float(a[d]) + p[d] + y[d]; });
            return;
        }
        const W *b = table_AD + other_T[t] * D;
        const float *w = share(t);
        const auto mix = [=](int64_t d, float part) {  // as torch.lerp: exact at both ends
            const float source = to_float(a[d]), other = to_float(b[d]), gap = source - other;
            return (part < 0.5f ? other + part * gap : source - gap * (1.0f - part)) + p[d] + y[d];
        };
        if (r_width == 1) {
            const float part = w[0];
            f([=](int64_t d) { return mix(d, part); });
        } else {
            f([=](int64_t d) { return mix(d, w[d]); });
        }
    }
};

// ------------------------------------------------------------------------------------------- embedding mixup + LayerNorm

template <typename W, typename O>
void embed_forward(const Embedding<W> &e, int64_t T, const float *gamma_D, const float *beta_D, float eps,
                   const uint32_t *token_T3, Key key, O *out_TD, float *mean_T, float *rstd_T) {
    const int64_t D = e.D;
#pragma omp parallel num_threads(threads_for(T *D))
    {
        std::vector<float> x(D), factor(whole(D), 1.0f);
        float *x_D = x.data();
        const float *f_D = factor.data();
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            if (t + 1 < T) e.foresee(t + 1);
            e.visit(t, [=](auto value) {
#pragma omp simd
                for (int64_t d = 0; d < D; ++d) x_D[d] = value(d);
            });
            moments(x_D, D, eps, &mean_T[t], &rstd_T[t]);
            if (key.threshold) dropout_factors(0, D, token_T3 + 3 * t, key, factor.data());
            const float m = mean_T[t], s = rstd_T[t];
            O *out_D = out_TD + t * D;
#pragma omp simd
            for (int64_t d = 0; d < D; ++d) store(out_D + d, ((x_D[d] - m) * s * gamma_D[d] + beta_D[d]) * f_D[d]);
        }
    }
}

// Two passes over a block of tokens, small enough to stay in the cache: the two sums over D that LayerNorm's gradient
// needs, token by token; then all gradients, each thread in columns of its own, so that no two threads add to one place
// and the order of additions is that of the tokens.
template <typename W, typename O>
void embed_backward(const Embedding<W> &e, int64_t T, const float *gamma_D, const uint32_t *token_T3, Key key,
                    const float *mean_T, const float *rstd_T, const O *grad_TD, const int64_t *slot_T,
                    const int64_t *other_slot_T, float *grad_table, float *grad_position, float *grad_type,
                    float *grad_gamma_D, float *grad_beta_D) {
    const int64_t D = e.D, block = std::max<int64_t>(16, 16384 / D);
    std::vector<float> sum_T(T), product_T(T);
    const int threads = threads_for(T * D);
    const int64_t chunk = std::max<int64_t>(LANES, whole((D + threads - 1) / threads));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> factor(whole(D), 1.0f);
        const float *f_D = factor.data();
        for (int64_t first = 0; first < T; first += block) {
            const int64_t last = std::min(T, first + block);
#pragma omp for schedule(static)
            for (int64_t t = first; t < last; ++t) {
                if (t + 1 < last) e.foresee(t + 1);
                if (key.threshold) dropout_factors(0, D, token_T3 + 3 * t, key, factor.data());
                const float m = mean_T[t], s = rstd_T[t];
                const O *g_D = grad_TD + t * D;
                e.visit(t, [=, &sum_T, &product_T](auto value) {
                    float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
                    for (int64_t d = 0; d < D; ++d) {
                        const float g = to_float(g_D[d]) * f_D[d] * gamma_D[d];
                        sum += g;
                        product += g * ((value(d) - m) * s);
                    }
                    sum_T[t] = sum / static_cast<float>(D);
                    product_T[t] = product / static_cast<float>(D);
                });
            }
#pragma omp for schedule(static)
            for (int64_t begin = 0; begin < D; begin += chunk) {
                const int64_t end = std::min(D, begin + chunk);
                for (int64_t t = first; t < last; ++t) {
                    if (t + 1 < last) {
                        const int64_t bytes = (end - begin) * sizeof(float);
                        prefetch(grad_table + slot_T[t + 1] * D + begin, bytes);
                        if (e.mixed(t + 1)) prefetch(grad_table + other_slot_T[t + 1] * D + begin, bytes);
                    }
                    if (key.threshold) dropout_factors(begin, end, token_T3 + 3 * t, key, factor.data() + begin);
                    const float m = mean_T[t], s = rstd_T[t], sum = sum_T[t], product = product_T[t];
                    const O *g_D = grad_TD + t * D;
                    float *position_D = grad_position + e.position_T[t] * D, *type_D = grad_type + e.type_T[t] * D;
                    float *row_D = grad_table + slot_T[t] * D;
                    float *other_D = e.mixed(t) ? grad_table + other_slot_T[t] * D : nullptr;
                    const float *w = other_D ? e.share(t) : nullptr;
                    const auto gradients = [=](auto value, auto give) {
#pragma omp simd
                        for (int64_t d = begin; d < end; ++d) {
                            const float g = to_float(g_D[d]) * f_D[d], normed = (value(d) - m) * s;
                            const float dx = s * (g * gamma_D[d] - sum - normed * product);
                            grad_gamma_D[d] += g * normed;
                            grad_beta_D[d] += g;
                            position_D[d] += dx;
                            type_D[d] += dx;
                            give(d, dx);
                        }
                    };
                    e.visit(t, [=](auto value) {
                        if (!other_D) {
                            gradients(value, [=](int64_t d, float dx) { row_D[d] += dx; });
                        } else if (e.r_width == 1) {
                            const float part = w[0];
                            gradients(value, [=](int64_t d, float dx) {
                                row_D[d] += part * dx;
                                other_D[d] += (1.0f - part) * dx;
                            });
                        } else {
                            gradients(value, [=](int64_t d, float dx) {
                                row_D[d] += w[d] * dx;
                                other_D[d] += (1.0f - w[d]) * dx;
                            });
                        }
                    });
                }
            }
        }
    }
}

// -------------------------------------------------------------------------------------- dropout + residual + LayerNorm

// Rows from `keyed` on are filled up ones, see nn/encoder.py: what is dropped there does not matter.
inline const uint32_t *token_of(int64_t t, int64_t keyed, const uint32_t *token_T3) {
    return token_T3 + 3 * std::min(t, keyed - 1);
}

// sum = residual + dropout(y); out = LayerNorm(sum), in float32 and, if asked for, bfloat16 for the next product.
template <typename Y>
void norm_forward(int64_t T, int64_t D, const float *residual_TD, const Y *y_TD, const float *gamma_D,
                  const float *beta_D, float eps, const uint32_t *token_T3, int64_t keyed, Key key, float *sum_TD, float *out_TD,
                  bf16 *out16_TD, float *mean_T, float *rstd_T) {
#pragma omp parallel num_threads(threads_for(T *D))
    {
        std::vector<float> factor(whole(D), 1.0f);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            if (key.threshold) dropout_factors(0, D, token_of(t, keyed, token_T3), key, factor.data());
            const float *residual = residual_TD + t * D, *f_D = factor.data();
            const Y *y = y_TD + t * D;
            float *sum = sum_TD + t * D, *out = out_TD + t * D;
#pragma omp simd
            for (int64_t d = 0; d < D; ++d) sum[d] = residual[d] + to_float(y[d]) * f_D[d];
            moments(sum, D, eps, &mean_T[t], &rstd_T[t]);
            const float m = mean_T[t], s = rstd_T[t];
#pragma omp simd
            for (int64_t d = 0; d < D; ++d) out[d] = (sum[d] - m) * s * gamma_D[d] + beta_D[d];
            if (out16_TD) {
                bf16 *out16 = out16_TD + t * D;
#pragma omp simd
                for (int64_t d = 0; d < D; ++d) store(out16 + d, out[d]);
            }
        }
    }
}

// Sums over tokens are made in blocks of so many tokens, which are then added in order: the same for any threads.
constexpr int64_t BLOCK = 32;

template <typename Y>
void norm_backward(int64_t T, int64_t D, const float *sum_TD, const float *gamma_D, const float *mean_T,
                   const float *rstd_T, const uint32_t *token_T3, int64_t keyed, Key key, const float *grad_TD, const bf16 *grad16_TD,
                   float *grad_residual_TD, Y *grad_y_TD, float *grad_gamma_D, float *grad_beta_D) {
    const int64_t blocks = (T + BLOCK - 1) / BLOCK;
    std::vector<float> parts(2 * blocks * D, 0.0f);
#pragma omp parallel num_threads(threads_for(T *D))
    {
        std::vector<float> factor(whole(D), 1.0f), g(D);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            float *gamma_part = parts.data() + 2 * block * D, *beta_part = gamma_part + D;
            for (int64_t t = block * BLOCK; t < std::min(T, (block + 1) * BLOCK); ++t) {
                if (key.threshold) dropout_factors(0, D, token_of(t, keyed, token_T3), key, factor.data());
                const float m = mean_T[t], s = rstd_T[t];
                const float *x = sum_TD + t * D, *f_D = factor.data();
                float *g_D = g.data(), *dx = grad_residual_TD + t * D;
                const float *grad = grad_TD ? grad_TD + t * D : nullptr;
                const bf16 *grad16 = grad16_TD ? grad16_TD + t * D : nullptr;
                if (grad && grad16) {
#pragma omp simd
                    for (int64_t d = 0; d < D; ++d) g_D[d] = grad[d] + to_float(grad16[d]);
                } else {
                    for (int64_t d = 0; d < D; ++d) g_D[d] = grad ? grad[d] : grad16 ? to_float(grad16[d]) : 0.0f;
                }
                float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
                for (int64_t d = 0; d < D; ++d) {
                    float scaled = g_D[d] * gamma_D[d], normed = (x[d] - m) * s;
                    sum += scaled;
                    product += scaled * normed;
                    gamma_part[d] += g_D[d] * normed;
                    beta_part[d] += g_D[d];
                }
                sum /= static_cast<float>(D);
                product /= static_cast<float>(D);
                Y *dy = grad_y_TD + t * D;
#pragma omp simd
                for (int64_t d = 0; d < D; ++d) {
                    float value = s * (g_D[d] * gamma_D[d] - sum - (x[d] - m) * s * product);
                    dx[d] = value;
                    store(dy + d, value * f_D[d]);
                }
            }
        }
    }
    for (int64_t block = 0; block < blocks; ++block) {
        const float *part = parts.data() + 2 * block * D;
        for (int64_t d = 0; d < D; ++d) {
            grad_gamma_D[d] += part[d];
            grad_beta_D[d] += part[D + d];
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- attention
//
// The products stay with the matrix library; these bring the operands into its order and do what lies between.
// B sequences, H heads, S longest, d width of a head; offset_B1: first token of each sequence, and T at the end.

// parts_PBHSd = packed_TX with P = 1 or 3 parts beside each other in X = P * H * d; zeros where there is no token.
template <typename X>
void pad_heads(int64_t B, int64_t H, int64_t S, int64_t d, int64_t parts, const int64_t *offset_B1, const X *packed_TX,
               X *padded) {
    const int64_t width = parts * H * d;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads_for(B *S *width))
    for (int64_t b = 0; b < B; ++b) {
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t L = offset_B1[b + 1] - offset_B1[b];
            for (int64_t h = 0; h < H; ++h) {
                X *out = padded + ((part * B + b) * H + h) * S * d;
                const X *in = packed_TX + offset_B1[b] * width + (part * H + h) * d;
                for (int64_t i = 0; i < L; ++i) std::memcpy(out + i * d, in + i * width, d * sizeof(X));
                std::memset(out + L * d, 0, (S - L) * d * sizeof(X));
            }
        }
    }
}

// The reverse of pad_heads: what stands where there is no token is left out.
template <typename X>
void pack_heads(int64_t B, int64_t H, int64_t S, int64_t d, int64_t parts, const int64_t *offset_B1, const X *padded,
                X *packed_TX) {
    const int64_t width = parts * H * d;
#pragma omp parallel for schedule(static) num_threads(threads_for(B *S *width))
    for (int64_t b = 0; b < B; ++b) {
        for (int64_t i = 0; i < offset_B1[b + 1] - offset_B1[b]; ++i) {
            X *out = packed_TX + (offset_B1[b] + i) * width;
            for (int64_t part = 0; part < parts; ++part)
                for (int64_t h = 0; h < H; ++h)
                    std::memcpy(out + (part * H + h) * d, padded + (((part * B + b) * H + h) * S + i) * d, d * sizeof(X));
        }
    }
}

// factor[8][whole(S)]: dropout factors of heads 8 * group .. 8 * group + 7 of one query, for all L keys: the eight
// numbers of counter (group << 16 | key) are those of the eight heads.
inline void attention_factors(int64_t L, int64_t S, int64_t group, const uint32_t *token, const Key &key,
                              float *factor) {
    uint32_t word[4][LANES];
    for (int64_t base = 0; base < L; base += LANES) {
        philox(static_cast<uint32_t>(group << 16) + static_cast<uint32_t>(base), token, key, word);
        for (int h = 0; h < 8; ++h) factors_of(word[h / 2], h % 2, key, factor + h * whole(S) + base);
    }
}

// exp(x) for x <= 0 to 2 units in the last place: 2**n * exp(r), |r| <= ln(2) / 2, by its Taylor series.
inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2**23: the last bits of the sum are n, rounded
    float n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

// Rows of attention are short and seldom whole vectors: they are worked on in buffers that are.

// weight = softmax(scale * score) over the keys of the sequence; used = dropout(weight). Zeros outside of the sequence.
// `used` may be `weight` where nothing is dropped.
template <typename X>
void softmax_forward(int64_t B, int64_t H, int64_t S, const int64_t *offset_B1, float scale, const uint32_t *token_T3,
                     Key key, const X *score_BHSS, X *weight_BHSS, X *used_BHSS) {
#pragma omp parallel num_threads(threads_for(B *H *S *S))
    {
        std::vector<float> exponential(whole(S)), factor(8 * whole(S), 1.0f);
        std::vector<X> buffer(whole(S));
        float *e = exponential.data();
        X *x = buffer.data();
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; ++b) {
            for (int64_t i = 0; i < S; ++i) {
                const int64_t L = offset_B1[b + 1] - offset_B1[b], W = whole(L);
                for (int64_t h = 0; h < H; ++h) {
                    const int64_t at = ((b * H + h) * S + i) * S;
                    X *weight = weight_BHSS + at, *used = used_BHSS + at;
                    if (i >= L) {
                        std::memset(weight, 0, S * sizeof(X));
                        std::memset(used, 0, S * sizeof(X));
                        continue;
                    }
                    if (key.threshold && h % 8 == 0)
                        attention_factors(L, S, h / 8, token_T3 + 3 * (offset_B1[b] + i), key, factor.data());
                    std::memcpy(x, score_BHSS + at, L * sizeof(X));
                    float most = -INFINITY, sum = 0.0f;
#pragma omp simd
                    for (int64_t j = 0; j < W; ++j) e[j] = to_float(x[j]) * scale;
                    for (int64_t j = L; j < W; ++j) e[j] = -INFINITY;
#pragma omp simd reduction(max : most)
                    for (int64_t j = 0; j < W; ++j) most = e[j] > most ? e[j] : most;
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < W; ++j) {
                        e[j] = exp_negative(e[j] - most);
                        sum += e[j];
                    }
                    const float share = 1.0f / sum;
#pragma omp simd
                    for (int64_t j = 0; j < W; ++j) store(x + j, e[j] * share);
                    std::memcpy(weight, x, L * sizeof(X));
                    if (S > L) std::memset(weight + L, 0, (S - L) * sizeof(X));
                    if (key.threshold) {
                        const float *f = factor.data() + (h % 8) * whole(S);
#pragma omp simd
                        for (int64_t j = 0; j < W; ++j) store(x + j, e[j] * share * f[j]);
                        std::memcpy(used, x, L * sizeof(X));
                        if (S > L) std::memset(used + L, 0, (S - L) * sizeof(X));
                    }
                }
            }
        }
    }
}

// grad_score = scale * weight * (grad_weight - sum(grad_weight * weight)) with grad_weight = dropout(grad_used).
// It may be written over grad_used.
template <typename X>
void softmax_backward(int64_t B, int64_t H, int64_t S, const int64_t *offset_B1, float scale, const uint32_t *token_T3,
                      Key key, const X *weight_BHSS, const X *grad_used_BHSS, X *grad_score_BHSS) {
#pragma omp parallel num_threads(threads_for(B *H *S *S))
    {
        std::vector<float> gradient(whole(S)), factor(8 * whole(S), 1.0f);
        std::vector<X> buffers(2 * whole(S));  // zeros: what lies behind a row adds nothing to its sum
        float *g = gradient.data();
        X *w = buffers.data(), *x = w + whole(S);
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; ++b) {
            for (int64_t i = 0; i < S; ++i) {
                const int64_t L = offset_B1[b + 1] - offset_B1[b], W = whole(L);
                for (int64_t h = 0; h < H; ++h) {
                    const int64_t at = ((b * H + h) * S + i) * S;
                    X *out = grad_score_BHSS + at;
                    if (i >= L) {
                        std::memset(out, 0, S * sizeof(X));
                        continue;
                    }
                    if (key.threshold && h % 8 == 0)
                        attention_factors(L, S, h / 8, token_T3 + 3 * (offset_B1[b] + i), key, factor.data());
                    std::memcpy(w, weight_BHSS + at, L * sizeof(X));
                    std::memcpy(x, grad_used_BHSS + at, L * sizeof(X));
                    std::memset(w + L, 0, (W - L) * sizeof(X));
                    std::memset(x + L, 0, (W - L) * sizeof(X));
                    const float *f = factor.data() + (h % 8) * whole(S);
                    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < W; ++j) {
                        g[j] = to_float(x[j]) * f[j];
                        sum += g[j] * to_float(w[j]);
                    }
#pragma omp simd
                    for (int64_t j = 0; j < W; ++j) store(x + j, scale * to_float(w[j]) * (g[j] - sum));
                    std::memcpy(out, x, L * sizeof(X));
                    if (S > L) std::memset(out + L, 0, (S - L) * sizeof(X));
                }
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- AdamW

struct Adam {
    float keep;           // 1 - lr * weight decay
    float step;           // lr / (1 - beta1 ** t)
    float beta1, beta2;
    float root;           // sqrt(1 - beta2 ** t)
    float eps;
    float scale;          // of the gradient: clipping
};

inline void adam_row(int64_t begin, int64_t end, const Adam &a, float *x, const float *grad, float *first, float *second) {
    const float gain = 1.0f - a.beta1, gain2 = 1.0f - a.beta2, inverse = 1.0f / a.root;
    if (grad) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            const float g = grad[i] * a.scale;
            first[i] = a.beta1 * first[i] + gain * g;
            second[i] = a.beta2 * second[i] + gain2 * g * g;
            x[i] = x[i] * a.keep - a.step * first[i] / (std::sqrt(second[i]) * inverse + a.eps);
        }
    } else {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            first[i] *= a.beta1;
            second[i] *= a.beta2;
            x[i] = x[i] * a.keep - a.step * first[i] / (std::sqrt(second[i]) * inverse + a.eps);
        }
    }
}

// A table of `rows` rows of D values whose gradient is zero but in rows touched_U (sorted, each once); null: grad is dense.
void adamw(int64_t rows, int64_t D, const Adam &a, float *x, const float *grad, const int64_t *touched_U, int64_t U,
           float *first, float *second) {
    const int threads = threads_for(rows * D);
    if (!touched_U) {
        const int64_t N = rows * D, chunk = 4096;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t begin = 0; begin < N; begin += chunk) adam_row(begin, std::min(N, begin + chunk), a, x, grad, first, second);
        return;
    }
    const int64_t chunk = 64;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t begin = 0; begin < rows; begin += chunk) {
        const int64_t *next = std::lower_bound(touched_U, touched_U + U, begin);
        for (int64_t row = begin; row < std::min(rows, begin + chunk); ++row) {
            const float *g = nullptr;
            if (next < touched_U + U && *next == row) g = grad + (next++ - touched_U) * D;
            adam_row(0, D, a, x + row * D, g, first + row * D, second + row * D);
        }
    }
}

}  // namespace

// ---------------------------------------------------------------------------------------------- what Python calls
//
// Types: 0 float32, 1 bfloat16. Pointers that may be null are said so above.

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

struct EmbedArgs {  // in the order of EmbedArgs in __init__.py
    const void *table_AD;
    int64_t table_type, T, D;
    const int64_t *row_T, *other_T;
    const float *r;
    const int64_t *r_row_T;
    int64_t r_width;
    const float *position_PD;
    const int64_t *position_T;
    const float *type_YD;
    const int64_t *type_T;
    const float *gamma_D, *beta_D;
    float eps;
    const uint32_t *token_T3;
    Key key;
    float *mean_T, *rstd_T;
};

template <typename W>
static Embedding<W> embedding(const EmbedArgs *a) {
    return {static_cast<const W *>(a->table_AD), a->D,           a->row_T,  a->other_T,    a->r,     a->r_row_T,
            a->r_width,                          a->position_PD, a->type_YD, a->position_T, a->type_T};
}

template <typename W, typename O>
static void embed_forward_as(const EmbedArgs *a, void *out_TD) {
    embed_forward(embedding<W>(a), a->T, a->gamma_D, a->beta_D, a->eps, a->token_T3, a->key, static_cast<O *>(out_TD),
                  a->mean_T, a->rstd_T);
}

EXPORT void xsalt_embed_forward(const EmbedArgs *a, int64_t out_type, void *out_TD) {
    if (a->table_type) {
        out_type ? embed_forward_as<bf16, bf16>(a, out_TD) : embed_forward_as<bf16, float>(a, out_TD);
    } else {
        out_type ? embed_forward_as<float, bf16>(a, out_TD) : embed_forward_as<float, float>(a, out_TD);
    }
}

struct EmbedGrads {
    const int64_t *slot_T, *other_slot_T;  // where in grad_table the rows' gradients are added
    float *table, *position_PD, *type_YD, *gamma_D, *beta_D;
};

template <typename W, typename O>
static void embed_backward_as(const EmbedArgs *a, const void *grad_TD, const EmbedGrads *g) {
    embed_backward(embedding<W>(a), a->T, a->gamma_D, a->token_T3, a->key, a->mean_T, a->rstd_T,
                   static_cast<const O *>(grad_TD), g->slot_T, g->other_slot_T, g->table, g->position_PD, g->type_YD,
                   g->gamma_D, g->beta_D);
}

EXPORT void xsalt_embed_backward(const EmbedArgs *a, int64_t grad_type, const void *grad_TD, const EmbedGrads *g) {
    if (a->table_type) {
        grad_type ? embed_backward_as<bf16, bf16>(a, grad_TD, g) : embed_backward_as<bf16, float>(a, grad_TD, g);
    } else {
        grad_type ? embed_backward_as<float, bf16>(a, grad_TD, g) : embed_backward_as<float, float>(a, grad_TD, g);
    }
}

struct NormArgs {
    int64_t T, D;
    const float *gamma_D, *beta_D;
    float eps;
    const uint32_t *token_T3;
    int64_t keyed;
    Key key;
    float *sum_TD, *mean_T, *rstd_T;
};

EXPORT void xsalt_norm_forward(const NormArgs *a, const float *residual_TD, int64_t y_type, const void *y_TD,
                               float *out_TD, bf16 *out16_TD) {
    if (y_type) {
        norm_forward(a->T, a->D, residual_TD, static_cast<const bf16 *>(y_TD), a->gamma_D, a->beta_D, a->eps,
                     a->token_T3, a->keyed, a->key, a->sum_TD, out_TD, out16_TD, a->mean_T, a->rstd_T);
    } else {
        norm_forward(a->T, a->D, residual_TD, static_cast<const float *>(y_TD), a->gamma_D, a->beta_D, a->eps,
                     a->token_T3, a->keyed, a->key, a->sum_TD, out_TD, out16_TD, a->mean_T, a->rstd_T);
    }
}

EXPORT void xsalt_norm_backward(const NormArgs *a, const float *grad_TD, const bf16 *grad16_TD,
                                float *grad_residual_TD, int64_t y_type, void *grad_y_TD, float *grad_gamma_D,
                                float *grad_beta_D) {
    if (y_type) {
        norm_backward(a->T, a->D, a->sum_TD, a->gamma_D, a->mean_T, a->rstd_T, a->token_T3, a->keyed, a->key, grad_TD, grad16_TD,
                      grad_residual_TD, static_cast<bf16 *>(grad_y_TD), grad_gamma_D, grad_beta_D);
    } else {
        norm_backward(a->T, a->D, a->sum_TD, a->gamma_D, a->mean_T, a->rstd_T, a->token_T3, a->keyed, a->key, grad_TD, grad16_TD,
                      grad_residual_TD, static_cast<float *>(grad_y_TD), grad_gamma_D, grad_beta_D);
    }
}

struct AttentionArgs {
    int64_t B, H, S, d;
    const int64_t *offset_B1;
    float scale;
    const uint32_t *token_T3;
    Key key;
};

EXPORT void xsalt_pad_heads(const AttentionArgs *a, int64_t parts, int64_t type, const void *packed, void *padded) {
    if (type) {
        pad_heads(a->B, a->H, a->S, a->d, parts, a->offset_B1, static_cast<const bf16 *>(packed),
                  static_cast<bf16 *>(padded));
    } else {
        pad_heads(a->B, a->H, a->S, a->d, parts, a->offset_B1, static_cast<const float *>(packed),
                  static_cast<float *>(padded));
    }
}

EXPORT void xsalt_pack_heads(const AttentionArgs *a, int64_t parts, int64_t type, const void *padded, void *packed) {
    if (type) {
        pack_heads(a->B, a->H, a->S, a->d, parts, a->offset_B1, static_cast<const bf16 *>(padded),
                   static_cast<bf16 *>(packed));
    } else {
        pack_heads(a->B, a->H, a->S, a->d, parts, a->offset_B1, static_cast<const float *>(padded),
                   static_cast<float *>(packed));
    }
}

EXPORT void xsalt_softmax_forward(const AttentionArgs *a, int64_t type, const void *score, void *weight, void *used) {
    if (type) {
        softmax_forward(a->B, a->H, a->S, a->offset_B1, a->scale, a->token_T3, a->key,
                        static_cast<const bf16 *>(score), static_cast<bf16 *>(weight), static_cast<bf16 *>(used));
    } else {
        softmax_forward(a->B, a->H, a->S, a->offset_B1, a->scale, a->token_T3, a->key,
                        static_cast<const float *>(score), static_cast<float *>(weight), static_cast<float *>(used));
    }
}

EXPORT void xsalt_softmax_backward(const AttentionArgs *a, int64_t type, const void *weight, const void *grad_used,
                                   void *grad_score) {
    if (type) {
        softmax_backward(a->B, a->H, a->S, a->offset_B1, a->scale, a->token_T3, a->key,
                         static_cast<const bf16 *>(weight), static_cast<const bf16 *>(grad_used),
                         static_cast<bf16 *>(grad_score));
    } else {
        softmax_backward(a->B, a->H, a->S, a->offset_B1, a->scale, a->token_T3, a->key,
                         static_cast<const float *>(weight), static_cast<const float *>(grad_used),
                         static_cast<float *>(grad_score));
    }
}

// The masks alone: keep_TD[t, i] is 1 where element i of token t is kept (heads != 0: attention of that many heads, D
// keys each, laid out (heads, T, D)).
EXPORT void xsalt_mask(int64_t T, int64_t D, int64_t heads, const uint32_t *token_T3, Key key, uint8_t *keep) {
    std::vector<float> factor(heads ? 8 * whole(D) : whole(D));
    key.scale = 1.0f;
    for (int64_t t = 0; t < T; ++t) {
        if (!heads) {
            dropout_factors(0, D, token_T3 + 3 * t, key, factor.data());
            for (int64_t i = 0; i < D; ++i) keep[t * D + i] = factor[i] != 0.0f;
            continue;
        }
        for (int64_t h = 0; h < heads; ++h) {
            if (h % 8 == 0) attention_factors(D, D, h / 8, token_T3 + 3 * t, key, factor.data());
            for (int64_t i = 0; i < D; ++i) keep[(h * T + t) * D + i] = factor[(h % 8) * whole(D) + i] != 0.0f;
        }
    }
}

// One parameter's AdamW update in place, everything float32; touched_U null: the gradient is dense.
EXPORT void xsalt_adamw(int64_t rows, int64_t D, const Adam *a, float *x, const float *grad, const int64_t *touched_U,
                        int64_t U, float *first, float *second) {
    adamw(rows, D, *a, x, grad, touched_U, U, first, second);
}
