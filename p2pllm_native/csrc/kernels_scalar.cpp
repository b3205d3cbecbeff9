// Plain C++: the definition that the vector files are compared with, and what any other CPU runs.
#include "kernels.hpp"
#include "numeric.hpp"

namespace p2pllm {

namespace {

void widen_f16(const uint8_t *in, float *out, size_t count) {
    for (size_t i = 0; i < count; ++i) out[i] = f32_of_f16(load_u16(in + 2 * i));
}

void widen_bf16(const uint8_t *in, float *out, size_t count) {
    for (size_t i = 0; i < count; ++i) out[i] = f32_of_bf16(load_u16(in + 2 * i));
}

void narrow_f16(const float *in, uint8_t *out, size_t count) {
    for (size_t i = 0; i < count; ++i) store_u16(out + 2 * i, f16_of_f32(in[i]));
}

void narrow_bf16(const float *in, uint8_t *out, size_t count) {
    for (size_t i = 0; i < count; ++i) store_u16(out + 2 * i, bf16_of_f32(in[i]));
}

void maxima(const float *in, size_t count, uint32_t *groups) {
    for (size_t g = 0; g < kGroups; ++g) groups[g] = 0;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t magnitude = bits_of(in[i]) & kMagnitude;
        uint32_t &group = groups[i % kGroups];
        group = magnitude > group ? magnitude : group;
    }
}

size_t collect(const float *in, size_t count, uint32_t threshold, uint64_t *keys) {
    size_t found = 0;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t magnitude = bits_of(in[i]) & kMagnitude;
        keys[found] = static_cast<uint64_t>(magnitude) << 32 | ~static_cast<uint32_t>(i);
        found += magnitude >= threshold;
    }
    return found;
}

void quantize(const float *in, size_t count, float inverse, int8_t *out) {
    for (size_t i = 0; i < count; ++i) out[i] = quantize_one(in[i], inverse);
}

void dequantize(const int8_t *in, size_t count, float scale, float *out) {
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]) * scale;
}

}  // namespace

const Kernels kScalarKernels = {"scalar", widen_f16, widen_bf16, narrow_f16, narrow_bf16,
                                maxima,   collect,   quantize,   dequantize};

}  // namespace p2pllm
