// The tiled product with 512-bit vectors: eight rows by a whole tile are sixteen of the thirty-two registers.
#include <immintrin.h>

#include "product_loops.hpp"

namespace p2pllm {

namespace {

struct Vector {
    using Type = __m512;
    static constexpr size_t kWidth = 16;

    static Type zero() { return _mm512_setzero_ps(); }
    static Type load(const float *at) { return _mm512_loadu_ps(at); }
    static void store(float *at, Type value) { _mm512_storeu_ps(at, value); }
    static Type spread(const float *at) { return _mm512_set1_ps(*at); }
    static Type multiply_add(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
};

void panel(const Panel &p) { columns<Vector, 8, 2>(p); }

}  // namespace

const ProductKernel kAvx512Product = {"avx512", panel};

}  // namespace p2pllm
