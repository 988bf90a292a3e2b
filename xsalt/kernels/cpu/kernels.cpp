// The fused kernels for the CPU, as functions for Python: embedding mixup, attention, dropout + residual + LayerNorm, AdamW.
//
// Plain C++ over raw pointers, so that building needs no torch; xsalt/kernels/cpu/__init__.py calls the functions through
// ctypes. What each must compute is written in PyTorch in xsalt/kernels/reference.py.
//
// Shapes in names: T tokens, D width, S longest sequence. Every result is the same for any number of threads: rows are
// independent, and sums over tokens are made in an order of their own.

#include "adamw.h"
#include "attention.h"
#include "columns.h"
#include "embedding.h"
#include "gelu.h"
#include "norm.h"

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
    int64_t unwritten;
    float *table, *position_PD, *type_YD, *gamma_D, *beta_D;
};

template <typename W, typename O>
static void embed_backward_as(const EmbedArgs *a, const void *grad_TD, const EmbedGrads *g) {
    embed_backward(embedding<W>(a), a->T, a->gamma_D, a->token_T3, a->key, a->mean_T, a->rstd_T,
                   static_cast<const O *>(grad_TD), g->slot_T, g->other_slot_T, g->unwritten, g->table,
                   g->position_PD, g->type_YD, g->gamma_D, g->beta_D);
}

EXPORT void xsalt_embed_backward(const EmbedArgs *a, int64_t grad_type, const void *grad_TD, const EmbedGrads *g) {
    if (a->table_type) {
        grad_type ? embed_backward_as<bf16, bf16>(a, grad_TD, g) : embed_backward_as<bf16, float>(a, grad_TD, g);
    } else {
        grad_type ? embed_backward_as<float, bf16>(a, grad_TD, g) : embed_backward_as<float, float>(a, grad_TD, g);
    }
}

EXPORT int64_t xsalt_distinct(int64_t N, int64_t rows, const int64_t *id_N, int64_t *distinct_U, int64_t *place_N) {
    return distinct(N, rows, id_N, distinct_U, place_N);
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
                               const float *bias_D, float *out_TD, bf16 *out16_TD) {
    if (y_type) {
        norm_forward(a->T, a->D, residual_TD, static_cast<const bf16 *>(y_TD), bias_D, a->gamma_D, a->beta_D, a->eps,
                     a->token_T3, a->keyed, a->key, a->sum_TD, out_TD, out16_TD, a->mean_T, a->rstd_T);
    } else {
        norm_forward(a->T, a->D, residual_TD, static_cast<const float *>(y_TD), bias_D, a->gamma_D, a->beta_D, a->eps,
                     a->token_T3, a->keyed, a->key, a->sum_TD, out_TD, out16_TD, a->mean_T, a->rstd_T);
    }
}

EXPORT void xsalt_norm_backward(const NormArgs *a, const float *grad_TD, const bf16 *grad16_TD,
                                float *grad_residual_TD, int64_t y_type, void *grad_y_TD, float *grad_gamma_D,
                                float *grad_beta_D, float *grad_bias_D) {
    if (y_type) {
        norm_backward(a->T, a->D, a->sum_TD, a->gamma_D, a->mean_T, a->rstd_T, a->token_T3, a->keyed, a->key, grad_TD, grad16_TD,
                      grad_residual_TD, static_cast<bf16 *>(grad_y_TD), grad_gamma_D, grad_beta_D, grad_bias_D);
    } else {
        norm_backward(a->T, a->D, a->sum_TD, a->gamma_D, a->mean_T, a->rstd_T, a->token_T3, a->keyed, a->key, grad_TD, grad16_TD,
                      grad_residual_TD, static_cast<float *>(grad_y_TD), grad_gamma_D, grad_beta_D, grad_bias_D);
    }
}

// bfloat16 is multiplied as it is where the processor can and heads have an even width, else in float32.
template <typename F>
static void with_attention_of(const Attention *a, int64_t type, F &&call) {
    (void)a;
    if (!type) {
        call(Single{}, float{});
        return;
    }
#if defined(__AVX512BF16__)
    if (a->d % 2 == 0) {
        call(Paired{}, bf16{});
        return;
    }
#endif
    call(Single{}, bf16{});
}

EXPORT void xsalt_attention_forward(const Attention *a, int64_t type, const void *qkv_TX, void *context_TX, float *norm_HT) {
    with_attention_of(a, type, [=](auto products, auto number) {
        using X = decltype(number);
        attention_forward<decltype(products)>(*a, static_cast<const X *>(qkv_TX), static_cast<X *>(context_TX), norm_HT);
    });
}

EXPORT void xsalt_attention_backward(const Attention *a, int64_t type, const void *qkv_TX, const float *norm_HT,
                                     const void *grad_TX, void *grad_qkv_TX) {
    with_attention_of(a, type, [=](auto products, auto number) {
        using X = decltype(number);
        attention_backward<decltype(products)>(*a, static_cast<const X *>(qkv_TX), norm_HT, static_cast<const X *>(grad_TX),
                                               static_cast<X *>(grad_qkv_TX));
    });
}

EXPORT void xsalt_gelu_forward(int64_t T, int64_t F, int64_t type, const void *x_TF, const float *bias_F, void *out_TF) {
    if (type) {
        gelu_forward(T, F, static_cast<const bf16 *>(x_TF), bias_F, static_cast<bf16 *>(out_TF));
    } else {
        gelu_forward(T, F, static_cast<const float *>(x_TF), bias_F, static_cast<float *>(out_TF));
    }
}

EXPORT void xsalt_gelu_backward(int64_t T, int64_t F, int64_t type, const void *x_TF, const float *bias_F, void *grad_TF,
                                void *out_TF) {
    if (type) {
        gelu_backward(T, F, static_cast<const bf16 *>(x_TF), bias_F, static_cast<bf16 *>(grad_TF), static_cast<bf16 *>(out_TF));
    } else {
        gelu_backward(T, F, static_cast<const float *>(x_TF), bias_F, static_cast<float *>(grad_TF), static_cast<float *>(out_TF));
    }
}

EXPORT void xsalt_column_sums(int64_t T, int64_t F, int64_t type, const void *x_TF, float *sum_F) {
    type ? column_sums(T, F, static_cast<const bf16 *>(x_TF), sum_F) : column_sums(T, F, static_cast<const float *>(x_TF), sum_F);
}

// The masks alone: keep_TD[t, i] is 1 where element i of token t is kept (heads != 0: attention of that many heads, D
// keys each, laid out (heads, T, D)).
EXPORT void xsalt_mask(int64_t T, int64_t D, int64_t heads, const uint32_t *token_T3, Key key, uint8_t *keep) {
    const int64_t W = whole(D);
    if (!heads) {
        std::vector<float> factor(W);
        key.scale = 1.0f;
        for (int64_t t = 0; t < T; ++t) {
            dropout_factors(0, D, token_T3 + 3 * t, key, factor.data());
            for (int64_t i = 0; i < D; ++i) keep[t * D + i] = factor[i] != 0.0f;
        }
        return;
    }
    std::vector<uint8_t> bits(T * W);
    for (int64_t h = 0; h < heads; ++h) {
        if (h % 8 == 0) keep_bits(T, W, h / 8, token_T3, key, bits.data());
        for (int64_t t = 0; t < T; ++t)
            for (int64_t i = 0; i < D; ++i) keep[(h * T + t) * D + i] = bits[t * W + i] >> h % 8 & 1;
    }
}

EXPORT void xsalt_adamw(int64_t count, const AdamTensor *tensor_N, const AdamStep *step_N, const Adam *a) {
    adamw(count, tensor_N, step_N, *a);
}

EXPORT double xsalt_sum_of_squares(int64_t runs, const Run *run_N) { return sum_of_squares(runs, run_N); }
