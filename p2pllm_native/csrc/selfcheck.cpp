// Compares every instruction set of this CPU with the scalar kernels, without Python: for sanitizers and emulators.
//
//     cmake -S . -B build/selfcheck -DP2PLLM_NATIVE_SELFCHECK=ON && cmake --build build/selfcheck && build/selfcheck/selfcheck
#include <cstdio>
#include <random>
#include <vector>

#include "codec.hpp"
#include "numeric.hpp"

using namespace p2pllm;

namespace {

using Bytes = std::vector<uint8_t>;

int failures = 0;
uint64_t digest = 14695981039346656037u;  // FNV-1a over every payload: equal on every machine

void remember(const Bytes &bytes) {
    for (const uint8_t byte : bytes) digest = (digest ^ byte) * 1099511628211u;
}

// A sum of uniform integers: the library's normal distribution may differ from machine to machine.
float bell(std::mt19937 &rng) {
    int32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int32_t>(rng() >> 8) - (1 << 23);
    return static_cast<float>(sum) / static_cast<float>(1 << 23);
}

void expect(bool good, const char *what, const char *isa, size_t hidden) {
    if (good) return;
    ++failures;
    std::printf("FAILED %s: %s at hidden %zu\n", isa, what, hidden);
}

// Rows of every temper: ordinary, wildly scaled, tied, tiny, zero.
std::vector<float> rows(std::mt19937 &rng, size_t tokens, size_t hidden) {
    std::vector<float> x(tokens * hidden);
    for (size_t t = 0; t < tokens; ++t) {
        const float factor = t % 6 == 1 ? 1e30f : t % 6 == 2 ? 1e-38f : t % 6 == 3 ? 300.0f : 1.0f;
        for (size_t i = 0; i < hidden; ++i) {
            const float value = t % 6 == 4 ? static_cast<float>(static_cast<int>(rng() % 5) - 2) : bell(rng);
            x[t * hidden + i] = t % 6 == 5 ? 0.0f : value * factor;
        }
    }
    return x;
}

// One byte into a larger buffer: wire payloads are not aligned, and neither is this.
Bytes stored(const std::vector<float> &x, DType dtype) {
    Bytes out(1 + x.size() * size_of(dtype));
    for (size_t i = 0; i < x.size(); ++i) {
        const float small = x[i] > 6e4f ? 6e4f : x[i] < -6e4f ? -6e4f : x[i];
        if (dtype == DType::f32) std::memcpy(&out[1 + 4 * i], &x[i], 4);
        if (dtype == DType::bf16) store_u16(&out[1 + 2 * i], bf16_of_f32(x[i]));
        if (dtype == DType::f16) store_u16(&out[1 + 2 * i], f16_of_f32(small));
    }
    return out;
}

void compare(const Kernels &kernels, std::mt19937 &rng, size_t hidden) {
    const size_t tokens = 12, count = tokens * hidden;
    const std::vector<float> x = rows(rng, tokens, hidden);
    for (const DType from : {DType::f32, DType::bf16, DType::f16}) {
        const Bytes in = stored(x, from);
        Bytes want(1 + tokens * int8_row_bytes(hidden)), got(want.size());
        const char *error = encode_int8(kScalarKernels, &in[1], from, tokens, hidden, &want[1]);
        expect(error == nullptr, "encode refuses good numbers", "scalar", hidden);
        remember(want);
        encode_int8(kernels, &in[1], from, tokens, hidden, &got[1]);
        expect(want == got, "encode", kernels.name, hidden);
        for (const DType to : {DType::f32, DType::bf16, DType::f16}) {
            Bytes a(1 + count * size_of(to)), b(a.size());
            const char *wanted = decode_int8(kScalarKernels, &want[1], to, tokens, hidden, &a[1]);
            const char *found = decode_int8(kernels, &want[1], to, tokens, hidden, &b[1]);
            expect(wanted == found && (wanted != nullptr || a == b), "decode", kernels.name, hidden);
            wanted = convert(kScalarKernels, &in[1], from, count, &a[1], to);
            found = convert(kernels, &in[1], from, count, &b[1], to);
            expect(wanted == found && (wanted != nullptr || a == b), "convert", kernels.name, hidden);
        }
        for (int round = 0; round < 20; ++round) {  // hostile bytes: any error will do, if it is the same one
            Bytes bad = want, a(1 + count * 2), b(a.size());
            for (int flips = 0; flips < 3; ++flips) bad[1 + rng() % (bad.size() - 1)] = static_cast<uint8_t>(rng());
            const char *wanted = decode_int8(kScalarKernels, &bad[1], DType::bf16, tokens, hidden, &a[1]);
            const char *found = decode_int8(kernels, &bad[1], DType::bf16, tokens, hidden, &b[1]);
            expect(wanted == found && (wanted != nullptr || a == b), "decode of bad bytes", kernels.name, hidden);
        }
    }
}

// All halves there and back: the scalar conversions against themselves, the vector ones against the scalar.
void halves(const Kernels &kernels) {
    Bytes all(2 * 65536), back(all.size());
    for (uint32_t i = 0; i < 65536; ++i) store_u16(&all[2 * i], static_cast<uint16_t>((i & 0x7C00u) == 0x7C00u ? 0 : i));
    std::vector<float> wide(65536), scalar(65536);
    kernels.widen_f16(all.data(), wide.data(), 65536);
    kScalarKernels.widen_f16(all.data(), scalar.data(), 65536);
    expect(std::memcmp(wide.data(), scalar.data(), 4 * 65536) == 0, "widen_f16", kernels.name, 65536);
    kernels.narrow_f16(wide.data(), back.data(), 65536);
    expect(all == back, "narrow_f16", kernels.name, 65536);
}

}  // namespace

int main() {
    std::mt19937 rng(7);
    for (auto entry = available_kernels(); *entry != nullptr; ++entry) {
        rng.seed(7);
        digest = 14695981039346656037u;
        halves(**entry);
        for (const size_t hidden : {1, 2, 7, 15, 16, 17, 63, 64, 65, 127, 128, 200, 512, 1000, 1024, 4099})
            compare(**entry, rng, hidden);
        std::printf("%s: %s\n", (*entry)->name, failures == 0 ? "agrees" : "DIFFERS");
    }
    std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
    return failures == 0 ? 0 : 1;
}
