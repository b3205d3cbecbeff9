// NEON of 64-bit ARM. Main loops of 4 or 8 lanes; what is left over goes through the scalar conversions of numeric.hpp.
#include <arm_neon.h>

#include "kernels.hpp"
#include "numeric.hpp"

namespace p2pllm {

namespace {

inline uint32x4_t magnitudes(const float *in) {
    return vandq_u32(vreinterpretq_u32_f32(vld1q_f32(in)), vdupq_n_u32(kMagnitude));
}

// Wire halves may lie at odd addresses: load bytes, then look at them as halves.
inline uint16x8_t load_halves(const uint8_t *in) { return vreinterpretq_u16_u8(vld1q_u8(in)); }

void widen_f16(const uint8_t *in, float *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const float16x8_t half = vreinterpretq_f16_u16(load_halves(in + 2 * i));
        vst1q_f32(out + i, vcvt_f32_f16(vget_low_f16(half)));
        vst1q_f32(out + i + 4, vcvt_f32_f16(vget_high_f16(half)));
    }
    for (; i < count; ++i) out[i] = f32_of_f16(load_u16(in + 2 * i));
}

void widen_bf16(const uint8_t *in, float *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint16x8_t half = load_halves(in + 2 * i);
        vst1q_f32(out + i, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)));
        vst1q_f32(out + i + 4, vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(half), 16)));
    }
    for (; i < count; ++i) out[i] = f32_of_bf16(load_u16(in + 2 * i));
}

void narrow_f16(const float *in, uint8_t *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const float16x8_t half = vcombine_f16(vcvt_f16_f32(vld1q_f32(in + i)), vcvt_f16_f32(vld1q_f32(in + i + 4)));
        vst1q_u8(out + 2 * i, vreinterpretq_u8_f16(half));
    }
    for (; i < count; ++i) store_u16(out + 2 * i, f16_of_f32(in[i]));
}

inline uint16x4_t bf16_lanes(const float *in) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(in));
    const uint32x4_t even = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), even), 16);
}

void narrow_bf16(const float *in, uint8_t *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        vst1q_u8(out + 2 * i, vreinterpretq_u8_u16(vcombine_u16(bf16_lanes(in + i), bf16_lanes(in + i + 4))));
    for (; i < count; ++i) store_u16(out + 2 * i, bf16_of_f32(in[i]));
}

void maxima(const float *in, size_t count, uint32_t *groups) {
    uint32x4_t best[16];
    for (uint32x4_t &lane : best) lane = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + kGroups <= count; i += kGroups)
        for (size_t j = 0; j < 16; ++j) best[j] = vmaxq_u32(best[j], magnitudes(in + i + 4 * j));
    for (size_t j = 0; j < 16; ++j) vst1q_u32(groups + 4 * j, best[j]);
    for (; i < count; ++i) {
        const uint32_t magnitude = bits_of(in[i]) & kMagnitude;
        uint32_t &group = groups[i % kGroups];
        group = magnitude > group ? magnitude : group;
    }
}

size_t collect(const float *in, size_t count, uint32_t threshold, uint64_t *keys) {
    const uint32x4_t limit = vdupq_n_u32(threshold);
    size_t found = 0;
    size_t i = 0;
    const auto take = [&](size_t at) {
        const uint32_t magnitude = bits_of(in[at]) & kMagnitude;
        if (magnitude >= threshold) keys[found++] = static_cast<uint64_t>(magnitude) << 32 | ~static_cast<uint32_t>(at);
    };
    for (; i + 8 <= count; i += 8) {
        const uint32x4_t hits = vorrq_u32(vcgeq_u32(magnitudes(in + i), limit), vcgeq_u32(magnitudes(in + i + 4), limit));
        if (vmaxvq_u32(hits) == 0) continue;
        for (size_t j = 0; j < 8; ++j) take(i + j);
    }
    for (; i < count; ++i) take(i);
    return found;
}

inline int16x4_t rounded(const float *in, float inverse) {
    const float32x4_t scaled = vmulq_n_f32(vld1q_f32(in), inverse);
    const float32x4_t clamped = vminq_f32(vmaxq_f32(scaled, vdupq_n_f32(-127.0f)), vdupq_n_f32(127.0f));
    return vmovn_s32(vcvtnq_s32_f32(clamped));
}

void quantize(const float *in, size_t count, float inverse, int8_t *out) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        vst1_s8(out + i, vmovn_s16(vcombine_s16(rounded(in + i, inverse), rounded(in + i + 4, inverse))));
    for (; i < count; ++i) out[i] = quantize_one(in[i], inverse);
}

void dequantize(const int8_t *in, size_t count, float scale, float *out) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const int16x8_t wide = vmovl_s8(vld1_s8(in + i));
        vst1q_f32(out + i, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), scale));
        vst1q_f32(out + i + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))), scale));
    }
    for (; i < count; ++i) out[i] = static_cast<float>(in[i]) * scale;
}

}  // namespace

const Kernels kNeonKernels = {"neon", widen_f16, widen_bf16, narrow_f16, narrow_bf16,
                              maxima, collect,   quantize,   dequantize};

}  // namespace p2pllm
