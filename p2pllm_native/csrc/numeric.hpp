// Scalar number formats: the conversions that every instruction set must agree with, bit for bit.
//
// Everything here has internal linkage. Files compiled with AVX flags include this header too; an ordinary inline function
// could then be merged by the linker into one copy that needs AVX, and crash a machine that has none.
#pragma once

#include <cstdint>
#include <cstring>

namespace p2pllm {
namespace {

constexpr uint32_t kMagnitude = 0x7FFFFFFFu;  // a float's bits without its sign: ordered as the magnitudes are
constexpr float kRound = 12582912.0f;         // 1.5 * 2^23: adding and taking it away rounds to an integer, ties to even

[[maybe_unused]] inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

[[maybe_unused]] inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Wire buffers are not aligned: halves are read and written through memcpy, which compilers turn into plain moves.
[[maybe_unused]] inline uint16_t load_u16(const uint8_t *at) {
    uint16_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

[[maybe_unused]] inline void store_u16(uint8_t *at, uint16_t value) { std::memcpy(at, &value, sizeof value); }

[[maybe_unused]] inline float f32_of_bf16(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

[[maybe_unused]] inline float f32_of_f16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t body = static_cast<uint32_t>(half & 0x7FFFu) << 13;
    const uint32_t subnormal = bits_of(static_cast<float>(half & 0x03FFu) * 5.9604644775390625e-08f);  // 2^-24
    const uint32_t exponent = half & 0x7C00u;
    const uint32_t magnitude = exponent == 0 ? subnormal : body + (exponent == 0x7C00u ? 0x70000000u : 0x38000000u);
    return float_of(sign | magnitude);
}

// Both narrowings round to nearest, ties to even, and want a value that their caller found to be in range.
[[maybe_unused]] inline uint16_t bf16_of_f32(float value) {
    const uint32_t bits = bits_of(value);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

[[maybe_unused]] inline uint16_t f16_of_f32(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & kMagnitude;
    const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    // 0.5 has an ulp of 2^-24, the step of half subnormals: the addition does the rounding.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    return static_cast<uint16_t>(sign | (magnitude < 0x38800000u ? subnormal : normal));
}

[[maybe_unused]] inline int8_t quantize_one(float value, float inverse) {
    float scaled = value * inverse;
    scaled = scaled < -127.0f ? -127.0f : scaled;
    scaled = scaled > 127.0f ? 127.0f : scaled;
    return static_cast<int8_t>(static_cast<int32_t>((scaled + kRound) - kRound));
}

}  // namespace
}  // namespace p2pllm
