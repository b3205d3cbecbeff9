// AVX-512 F + BW + VL. 16 lanes, and masks for what is left over.
#include <immintrin.h>

#include "kernels.hpp"
#include "numeric.hpp"

namespace p2pllm {

namespace {

inline __mmask16 lanes(size_t left) {
    return left >= 16 ? static_cast<__mmask16>(0xFFFF) : static_cast<__mmask16>((1u << left) - 1u);
}

inline __m512i magnitudes(__mmask16 mask, const float *in) {
    return _mm512_and_si512(_mm512_maskz_loadu_epi32(mask, in), _mm512_set1_epi32(static_cast<int>(kMagnitude)));
}

void widen_f16(const uint8_t *in, float *out, size_t count) {
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, in + 2 * i)));
    }
}

void widen_bf16(const uint8_t *in, float *out, size_t count) {
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, in + 2 * i));
        _mm512_mask_storeu_epi32(out + i, mask, _mm512_slli_epi32(wide, 16));
    }
}

void narrow_f16(const float *in, uint8_t *out, size_t count) {
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        const __m256i half = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(mask, in + i), _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(out + 2 * i, mask, half);
    }
}

void narrow_bf16(const float *in, uint8_t *out, size_t count) {
    const __m512i half = _mm512_set1_epi32(0x7FFF);
    const __m512i one = _mm512_set1_epi32(1);
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        const __m512i bits = _mm512_maskz_loadu_epi32(mask, in + i);
        const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, half), even), 16);
        _mm512_mask_cvtepi32_storeu_epi16(out + 2 * i, mask, rounded);
    }
}

void maxima(const float *in, size_t count, uint32_t *groups) {
    __m512i best[4];
    for (__m512i &lane : best) lane = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + kGroups <= count; i += kGroups)
        for (size_t j = 0; j < 4; ++j) best[j] = _mm512_max_epi32(best[j], magnitudes(0xFFFF, in + i + 16 * j));
    for (size_t j = 0; i < count; i += 16, ++j) best[j] = _mm512_max_epi32(best[j], magnitudes(lanes(count - i), in + i));
    for (size_t j = 0; j < 4; ++j) _mm512_storeu_si512(groups + 16 * j, best[j]);
}

size_t collect(const float *in, size_t count, uint32_t threshold, uint64_t *keys) {
    const __m512i limit = _mm512_set1_epi32(static_cast<int>(threshold));
    size_t found = 0;
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        uint32_t hits = _mm512_mask_cmpge_epi32_mask(mask, magnitudes(mask, in + i), limit);
        for (; hits != 0; hits &= hits - 1) {
            const size_t at = i + static_cast<size_t>(__builtin_ctz(hits));
            keys[found++] = static_cast<uint64_t>(bits_of(in[at]) & kMagnitude) << 32 | ~static_cast<uint32_t>(at);
        }
    }
    return found;
}

void quantize(const float *in, size_t count, float inverse, int8_t *out) {
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512 low = _mm512_set1_ps(-127.0f);
    const __m512 high = _mm512_set1_ps(127.0f);
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, in + i), factor);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, low), high));
        _mm512_mask_cvtepi32_storeu_epi8(out + i, mask, whole);
    }
}

void dequantize(const int8_t *in, size_t count, float scale, float *out) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = lanes(count - i);
        const __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, in + i));
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), factor));
    }
}

}  // namespace

const Kernels kAvx512Kernels = {"avx512", widen_f16, widen_bf16, narrow_f16, narrow_bf16,
                                maxima,   collect,   quantize,   dequantize};

}  // namespace p2pllm
