#include "product.hpp"

#include <algorithm>
#include <cstdint>

namespace p2pllm {

namespace {

constexpr size_t kDepth = 512;             // inputs at a time: eight rows of them and what a tile adds stay close to the core
constexpr size_t kWorkPerThread = 1 << 17;  // multiply-adds below which another thread costs more than it brings

struct Table {
    const ProductKernel *entries[3] = {};

    Table() {
        [[maybe_unused]] size_t count = 0;
#if defined(P2PLLM_X86)
        __builtin_cpu_init();  // also checks that the operating system saves the wide registers
        if (__builtin_cpu_supports("avx512f")) entries[count++] = &kAvx512Product;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) entries[count++] = &kAvx2Product;
#elif defined(P2PLLM_NEON)
        entries[count++] = &kNeonProduct;
#endif
    }
};

}  // namespace

const ProductKernel *const *available_products() {
    static const Table table;
    return table.entries;
}

bool has_threads() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

void product(const ProductKernel &kernel, const float *x, size_t rows, size_t inputs, const float *w, size_t tiles, float *y,
             [[maybe_unused]] int threads) {
    const auto tile = [&](size_t t) {
        for (size_t k = 0; k < inputs; k += kDepth) {
            const size_t depth = std::min(kDepth, inputs - k);
            kernel.panel({x + k, rows, inputs, w + (t * inputs + k) * kTile, depth, y + t * kTile, tiles * kTile, k == 0});
        }
    };
#if defined(_OPENMP)
    const size_t wanted = 1 + rows * inputs * tiles * kTile / kWorkPerThread;
    const int used = static_cast<int>(std::min({wanted, tiles, static_cast<size_t>(std::max(threads, 1))}));
    if (used > 1) {
#pragma omp parallel for num_threads(used) schedule(dynamic)
        for (int64_t t = 0; t < static_cast<int64_t>(tiles); ++t) tile(static_cast<size_t>(t));
        return;
    }
#endif
    for (size_t t = 0; t < tiles; ++t) tile(t);
}

}  // namespace p2pllm
