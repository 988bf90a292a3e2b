// Sums over tokens: the gradients of biases.

#pragma once

#include "vectors.h"

namespace {

// sum_F = the sum of the rows of x_TF. Each column is added up by one thread in the order of the rows.
template <typename X>
void column_sums(int64_t T, int64_t F, const X *x_TF, float *sum_F) {
    constexpr int64_t VECTORS_AT_A_TIME = 4, STRIPE = VECTORS_AT_A_TIME * LANES;
#pragma omp parallel for schedule(static) num_threads(threads_for(T *F))
    for (int64_t begin = 0; begin < F; begin += STRIPE) {
        if (begin + STRIPE <= F) {
            Floats sum[VECTORS_AT_A_TIME] = {};
            for (int64_t t = 0; t < T; ++t)
                for (int64_t v = 0; v < VECTORS_AT_A_TIME; ++v) sum[v] += loaded(x_TF + t * F + begin + v * LANES);
            for (int64_t v = 0; v < VECTORS_AT_A_TIME; ++v) at(sum_F + begin + v * LANES) = sum[v];
        } else {
            for (int64_t f = begin; f < F; ++f) {
                sum_F[f] = 0.0f;
                for (int64_t t = 0; t < T; ++t) sum_F[f] += to_float(x_TF[t * F + f]);
            }
        }
    }
}

}  // namespace
