// The dispatch table: a handful of loops, once per instruction set. Everything that decides lives in codec.cpp, once.
//
// Law: for equal inputs every table gives equal bits. Loops are elementwise or take maxima, so lane order cannot show.
#pragma once

#include <cstddef>
#include <cstdint>

namespace p2pllm {

constexpr size_t kGroups = 64;

struct Kernels {
    const char *name;
    void (*widen_f16)(const uint8_t *in, float *out, size_t count);
    void (*widen_bf16)(const uint8_t *in, float *out, size_t count);
    void (*narrow_f16)(const float *in, uint8_t *out, size_t count);
    void (*narrow_bf16)(const float *in, uint8_t *out, size_t count);
    // Largest magnitude bits of each group (element i belongs to group i % 64; an empty group has 0).
    void (*maxima)(const float *in, size_t count, uint32_t *groups);
    // Appends (magnitude bits << 32 | ~index) of every element whose magnitude bits are >= threshold; returns how many.
    size_t (*collect)(const float *in, size_t count, uint32_t threshold, uint64_t *keys);
    // round(clamp(in * inverse, -127, 127)), ties to even
    void (*quantize)(const float *in, size_t count, float inverse, int8_t *out);
    void (*dequantize)(const int8_t *in, size_t count, float scale, float *out);
};

// Every instruction set that was built and that this CPU has, best first; null-terminated.
const Kernels *const *available_kernels();

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kNeonKernels;

}  // namespace p2pllm
