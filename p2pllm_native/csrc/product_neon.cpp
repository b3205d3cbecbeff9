// The tiled product with 128-bit vectors: thirty-two registers hold five rows by half a tile, or two rows by a whole one.
#include <arm_neon.h>

#include "product_loops.hpp"

namespace p2pllm {

namespace {

struct Vector {
    using Type = float32x4_t;
    static constexpr size_t kWidth = 4;

    static Type zero() { return vdupq_n_f32(0.0f); }
    static Type load(const float *at) { return vld1q_f32(at); }
    static void store(float *at, Type value) { vst1q_f32(at, value); }
    static Type spread(const float *at) { return vdupq_n_f32(*at); }
    static Type multiply_add(Type a, Type b, Type c) { return vfmaq_f32(c, a, b); }
};

void panel(const Panel &p) {
    if (p.rows <= 2)
        columns<Vector, 2, 8>(p);
    else
        columns<Vector, 5, 4>(p);
}

}  // namespace

const ProductKernel kNeonProduct = {"neon", panel};

}  // namespace p2pllm
