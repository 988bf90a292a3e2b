// The exact GELU, x * Phi(x) with Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).

#pragma once

#include "vectors.h"

namespace {

struct Normal {  // Phi(x) and its derivative
    Floats below, density;
};

// Phi by formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions: within 1e-7.
inline Normal normal(Floats x) {
    const Floats size = x < 0.0f ? -x : x, bell = exp_negative(x * x * -0.5f);
    const Floats t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Floats tail = p * t * bell * 0.5f;
    return {x < 0.0f ? tail : 1.0f - tail, bell * 0.39894228f};
}

// Calls f with vectors of columns: the place in x_TF, the column and how many. The last of a row may be shorter.
template <typename F>
inline void in_vectors(int64_t T, int64_t width, F &&f) {
#pragma omp parallel for schedule(static) num_threads(threads_for(T *width))
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < width; i += LANES) f(t * width + i, i, std::min<int64_t>(LANES, width - i));
}

// out = gelu(x + bias)
template <typename X>
void gelu_forward(int64_t T, int64_t F, const X *x_TF, const float *bias_F, X *out_TF) {
    in_vectors(T, F, [=](int64_t at, int64_t f, int64_t count) {
        const Floats x = loaded(x_TF + at, count) + loaded(bias_F + f, count);
        store(out_TF + at, x * normal(x).below, count);
    });
}

// grad_TF: in the gradient of the output, out that of x. out_TF: the output, computed again.
template <typename X>
void gelu_backward(int64_t T, int64_t F, const X *x_TF, const float *bias_F, X *grad_TF, X *out_TF) {
    in_vectors(T, F, [=](int64_t at, int64_t f, int64_t count) {
        const Floats x = loaded(x_TF + at, count) + loaded(bias_F + f, count);
        const Normal phi = normal(x);
        store(out_TF + at, x * phi.below, count);
        store(grad_TF + at, loaded(grad_TF + at, count) * (phi.below + x * phi.density), count);
    });
}

}  // namespace
