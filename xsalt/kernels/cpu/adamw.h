// AdamW and the norm of the gradients, each in one pass over all parameters.

#pragma once

#include "vectors.h"

namespace {

struct Adam {
    float beta1, beta2, eps;
    float scale;  // of the gradient: clipping
};

struct AdamTensor {  // a parameter of `rows` rows of D values; in the order of adamw_ in __init__.py
    float *x;
    const float *grad;
    float *first, *second;
    const int64_t *touched_U;  // the rows that grad holds, sorted, each once: it is zero elsewhere; null: it is dense
    int64_t U, rows, D;
};

struct AdamStep {
    float keep;  // 1 - lr * weight decay
    float step;  // lr / (1 - beta1 ** t)
    float root;  // sqrt(1 - beta2 ** t)
};

// The settings come by value: behind a reference they might be among the floats written, and no loop would be vectorised.
inline void adam_row(int64_t begin, int64_t end, const Adam a, const AdamStep s, float *x, const float *grad, float *first,
                     float *second) {
    const float gain = 1.0f - a.beta1, gain2 = 1.0f - a.beta2, inverse = 1.0f / s.root;
    if (grad) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            const float g = grad[i] * a.scale;
            first[i] = a.beta1 * first[i] + gain * g;
            second[i] = a.beta2 * second[i] + gain2 * g * g;
            x[i] = x[i] * s.keep - s.step * first[i] / (std::sqrt(second[i]) * inverse + a.eps);
        }
    } else {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            first[i] *= a.beta1;
            second[i] *= a.beta2;
            x[i] = x[i] * s.keep - s.step * first[i] / (std::sqrt(second[i]) * inverse + a.eps);
        }
    }
}

void adamw(int64_t count, const AdamTensor *tensor_N, const AdamStep *step_N, const Adam &a) {
    int64_t elements = 0;
    for (int64_t n = 0; n < count; ++n) elements += tensor_N[n].rows * tensor_N[n].D;
#pragma omp parallel num_threads(threads_for(elements))
    for (int64_t n = 0; n < count; ++n) {
        const AdamTensor &p = tensor_N[n];
        if (!p.touched_U) {
            const int64_t N = p.rows * p.D, chunk = 4096;
#pragma omp for schedule(static) nowait
            for (int64_t begin = 0; begin < N; begin += chunk)
                adam_row(begin, std::min(N, begin + chunk), a, step_N[n], p.x, p.grad, p.first, p.second);
            continue;
        }
        const int64_t chunk = 64;
#pragma omp for schedule(static) nowait
        for (int64_t begin = 0; begin < p.rows; begin += chunk) {
            const int64_t *next = std::lower_bound(p.touched_U, p.touched_U + p.U, begin);
            for (int64_t row = begin; row < std::min(p.rows, begin + chunk); ++row) {
                const float *g = nullptr;
                if (next < p.touched_U + p.U && *next == row) g = p.grad + (next++ - p.touched_U) * p.D;
                adam_row(0, p.D, a, step_N[n], p.x + row * p.D, g, p.first + row * p.D, p.second + row * p.D);
            }
        }
    }
}

struct Run {  // of floats
    const float *x;
    int64_t count;
};

// The sum of squares of all runs. Parts of so many values are summed in float32, the parts in float64, in order.
double sum_of_squares(int64_t runs, const Run *run_N) {
    constexpr int64_t PART = 4096;
    std::vector<int64_t> first(runs + 1, 0);
    for (int64_t n = 0; n < runs; ++n) first[n + 1] = first[n] + (run_N[n].count + PART - 1) / PART;
    std::vector<double> parts(first[runs]);
#pragma omp parallel num_threads(threads_for(PART *first[runs]))
    for (int64_t n = 0; n < runs; ++n) {
#pragma omp for schedule(static) nowait
        for (int64_t part = 0; part < first[n + 1] - first[n]; ++part) {
            const float *x = run_N[n].x + part * PART;
            const int64_t count = std::min(PART, run_N[n].count - part * PART);
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
            parts[first[n] + part] = sum;
        }
    }
    double total = 0.0;
    for (const double part : parts) total += part;
    return total;
}

}  // namespace
