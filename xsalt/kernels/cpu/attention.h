// Self-attention of packed sequences, with dropout.
//
// Each head of each sequence by itself, out of the cache: scores, softmax, dropout and the product with the values, without
// a grid padded to the longest sequence and without attention weights in memory. The backward pass computes the weights
// again from the logarithm of the softmax's denominator (Dao et al., FlashAttention, NeurIPS 2022).
//
// Shapes: L tokens of the sequence, Q of them queries, R queries of all, d width of a head; W and D are L and d rounded up to whole vectors.

#pragma once

#include "philox.h"
#include "vectors.h"

namespace {

// Bit h of keep[i * W + j]: whether query i keeps key j in head 8 * group + h. Of the eight numbers of counter
// (group << 16 | j) each head has its own.
inline void keep_bits(int64_t L, int64_t W, int64_t group, const uint32_t *token_T3, const Key &key, uint8_t *keep) {
    uint32_t word[4][LANES];
    const uint32_t threshold = key.threshold;
    for (int64_t i = 0; i < L; ++i) {
        for (int64_t base = 0; base < W; base += LANES) {
            philox(static_cast<uint32_t>(group << 16) + static_cast<uint32_t>(base), token_T3 + 3 * i, key, word);
            uint8_t *bits = keep + i * W + base;
#pragma omp simd
            for (int l = 0; l < LANES; ++l) {
                uint32_t found = 0;
                for (int w = 0; w < 4; ++w) {
                    found |= static_cast<uint32_t>((word[w][l] & 0xffffu) >= threshold) << 2 * w;
                    found |= static_cast<uint32_t>((word[w][l] >> 16) >= threshold) << (2 * w + 1);
                }
                bits[l] = static_cast<uint8_t>(found);
            }
        }
    }
}

// What dropout multiplies these keys' weights with.
inline Floats factors_at(const uint8_t *keep, int64_t head, const Key &key) {
    return (widened(keep) & (1 << head)) != 0 ? Floats{} + key.scale : Floats{};
}

// How operands of a product are laid out: DEPTH numbers of the sum that it makes are one Element. Functions:
//   rows     in (L, d), rows `stride` apart -> (L, d / DEPTH), left operand of a sum over d
//   columns  the same -> (d / DEPTH, W), right operand of a sum over d
//   beside   the same -> (L / DEPTH, D), right operand of a sum over L
//   along    floats (n, W) -> (n, W / DEPTH), left operand of a sum over W
//   across   floats (n, W) -> (n / DEPTH, W), left operand of a sum over n, element (i, j) at j * W + i

struct Single {  // float32
    using Element = float;
    static constexpr int64_t DEPTH = 1;
    static Floats add_product(Floats sum, float a, const float *b) { return sum + a * at(b); }
    template <typename X>
    static const float *rows(const X *in, int64_t stride, int64_t L, int64_t d, float *out) {
        beside(in, stride, L, d, d, out);
        return out;
    }
    template <typename X>
    static void columns(const X *in, int64_t stride, int64_t L, int64_t d, int64_t W, float *out) {
        for (int64_t c = 0; c < d; ++c) {
            float *to = out + c * W;
            for (int64_t j = 0; j < L; ++j) to[j] = to_float(in[j * stride + c]);
            for (int64_t j = L; j < W; ++j) to[j] = 0.0f;
        }
    }
    template <typename X>
    static void beside(const X *in, int64_t stride, int64_t L, int64_t d, int64_t D, float *out) {
        for (int64_t i = 0; i < L; ++i) {
            const X *row = in + i * stride;
            float *to = out + i * D;
#pragma omp simd
            for (int64_t c = 0; c < d; ++c) to[c] = to_float(row[c]);
            for (int64_t c = d; c < D; ++c) to[c] = 0.0f;
        }
    }
    static const float *along(const float *in, int64_t, int64_t, float *) { return in; }
    static const float *across(const float *in, int64_t, int64_t, float *) { return in; }
};

#if defined(__AVX512BF16__)
struct Paired {  // bfloat16: the processor multiplies two neighbours and adds both products to a float32
    using Element = uint32_t;
    static constexpr int64_t DEPTH = 2;
    static Floats add_product(Floats sum, uint32_t a, const uint32_t *b) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                        (__m512bh)_mm512_loadu_si512(b));
    }
    static const uint32_t *rows(const bf16 *in, int64_t stride, int64_t L, int64_t d, uint32_t *out) {
        for (int64_t i = 0; i < L; ++i) std::memcpy(out + i * d / 2, in + i * stride, d * sizeof(bf16));
        return out;
    }
    static void columns(const bf16 *in, int64_t stride, int64_t L, int64_t d, int64_t W, uint32_t *out) {
        for (int64_t c = 0; c < d / 2; c += LANES) {
            const int64_t count = std::min<int64_t>(LANES, d / 2 - c);
            for (int64_t j = 0; j < W; j += LANES) {
                __m512i block[LANES];
                const __mmask16 there = static_cast<__mmask16>((1u << count) - 1);
                for (int64_t l = 0; l < LANES; ++l)
                    block[l] = _mm512_maskz_loadu_epi32(j + l < L ? there : 0, in + std::min(j + l, L - 1) * stride + 2 * c);
                transpose(block);
                for (int64_t l = 0; l < count; ++l) _mm512_storeu_si512(out + (c + l) * W + j, block[l]);
            }
        }
    }
    static void transpose(__m512i *row) {  // 16 rows of 16 elements in place
        __m512i half[LANES];
        for (int i = 0; i < LANES; i += 2) {
            half[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
            half[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
        }
        for (int i = 0; i < LANES; i += 4) {  // part q of row[i + k]: elements 4 * q + k of rows i to i + 3
            row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
            row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
            row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
            row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
        }
        for (int k = 0; k < 4; ++k) {
            const __m512i even = _mm512_shuffle_i32x4(row[k], row[4 + k], 0x88), odd = _mm512_shuffle_i32x4(row[k], row[4 + k], 0xdd);
            const __m512i even2 = _mm512_shuffle_i32x4(row[8 + k], row[12 + k], 0x88);
            const __m512i odd2 = _mm512_shuffle_i32x4(row[8 + k], row[12 + k], 0xdd);
            half[k] = _mm512_shuffle_i32x4(even, even2, 0x88);
            half[4 + k] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
            half[8 + k] = _mm512_shuffle_i32x4(even, even2, 0xdd);
            half[12 + k] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
        }
        for (int i = 0; i < LANES; ++i) row[i] = half[i];
    }
    static void beside(const bf16 *in, int64_t stride, int64_t L, int64_t d, int64_t D, uint32_t *out) {
        for (int64_t i = 0; i < L; i += 2) {
            const bf16 *low = in + i * stride, *high = low + stride;
            uint32_t *to = out + i / 2 * D;
            if (i + 1 < L) {
#pragma omp simd
                for (int64_t c = 0; c < d; ++c) to[c] = low[c] | static_cast<uint32_t>(high[c]) << 16;
            } else {
#pragma omp simd
                for (int64_t c = 0; c < d; ++c) to[c] = low[c];
            }
            for (int64_t c = d; c < D; ++c) to[c] = 0;
        }
    }
    static const uint32_t *along(const float *in, int64_t n, int64_t W, uint32_t *out) {
        for (int64_t i = 0; i < n * W; i += LANES) store(reinterpret_cast<bf16 *>(out) + i, at(in + i));
        return out;
    }
    static const uint32_t *across(const float *in, int64_t n, int64_t W, uint32_t *out) {
        for (int64_t i = 0; i < n; i += 2) {
            for (int64_t j = 0; j < W; j += LANES) {
                const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)at(in + i * W + j)));
                __m512i high = _mm512_setzero_si512();
                if (i + 1 < n)
                    high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)at(in + (i + 1) * W + j)));
                _mm512_storeu_si512(out + i / 2 * W + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
        return out;
    }
};
#endif

// C[M][N] (+)= A[M][K] B[K][N] in elements of P: element (m, k) of A is a[m * a_row + k * a_column]; N is in whole vectors.
#if defined(__AVX512F__)
constexpr int ROWS = 4, VECTORS = 4;
#else
constexpr int ROWS = 2, VECTORS = 2;
#endif

template <typename P>
struct Product {
    using E = typename P::Element;
    int64_t M, N, K;
    const E *a;
    int64_t a_row, a_column;
    const E *b;
    int64_t b_row;
    float *c;
    int64_t c_row;
    bool add;

    template <int R, int V>
    void tile(int64_t m, int64_t n) const {
        Floats sum[R][V];
        float *c_mn = c + m * c_row + n;
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) sum[r][v] = add ? at(c_mn + r * c_row + v * LANES) : Floats{};
        const E *a_m = a + m * a_row, *b_n = b + n;
        for (int64_t k = 0; k < K; ++k)
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < V; ++v)
                    sum[r][v] = P::add_product(sum[r][v], a_m[r * a_row + k * a_column], b_n + k * b_row + v * LANES);
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) at(c_mn + r * c_row + v * LANES) = sum[r][v];
    }
    template <int R>
    void rows(int64_t m) const {
        int64_t n = 0;
        for (; n + VECTORS * LANES <= N; n += VECTORS * LANES) tile<R, VECTORS>(m, n);
        const int64_t left = (N - n) / LANES;
        if constexpr (VECTORS > 2) {
            if (left == 3) tile<R, 3>(m, n);
            if (left == 2) tile<R, 2>(m, n);
        }
        if (left == 1) tile<R, 1>(m, n);
    }
    void compute() const {
        int64_t m = 0;
        for (; m + ROWS <= M; m += ROWS) rows<ROWS>(m);
        for (; m < M; ++m) rows<1>(m);
    }
};

constexpr int64_t QUERIES = 64;  // rows of scores at a time, an even number

struct Attention {  // in the order of _Attention in __init__.py
    int64_t B, H, S, d;
    const int64_t *offset_B1;  // first token of each sequence, and T at the end
    float scale;               // of the scores
    const uint32_t *token_T3;
    Key key;
    int64_t first_only;  // attention of the first token of each sequence alone: contexts are (B, H * d), norms (H, B)

    int64_t queries(int64_t L) const { return first_only ? 1 : L; }
    int64_t row(int64_t b) const { return first_only ? b : offset_B1[b]; }  // of the sequence's first context
    int64_t rows() const { return row(B); }
};

inline void store_head(const float *in_LD, int64_t L, int64_t d, int64_t D, int64_t stride, float *out) {
    for (int64_t i = 0; i < L; ++i) std::memcpy(out + i * stride, in_LD + i * D, d * sizeof(float));
}

inline void store_head(const float *in_LD, int64_t L, int64_t d, int64_t D, int64_t stride, bf16 *out) {
    for (int64_t i = 0; i < L; ++i) {
        const float *row = in_LD + i * D;
        int64_t c = 0;
        for (; c + LANES <= d; c += LANES) store(out + i * stride + c, at(row + c));
        for (; c < d; ++c) store(out + i * stride + c, row[c]);
    }
}

template <typename T>
inline T *take(T *&next, int64_t size) {
    next += size;
    return next - size;
}

// context = dropout(softmax(scale * q k')) v. norm_HR: the logarithm of each softmax's denominator.
template <typename P, typename X>
void attention_forward(const Attention &a, const X *qkv_TX, X *context_RX, float *norm_HR) {
    using E = typename P::Element;
    const int64_t groups = (a.H + 7) / 8, width = a.H * a.d, R = a.rows();
    const int64_t d = a.d, D = whole(d), DEPTH = P::DEPTH;
#pragma omp parallel num_threads(threads_for(a.offset_B1[a.B] * width))
    {
        const int64_t WS = whole(a.S);
        std::vector<E> elements((a.S + 2) * (d + D) + d * WS + QUERIES * WS);
        std::vector<float> floats(a.S * D + QUERIES * WS);
        std::vector<uint8_t> bits(a.key.threshold ? a.S * WS : 0);
        E *next = elements.data();
        E *q_room = take(next, a.S * d), *k_dW = take(next, d * WS), *v_LD = take(next, (a.S + 2) * D), *used_room = next;
        float *o_LD = floats.data(), *e_nW = o_LD + a.S * D;
        uint8_t *keep = a.key.threshold ? bits.data() : nullptr;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < a.B; ++b) {
            for (int64_t group = 0; group < groups; ++group) {
                const int64_t first = a.offset_B1[b], L = a.offset_B1[b + 1] - first, W = whole(L);
                const int64_t Q = a.queries(L), row = a.row(b);
                if (keep) keep_bits(Q, W, group, a.token_T3 + 3 * first, a.key, keep);
                for (int64_t h = 8 * group; h < std::min(a.H, 8 * group + 8); ++h) {
                    const X *in = qkv_TX + first * 3 * width + h * d;
                    const E *q_Qd = P::rows(in, 3 * width, Q, d, q_room);
                    P::columns(in + width, 3 * width, L, d, W, k_dW);
                    P::beside(in + 2 * width, 3 * width, L, d, D, v_LD);
                    const int64_t q_row = d / DEPTH;
                    for (int64_t begin = 0; begin < Q; begin += QUERIES) {
                        const int64_t n = std::min(QUERIES, Q - begin);
                        Product<P>{n, W, d / DEPTH, q_Qd + begin * q_row, q_row, 1, k_dW, W, e_nW, W, false}.compute();
                        float share[QUERIES];
                        for (int64_t i = 0; i < n; ++i) {
                            float *e_W = e_nW + i * W;
                            for (int64_t j = L; j < W; ++j) e_W[j] = -INFINITY;
                            Floats most = at(e_W), sum = {};
                            for (int64_t j = LANES; j < W; j += LANES) most = at(e_W + j) > most ? at(e_W + j) : most;
                            const float largest = largest_of(most);
                            for (int64_t j = 0; j < W; j += LANES) {
                                Floats x = exp_negative((at(e_W + j) - largest) * a.scale);
                                sum += x;
                                if (keep) x *= factors_at(keep + (begin + i) * W + j, h % 8, a.key);
                                at(e_W + j) = x;
                            }
                            const float total = sum_of(sum);
                            share[i] = 1.0f / total;
                            norm_HR[h * R + row + begin + i] = largest * a.scale + std::log(total);
                        }
                        const E *used = P::along(e_nW, n, W, used_room);
                        float *o = o_LD + begin * D;
                        Product<P>{n, D, (L + DEPTH - 1) / DEPTH, used, W / DEPTH, 1, v_LD, D, o, D, false}.compute();
                        for (int64_t i = 0; i < n; ++i)
                            for (int64_t c = 0; c < D; c += LANES) at(o + i * D + c) *= share[i];
                    }
                    store_head(o_LD, Q, d, D, width, context_RX + row * width + h * d);
                }
            }
        }
    }
}

// With weight = softmax(scale * q k'), used = dropout(weight) and grad_weight = dropout(grad_context v'):
// grad_v = used' grad_context, grad_score = scale * weight * (grad_weight - sum(weight * grad_weight)),
// grad_q = grad_score k, grad_k = grad_score' q.
template <typename P, typename X>
void attention_backward(const Attention &a, const X *qkv_TX, const float *norm_HR, const X *grad_RX, X *grad_qkv_TX) {
    using E = typename P::Element;
    const int64_t groups = (a.H + 7) / 8, width = a.H * a.d, R = a.rows();
    const int64_t d = a.d, D = whole(d), DEPTH = P::DEPTH;
#pragma omp parallel num_threads(threads_for(a.offset_B1[a.B] * width))
    {
        const int64_t WS = whole(a.S);
        std::vector<E> elements(2 * a.S * d + 2 * d * WS + 3 * (a.S + 2) * D + 3 * QUERIES * WS);
        std::vector<float> floats(3 * a.S * D + (2 * QUERIES + 1) * WS);
        std::vector<uint8_t> bits(a.key.threshold ? a.S * WS : 0);
        E *next = elements.data();
        E *q_room = take(next, a.S * d), *g_room = take(next, a.S * d), *k_dW = take(next, d * WS), *v_dW = take(next, d * WS);
        E *q_QD = take(next, (a.S + 2) * D), *k_LD = take(next, (a.S + 2) * D), *g_QD = take(next, (a.S + 2) * D);
        E *along_room = take(next, QUERIES * WS), *across_room = take(next, QUERIES * WS), *used_room = next;
        float *free = floats.data();
        float *dq = take(free, a.S * D), *dk = take(free, a.S * D), *dv = take(free, a.S * D);
        float *used = take(free, QUERIES * WS), *ds = take(free, QUERIES * WS), *weight_W = free;
        uint8_t *keep = a.key.threshold ? bits.data() : nullptr;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < a.B; ++b) {
            for (int64_t group = 0; group < groups; ++group) {
                const int64_t first = a.offset_B1[b], L = a.offset_B1[b + 1] - first, W = whole(L);
                const int64_t Q = a.queries(L), out_row = a.row(b);
                if (keep) keep_bits(Q, W, group, a.token_T3 + 3 * first, a.key, keep);
                for (int64_t h = 8 * group; h < std::min(a.H, 8 * group + 8); ++h) {
                    const X *in = qkv_TX + first * 3 * width + h * d, *grad = grad_RX + out_row * width + h * d;
                    const E *q_Qd = P::rows(in, 3 * width, Q, d, q_room);
                    const E *g_Qd = P::rows(grad, width, Q, d, g_room);
                    P::columns(in + width, 3 * width, L, d, W, k_dW);
                    P::columns(in + 2 * width, 3 * width, L, d, W, v_dW);
                    P::beside(in, 3 * width, Q, d, D, q_QD);
                    P::beside(in + width, 3 * width, L, d, D, k_LD);
                    P::beside(grad, width, Q, d, D, g_QD);
                    for (int64_t begin = 0; begin < Q; begin += QUERIES) {
                        const int64_t n = std::min(QUERIES, Q - begin), row = d / DEPTH, sums = (n + DEPTH - 1) / DEPTH;
                        const E *q_nD = q_QD + begin / DEPTH * D, *g_nD = g_QD + begin / DEPTH * D;
                        Product<P>{n, W, row, q_Qd + begin * row, row, 1, k_dW, W, used, W, false}.compute();
                        Product<P>{n, W, row, g_Qd + begin * row, row, 1, v_dW, W, ds, W, false}.compute();
                        for (int64_t i = 0; i < n; ++i) {
                            float *used_W = used + i * W, *ds_W = ds + i * W;
                            const float norm = norm_HR[h * R + out_row + begin + i];
                            for (int64_t j = L; j < W; ++j) used_W[j] = -INFINITY;
                            Floats sum = {};
                            for (int64_t j = 0; j < W; j += LANES) {
                                const Floats weight = exp_negative(at(used_W + j) * a.scale - norm);
                                Floats grad_weight = at(ds_W + j), kept = weight;
                                if (keep) {
                                    const Floats factor = factors_at(keep + (begin + i) * W + j, h % 8, a.key);
                                    grad_weight *= factor;
                                    kept *= factor;
                                }
                                sum += weight * grad_weight;
                                at(weight_W + j) = weight;
                                at(used_W + j) = kept;
                                at(ds_W + j) = grad_weight;
                            }
                            const float mean = sum_of(sum);
                            for (int64_t j = 0; j < W; j += LANES)
                                at(ds_W + j) = at(weight_W + j) * (at(ds_W + j) - mean) * a.scale;
                        }
                        const E *along = P::along(ds, n, W, along_room), *across = P::across(ds, n, W, across_room);
                        const E *used_across = P::across(used, n, W, used_room);
                        float *dq_nD = dq + begin * D;
                        Product<P>{n, D, (L + DEPTH - 1) / DEPTH, along, W / DEPTH, 1, k_LD, D, dq_nD, D, false}.compute();
                        Product<P>{L, D, sums, across, 1, W, q_nD, D, dk, D, begin > 0}.compute();
                        Product<P>{L, D, sums, used_across, 1, W, g_nD, D, dv, D, begin > 0}.compute();
                    }
                    X *out = grad_qkv_TX + first * 3 * width + h * d;
                    store_head(dq, Q, d, D, 3 * width, out);
                    for (int64_t i = Q; i < L; ++i) std::memset(out + i * 3 * width, 0, d * sizeof(X));
                    store_head(dk, L, d, D, 3 * width, out + width);
                    store_head(dv, L, d, D, 3 * width, out + 2 * width);
                }
            }
        }
    }
}

}  // namespace
