// AdamW in one pass.

#pragma once

#include "formats.h"

namespace {

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
