// Products with fp32 weights in tiles of 32 outputs, [tiles, inputs, 32]: y[m, 32 t + j] = sum over k of x[m, k] w[t, k, j].
//
// One row reads the weights once, at the speed of memory; many rows reuse a tile from the cache. No Python here.
#pragma once

#include <cstddef>

namespace p2pllm {

constexpr size_t kTile = 32;

// One tile's share of a product, over some of the inputs.
struct Panel {
    const float *x;
    size_t rows, x_stride;
    const float *w;
    size_t depth;
    float *y;
    size_t y_stride;
    bool first;  // begin the sums anew; else go on from what y holds
};

struct ProductKernel {
    const char *name;
    void (*panel)(const Panel &panel);
};

// Every instruction set that was built and that this CPU has, best first; null-terminated, perhaps empty.
const ProductKernel *const *available_products();

// x [rows, inputs] and y [rows, 32 tiles], rows contiguous; threads > 1 counts where OpenMP was there at build time.
void product(const ProductKernel &kernel, const float *x, size_t rows, size_t inputs, const float *w, size_t tiles, float *y,
             int threads);

bool has_threads();

extern const ProductKernel kAvx2Product;
extern const ProductKernel kAvx512Product;
extern const ProductKernel kNeonProduct;

}  // namespace p2pllm
