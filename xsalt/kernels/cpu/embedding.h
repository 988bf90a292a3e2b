// Embedding: look-up, mixup, position, type, LayerNorm and dropout in one pass each way.

#pragma once

#include "norm.h"

namespace {

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

}  // namespace
