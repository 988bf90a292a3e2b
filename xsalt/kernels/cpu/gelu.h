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

// Calls f with vectors of x and the place of each. The last one may be shorter: it is filled up with zeros.
template <typename F>
inline void in_vectors(int64_t N, F &&f) {
    const int64_t chunk = 4096;
#pragma omp parallel for schedule(static) num_threads(threads_for(N))
    for (int64_t begin = 0; begin < N; begin += chunk)
        for (int64_t i = begin; i < std::min(N, begin + chunk); i += LANES) f(i, std::min<int64_t>(LANES, N - i));
}

template <typename X>
void gelu_forward(int64_t N, const X *x_N, X *out_N) {
    in_vectors(N, [=](int64_t i, int64_t count) {
        const Floats x = loaded(x_N + i, count);
        store(out_N + i, x * normal(x).below, count);
    });
}

// grad_N: in the gradient of the output, out that of x. out_N: the output, computed again.
template <typename X>
void gelu_backward(int64_t N, const X *x_N, X *grad_N, X *out_N) {
    in_vectors(N, [=](int64_t i, int64_t count) {
        const Floats x = loaded(x_N + i, count);
        const Normal phi = normal(x);
        store(out_N + i, x * phi.below, count);
        store(grad_N + i, loaded(grad_N + i, count) * (phi.below + x * phi.density), count);
    });
}

}  // namespace
