// AVX2 + F16C. Main loops of 8 lanes; what is left over goes through the scalar conversions of numeric.hpp.
#include <immintrin.h>

#include "kernels.hpp"
#include "numeric.hpp"

namespace p2pllm {

namespace {

inline __m256i magnitudes(const float *in) {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(in)),
                            _mm256_set1_epi32(static_cast<int>(kMagnitude)));
}

void widen_f16(const uint8_t *in, float *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(in + 2 * i))));
    for (; i < count; ++i) out[i] = f32_of_f16(load_u16(in + 2 * i));
}

void widen_bf16(const uint8_t *in, float *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(in + 2 * i)));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + i), _mm256_slli_epi32(wide, 16));
    }
    for (; i < count; ++i) out[i] = f32_of_bf16(load_u16(in + 2 * i));
}

void narrow_f16(const float *in, uint8_t *out, size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 2 * i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < count; ++i) store_u16(out + 2 * i, f16_of_f32(in[i]));
}

void narrow_bf16(const float *in, uint8_t *out, size_t count) {
    const __m256i half = _mm256_set1_epi32(0x7FFF);
    const __m256i one = _mm256_set1_epi32(1);
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in + i));
        const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, half), even), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 2 * i), _mm256_castsi256_si128(packed));
    }
    for (; i < count; ++i) store_u16(out + 2 * i, bf16_of_f32(in[i]));
}

void maxima(const float *in, size_t count, uint32_t *groups) {
    __m256i best[8];
    for (__m256i &lane : best) lane = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + kGroups <= count; i += kGroups)
        for (size_t j = 0; j < 8; ++j) best[j] = _mm256_max_epi32(best[j], magnitudes(in + i + 8 * j));
    for (size_t j = 0; j < 8; ++j) _mm256_storeu_si256(reinterpret_cast<__m256i *>(groups + 8 * j), best[j]);
    for (; i < count; ++i) {
        const uint32_t magnitude = bits_of(in[i]) & kMagnitude;
        uint32_t &group = groups[i % kGroups];
        group = magnitude > group ? magnitude : group;
    }
}

size_t collect(const float *in, size_t count, uint32_t threshold, uint64_t *keys) {
    // Magnitude bits are non-negative as signed numbers, so "not (threshold > x)" is ">=".
    const __m256i limit = _mm256_set1_epi32(static_cast<int>(threshold));
    size_t found = 0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i below = _mm256_cmpgt_epi32(limit, magnitudes(in + i));
        uint32_t hits = ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below))) & 0xFFu;
        for (; hits != 0; hits &= hits - 1) {
            const size_t at = i + static_cast<size_t>(__builtin_ctz(hits));
            keys[found++] = static_cast<uint64_t>(bits_of(in[at]) & kMagnitude) << 32 | ~static_cast<uint32_t>(at);
        }
    }
    for (; i < count; ++i) {
        const uint32_t magnitude = bits_of(in[i]) & kMagnitude;
        if (magnitude >= threshold) keys[found++] = static_cast<uint64_t>(magnitude) << 32 | ~static_cast<uint32_t>(i);
    }
    return found;
}

inline __m256i rounded(const float *in, __m256 inverse) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(in), inverse);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(scaled, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f)));
}

void quantize(const float *in, size_t count, float inverse, int8_t *out) {
    const __m256 factor = _mm256_set1_ps(inverse);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work within 128-bit halves
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const __m256i low = _mm256_packs_epi32(rounded(in + i, factor), rounded(in + i + 8, factor));
        const __m256i high = _mm256_packs_epi32(rounded(in + i + 16, factor), rounded(in + i + 24, factor));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + i),
                            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
    }
    for (; i < count; ++i) out[i] = quantize_one(in[i], inverse);
}

void dequantize(const int8_t *in, size_t count, float scale, float *out) {
    const __m256 factor = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(in + i)));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), factor));
    }
    for (; i < count; ++i) out[i] = static_cast<float>(in[i]) * scale;
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2", widen_f16, widen_bf16, narrow_f16, narrow_bf16,
                              maxima, collect,   quantize,   dequantize};

}  // namespace p2pllm
