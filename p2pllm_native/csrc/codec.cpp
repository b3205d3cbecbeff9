#include "codec.hpp"

#include <algorithm>
#include <functional>
#include <memory>

#include "numeric.hpp"

namespace p2pllm {

namespace {

constexpr uint32_t kF32Infinity = 0x7F800000u;
constexpr uint32_t kLargestEncoded = 0x7F000000u;  // 2^127: twice as much could round up to infinity on the way back
constexpr uint32_t kQuietRow = 0x0D800000u;        // 2^-100: below it a scale, or its inverse, leaves the normal range
constexpr int kExponentMax = 126;
constexpr size_t kChunk = 4096;

// Magnitude bits from which on a float does not fit the format: rounding would make it infinite.
constexpr uint32_t overflow_bits(DType dtype) {
    return dtype == DType::f32 ? kF32Infinity : dtype == DType::bf16 ? 0x7F7F8000u : 0x477FF000u;
}

bool aligned(const void *at) { return reinterpret_cast<uintptr_t>(at) % alignof(float) == 0; }

void widen(const Kernels &kernels, const uint8_t *in, DType dtype, size_t count, float *out) {
    if (dtype == DType::f32)
        std::memcpy(out, in, 4 * count);
    else
        (dtype == DType::bf16 ? kernels.widen_bf16 : kernels.widen_f16)(in, out, count);
}

void narrow(const Kernels &kernels, const float *in, DType dtype, size_t count, uint8_t *out) {
    if (dtype == DType::f32)
        std::memcpy(out, in, 4 * count);
    else
        (dtype == DType::bf16 ? kernels.narrow_bf16 : kernels.narrow_f16)(in, out, count);
}

// The row as aligned floats: itself where it can be, else a widened copy in scratch.
const float *row_of(const Kernels &kernels, const uint8_t *in, DType dtype, size_t count, float *scratch) {
    if (dtype == DType::f32 && aligned(in)) return reinterpret_cast<const float *>(in);
    widen(kernels, in, dtype, count, scratch);
    return scratch;
}

uint32_t largest(const Kernels &kernels, const float *row, size_t count, uint32_t *groups) {
    kernels.maxima(row, count, groups);
    return *std::max_element(groups, groups + kGroups);
}

float power_of_two(int exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); }

// Smallest e >= 0 with magnitude * 2^-e <= 65504, the largest half.
int outlier_exponent(uint32_t magnitude) {
    const int exponent = static_cast<int>(magnitude >> 23) - 142 + ((magnitude & 0x7FFFFFu) > 0x7FE000u ? 1 : 0);
    return exponent > 0 ? exponent : 0;
}

// Puts the k + 1 largest elements in front: keys[0..k) in any order, then keys[k]. Returns how many keys there are.
//
// The (k + 1)-th largest of the group maxima is a lower bound of the (k + 1)-th largest element, and a tight one: of 4,096
// random values about 20 pass. Equal magnitudes order by index, lowest first, because keys hold the index inverted.
size_t select(const Kernels &kernels, const float *row, size_t hidden, size_t k, uint32_t *groups, uint64_t *keys) {
    std::nth_element(groups, groups + k, groups + kGroups, std::greater<>());
    const size_t found = kernels.collect(row, hidden, groups[k], keys);
    if (found > k) std::nth_element(keys, keys + k, keys + found, std::greater<>());
    return found;
}

struct Layout {  // where one token's fields lie in the struct of arrays
    uint8_t *base;
    size_t tokens, hidden, k;

    uint8_t *scale(size_t t) const { return base + 4 * t; }
    uint8_t *exponent(size_t t) const { return base + 4 * tokens + t; }
    uint8_t *index(size_t t) const { return base + 5 * tokens + 2 * k * t; }
    uint8_t *value(size_t t) const { return base + (5 + 2 * k) * tokens + 2 * k * t; }
    int8_t *levels(size_t t) const {
        return reinterpret_cast<int8_t *>(base + (5 + 4 * k) * tokens + hidden * t);
    }
};

const char *encode_row(const Kernels &kernels, const float *row, const Layout &layout, size_t t, uint64_t *keys) {
    const size_t hidden = layout.hidden, k = layout.k;
    uint32_t groups[kGroups];
    const uint32_t top = largest(kernels, row, hidden, groups);
    if (top > kLargestEncoded) return top >= kF32Infinity ? "a value is not finite" : "a value is beyond 2^127";

    const size_t found = select(kernels, row, hidden, k, groups, keys);
    const uint32_t rest = found > k ? static_cast<uint32_t>(keys[k] >> 32) : 0;
    uint16_t picked[16];
    for (size_t j = 0; j < k; ++j) picked[j] = static_cast<uint16_t>(~static_cast<uint32_t>(keys[j]));
    std::sort(picked, picked + k);

    const int exponent = outlier_exponent(top);
    const float shrink = power_of_two(-exponent);
    *layout.exponent(t) = static_cast<uint8_t>(exponent);
    for (size_t j = 0; j < k; ++j) {
        store_u16(layout.index(t) + 2 * j, picked[j]);
        store_u16(layout.value(t) + 2 * j, f16_of_f32(row[picked[j]] * shrink));
    }
    int8_t *levels = layout.levels(t);
    float scale = 0.0f;
    if (rest < kQuietRow) {
        std::memset(levels, 0, hidden);
    } else {
        scale = float_of(rest) / 127.0f;
        kernels.quantize(row, hidden, 127.0f / float_of(rest), levels);
        for (size_t j = 0; j < k; ++j) levels[picked[j]] = 0;
    }
    std::memcpy(layout.scale(t), &scale, sizeof scale);
    return nullptr;
}

const char *decode_row(const Kernels &kernels, const Layout &layout, size_t t, uint32_t overflow, float *row) {
    const size_t hidden = layout.hidden, k = layout.k;
    float scale;
    std::memcpy(&scale, layout.scale(t), sizeof scale);
    if (bits_of(scale) >= kF32Infinity) return "a scale is negative or not finite";  // a sign bit makes it larger still
    const int exponent = static_cast<int8_t>(*layout.exponent(t));
    if (exponent < 0 || exponent > kExponentMax) return "an exponent is outside 0..126";
    kernels.dequantize(layout.levels(t), hidden, scale, row);

    const float grow = power_of_two(exponent);
    bool suspect = (bits_of(128.0f * scale) & kMagnitude) >= overflow;
    size_t next = 0;
    for (size_t j = 0; j < k; ++j) {
        const size_t index = load_u16(layout.index(t) + 2 * j);
        if (index < next || index >= hidden) return "outlier indices do not ascend within the row";
        next = index + 1;
        const uint16_t half = load_u16(layout.value(t) + 2 * j);
        if ((half & 0x7C00u) == 0x7C00u) return "an outlier is not finite";
        row[index] = f32_of_f16(half) * grow;
        suspect |= (bits_of(row[index]) & kMagnitude) >= overflow;
    }
    if (suspect) {  // the bound may be too strict (no level is that large), the row itself decides
        uint32_t groups[kGroups];
        if (largest(kernels, row, hidden, groups) >= overflow) return "a value is too large for the target dtype";
    }
    return nullptr;
}

template <typename T>
std::unique_ptr<T[]> scratch(size_t count) {
    return std::unique_ptr<T[]>(new T[count]);  // not make_unique: that would fill it with zeros first
}

}  // namespace

const char *encode_int8(const Kernels &kernels, const uint8_t *in, DType dtype, size_t tokens, size_t hidden, uint8_t *out) {
    const Layout layout{out, tokens, hidden, outliers(hidden)};
    const auto floats = scratch<float>(hidden);
    const auto keys = scratch<uint64_t>(hidden);
    for (size_t t = 0; t < tokens; ++t) {
        const float *row = row_of(kernels, in + t * hidden * size_of(dtype), dtype, hidden, floats.get());
        if (const char *error = encode_row(kernels, row, layout, t, keys.get())) return error;
    }
    return nullptr;
}

const char *decode_int8(const Kernels &kernels, const uint8_t *in, DType dtype, size_t tokens, size_t hidden, uint8_t *out) {
    const Layout layout{const_cast<uint8_t *>(in), tokens, hidden, outliers(hidden)};  // only read through it here
    const uint32_t overflow = overflow_bits(dtype);
    const bool direct = dtype == DType::f32 && aligned(out);
    const auto floats = scratch<float>(direct ? 0 : hidden);
    for (size_t t = 0; t < tokens; ++t) {
        uint8_t *at = out + t * hidden * size_of(dtype);
        float *row = direct ? reinterpret_cast<float *>(at) : floats.get();
        if (const char *error = decode_row(kernels, layout, t, overflow, row)) return error;
        if (!direct) narrow(kernels, row, dtype, hidden, at);
    }
    return nullptr;
}

const char *convert(const Kernels &kernels, const uint8_t *in, DType from, size_t count, uint8_t *out, DType to) {
    alignas(64) float floats[kChunk];
    uint32_t groups[kGroups];
    for (size_t start = 0; start < count; start += kChunk) {
        const size_t length = std::min(kChunk, count - start);
        const uint8_t *source = in + start * size_of(from);
        const float *row = row_of(kernels, source, from, length, floats);
        const uint32_t top = largest(kernels, row, length, groups);
        if (top >= kF32Infinity) return "a value is not finite";
        if (top >= overflow_bits(to)) return "a value is too large for the target dtype";
        uint8_t *target = out + start * size_of(to);
        if (from == to)
            std::memcpy(target, source, length * size_of(to));
        else
            narrow(kernels, row, to, length, target);
    }
    return nullptr;
}

}  // namespace p2pllm
