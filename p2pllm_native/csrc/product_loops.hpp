// The loops of the tiled product for any vector type; included by one file per instruction set, each with its own flags.
//
// Law: every output is one chain of fused multiply-adds over the inputs in ascending order. Blocks of rows, columns and
// inputs only decide what is computed beside what, so a row's bits do not depend on the other rows.
#pragma once

#include <cstddef>

#include "product.hpp"

namespace p2pllm {
namespace {  // internal linkage: a copy with wide instructions must never serve another file

// Rows of x times C vectors of columns of one tile, over the inputs [0, depth); the sums stay in registers.
template <class V, int R, int C>
inline void block(const float *x, size_t x_stride, const float *w, size_t depth, float *y, size_t y_stride, bool first) {
    typename V::Type sum[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sum[r][c] = first ? V::zero() : V::load(y + r * y_stride + c * V::kWidth);
    for (size_t k = 0; k < depth; ++k) {
        typename V::Type weights[C];
        for (int c = 0; c < C; ++c) weights[c] = V::load(w + k * kTile + c * V::kWidth);
        for (int r = 0; r < R; ++r) {
            const typename V::Type value = V::spread(x + r * x_stride + k);
            for (int c = 0; c < C; ++c) sum[r][c] = V::multiply_add(value, weights[c], sum[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) V::store(y + r * y_stride + c * V::kWidth, sum[r][c]);
}

// The last rows, fewer than a block has.
template <class V, int R, int C>
inline void rest(size_t rows, const float *x, size_t x_stride, const float *w, size_t depth, float *y, size_t y_stride,
                 bool first) {
    if constexpr (R > 0) {
        if (rows == R)
            block<V, R, C>(x, x_stride, w, depth, y, y_stride, first);
        else
            rest<V, R - 1, C>(rows, x, x_stride, w, depth, y, y_stride, first);
    }
}

template <class V, int R, int C>
inline void columns(const Panel &p) {
    constexpr size_t step = C * V::kWidth;
    for (size_t column = 0; column < kTile; column += step) {
        const float *w = p.w + column;
        float *y = p.y + column;
        size_t row = 0;
        for (; row + R <= p.rows; row += R)
            block<V, R, C>(p.x + row * p.x_stride, p.x_stride, w, p.depth, y + row * p.y_stride, p.y_stride, p.first);
        rest<V, R - 1, C>(p.rows - row, p.x + row * p.x_stride, p.x_stride, w, p.depth, y + row * p.y_stride, p.y_stride,
                          p.first);
    }
}

}  // namespace
}  // namespace p2pllm
