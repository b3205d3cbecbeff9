// The tiled product with 256-bit vectors: sixteen registers hold six rows by half a tile, or two rows by a whole one.
#include <immintrin.h>

#include "product_loops.hpp"

namespace p2pllm {

namespace {

struct Vector {
    using Type = __m256;
    static constexpr size_t kWidth = 8;

    static Type zero() { return _mm256_setzero_ps(); }
    static Type load(const float *at) { return _mm256_loadu_ps(at); }
    static void store(float *at, Type value) { _mm256_storeu_ps(at, value); }
    static Type spread(const float *at) { return _mm256_set1_ps(*at); }
    static Type multiply_add(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
};

// One or two rows wait for memory: they take each line of it once.
void panel(const Panel &p) {
    if (p.rows <= 2)
        columns<Vector, 2, 4>(p);
    else
        columns<Vector, 6, 2>(p);
}

}  // namespace

const ProductKernel kAvx2Product = {"avx2", panel};

}  // namespace p2pllm
