// Embedding: look-up, mixup, position, type, LayerNorm and dropout in one pass each way.

#pragma once

#include "norm.h"

namespace {

constexpr int64_t AHEAD = 4;  // tokens

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

    // Rows lie anywhere in the table, where the processor does not foresee them: they are asked for some tokens early.
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
            if (t + AHEAD < T) e.foresee(t + AHEAD);
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

// Two passes over a block of tokens, small enough to stay in the cache. In the first one threads have tokens of their own:
// rows, which lie anywhere in the table, are read once, and give the gradient of the sum of word, position and type. In the
// second one they have columns of their own and add it where it belongs: no two threads add to one place, and the order of
// additions is that of the tokens. unwritten: 0 if grad_table is zeros, else so many slots, all of them touched: the first
// gradient is written there and only the next ones are added.
template <typename W, typename O>
void embed_backward(const Embedding<W> &e, int64_t T, const float *gamma_D, const uint32_t *token_T3, Key key,
                    const float *mean_T, const float *rstd_T, const O *grad_TD, const int64_t *slot_T,
                    const int64_t *other_slot_T, int64_t unwritten, float *grad_table, float *grad_position,
                    float *grad_type, float *grad_gamma_D, float *grad_beta_D) {
    constexpr int64_t PART = 8;  // tokens whose sums for gamma and beta are made together
    const int64_t D = e.D, block = std::max<int64_t>(2 * PART, 32768 / D / PART * PART), parts = block / PART;
    std::vector<float> dx(block * D), sums(parts * 2 * D);
    const int threads = threads_for(T * D);
    const int64_t chunk = std::max<int64_t>(LANES, whole((D + threads - 1) / threads));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> factor(whole(D), 1.0f);
        std::vector<uint8_t> written(unwritten, 0);
        const auto fresh = [&written](int64_t slot) {
            if (written.empty() || written[slot]) return false;
            written[slot] = 1;
            return true;
        };
        const float *f_D = factor.data();
        for (int64_t first = 0; first < T; first += block) {
            const int64_t last = std::min(T, first + block);
#pragma omp for schedule(static)
            for (int64_t part = 0; part < parts; ++part) {
                float *gamma_part = sums.data() + part * 2 * D, *beta_part = gamma_part + D;
                std::memset(gamma_part, 0, 2 * D * sizeof(float));
                for (int64_t t = first + part * PART; t < std::min(last, first + (part + 1) * PART); ++t) {
                    if (t + AHEAD < T) e.foresee(t + AHEAD);
                    if (key.threshold) dropout_factors(0, D, token_T3 + 3 * t, key, factor.data());
                    const float m = mean_T[t], s = rstd_T[t];
                    const O *g_D = grad_TD + t * D;
                    float *dx_D = dx.data() + (t - first) * D, sum = 0.0f, product = 0.0f;
                    e.visit(t, [=, &sum, &product](auto value) {
                        float total = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : total, along)
                        for (int64_t d = 0; d < D; ++d) {
                            const float g = to_float(g_D[d]) * f_D[d], normed = (value(d) - m) * s;
                            gamma_part[d] += g * normed;
                            beta_part[d] += g;
                            dx_D[d] = normed;
                            total += g * gamma_D[d];
                            along += g * gamma_D[d] * normed;
                        }
                        sum = total / static_cast<float>(D);
                        product = along / static_cast<float>(D);
                    });
#pragma omp simd
                    for (int64_t d = 0; d < D; ++d)
                        dx_D[d] = s * (to_float(g_D[d]) * f_D[d] * gamma_D[d] - sum - dx_D[d] * product);
                }
            }
#pragma omp for schedule(static)
            for (int64_t begin = 0; begin < D; begin += chunk) {
                const int64_t end = std::min(D, begin + chunk), bytes = (end - begin) * sizeof(float);
                for (int64_t part = 0; part < parts; ++part) {
                    const float *gamma_part = sums.data() + part * 2 * D, *beta_part = gamma_part + D;
#pragma omp simd
                    for (int64_t d = begin; d < end; ++d) {
                        grad_gamma_D[d] += gamma_part[d];
                        grad_beta_D[d] += beta_part[d];
                    }
                }
                for (int64_t t = first; t < last; ++t) {
                    if (t + AHEAD < last) {
                        prefetch(grad_table + slot_T[t + AHEAD] * D + begin, bytes);
                        if (e.mixed(t + AHEAD)) prefetch(grad_table + other_slot_T[t + AHEAD] * D + begin, bytes);
                    }
                    const float *dx_D = dx.data() + (t - first) * D;
                    float *position_D = grad_position + e.position_T[t] * D, *type_D = grad_type + e.type_T[t] * D;
                    float *row_D = grad_table + slot_T[t] * D;
                    if (fresh(slot_T[t])) std::memset(row_D + begin, 0, bytes);
#pragma omp simd
                    for (int64_t d = begin; d < end; ++d) {
                        position_D[d] += dx_D[d];
                        type_D[d] += dx_D[d];
                    }
                    if (!e.mixed(t)) {
#pragma omp simd
                        for (int64_t d = begin; d < end; ++d) row_D[d] += dx_D[d];
                        continue;
                    }
                    float *other_D = grad_table + other_slot_T[t] * D;
                    if (fresh(other_slot_T[t])) std::memset(other_D + begin, 0, bytes);
                    const float *r = e.share(t);
                    if (e.r_width == 1) {
                        const float part = r[0];
#pragma omp simd
                        for (int64_t d = begin; d < end; ++d) {
                            row_D[d] += part * dx_D[d];
                            other_D[d] += (1.0f - part) * dx_D[d];
                        }
                    } else {
#pragma omp simd
                        for (int64_t d = begin; d < end; ++d) {
                            row_D[d] += r[d] * dx_D[d];
                            other_D[d] += (1.0f - r[d]) * dx_D[d];
                        }
                    }
                }
            }
        }
    }
}

// The distinct ones of N ids below `rows`, sorted, and the place of each id among them. Returns how many they are.
inline int64_t distinct(int64_t N, int64_t rows, const int64_t *id_N, int64_t *distinct_U, int64_t *place_N) {
    std::vector<uint64_t> seen((rows + 63) / 64, 0);
    for (int64_t n = 0; n < N; ++n) seen[id_N[n] / 64] |= uint64_t{1} << id_N[n] % 64;
    std::vector<int64_t> before(seen.size());
    int64_t count = 0;
    for (size_t word = 0; word < seen.size(); ++word) {
        before[word] = count;
        for (uint64_t left = seen[word]; left; left &= left - 1) {
            distinct_U[count++] = static_cast<int64_t>(word) * 64 + __builtin_ctzll(left);
        }
    }
    for (int64_t n = 0; n < N; ++n) {
        const uint64_t below = seen[id_N[n] / 64] & ((uint64_t{1} << id_N[n] % 64) - 1);
        place_N[n] = before[id_N[n] / 64] + __builtin_popcountll(below);
    }
    return count;
}

}  // namespace
