// Dropout, residual and LayerNorm in one pass each way.

#pragma once

#include "philox.h"

namespace {

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

// Rows from `keyed` on are filled up ones, see layer.py: what is dropped there does not matter.
inline const uint32_t *token_of(int64_t t, int64_t keyed, const uint32_t *token_T3) {
    return token_T3 + 3 * std::min(t, keyed - 1);
}

// sum = residual + dropout(y + bias); out = LayerNorm(sum), in float32 and, if asked for, bfloat16 for the next product.
template <typename Y>
void norm_forward(int64_t T, int64_t D, const float *residual_TD, const Y *y_TD, const float *bias_D, const float *gamma_D,
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
            for (int64_t d = 0; d < D; ++d) sum[d] = residual[d] + (to_float(y[d]) + bias_D[d]) * f_D[d];
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
                   float *grad_residual_TD, Y *grad_y_TD, float *grad_gamma_D, float *grad_beta_D, float *grad_bias_D) {
    const int64_t blocks = (T + BLOCK - 1) / BLOCK;
    std::vector<float> parts(3 * blocks * D, 0.0f);
#pragma omp parallel num_threads(threads_for(T *D))
    {
        std::vector<float> factor(whole(D), 1.0f), g(D);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            float *gamma_part = parts.data() + 3 * block * D, *beta_part = gamma_part + D, *bias_part = beta_part + D;
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
                    bias_part[d] += value * f_D[d];
                }
            }
        }
    }
    for (int64_t block = 0; block < blocks; ++block) {
        const float *part = parts.data() + 3 * block * D;
        for (int64_t d = 0; d < D; ++d) {
            grad_gamma_D[d] += part[d];
            grad_beta_D[d] += part[D + d];
            grad_bias_D[d] += part[2 * D + d];
        }
    }
}

}  // namespace
