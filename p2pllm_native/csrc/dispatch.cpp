// Which instruction sets this CPU has. Asked once; the answer never changes while a process lives.
#include "kernels.hpp"

#if defined(P2PLLM_X86)
#include <cpuid.h>
#endif

namespace p2pllm {

namespace {

struct Table {
    const Kernels *entries[4] = {};

    Table() {
        size_t count = 0;
#if defined(P2PLLM_X86)
        __builtin_cpu_init();  // also checks that the operating system saves the wide registers
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
            entries[count++] = &kAvx512Kernels;
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29)) != 0;
        if (__builtin_cpu_supports("avx2") && f16c) entries[count++] = &kAvx2Kernels;
#elif defined(P2PLLM_NEON)
        entries[count++] = &kNeonKernels;  // every 64-bit ARM has it
#endif
        entries[count] = &kScalarKernels;
    }
};

}  // namespace

const Kernels *const *available_kernels() {
    static const Table table;
    return table.entries;
}

}  // namespace p2pllm
