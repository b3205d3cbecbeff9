// The activation codec: one token (row) at a time, so that a row stays in the first-level cache through every pass.
//
// No Python here. Errors are static sentences; nullptr means success. Layout and rounding are specified by the NumPy twin,
// src/p2pllm_native/codec_reference.py, which must agree byte for byte.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace p2pllm {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

constexpr size_t kHiddenMax = 65536;  // outlier indices are 16 bits wide

constexpr size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

constexpr size_t outliers(size_t hidden) {
    const size_t wanted = hidden / 64;
    return wanted < 1 ? 1 : wanted > 16 ? 16 : wanted;
}

constexpr size_t int8_row_bytes(size_t hidden) { return 5 + 4 * outliers(hidden) + hidden; }

const char *encode_int8(const Kernels &kernels, const uint8_t *in, DType dtype, size_t tokens, size_t hidden, uint8_t *out);
const char *decode_int8(const Kernels &kernels, const uint8_t *in, DType dtype, size_t tokens, size_t hidden, uint8_t *out);
const char *convert(const Kernels &kernels, const uint8_t *in, DType from, size_t count, uint8_t *out, DType to);

}  // namespace p2pllm
