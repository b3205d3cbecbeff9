// The Python face of the compute kernels: addresses of tensors whose shapes the caller has checked.
//
// DLPack would cost 3 us a tensor, and a step passes forty of them. Who calls keeps the tensors alive: see kernels.py.
#include <nanobind/nanobind.h>

#include <atomic>
#include <string>

#include "product.hpp"

namespace nb = nanobind;

namespace {

constexpr size_t kReleaseFrom = 1 << 19;  // multiply-adds: about 20 us of work

std::atomic<const p2pllm::ProductKernel *> active{p2pllm::available_products()[0]};

void product(size_t x, size_t rows, size_t inputs, size_t w, size_t tiles, size_t y, int threads) {
    const p2pllm::ProductKernel *kernel = active.load();
    if (kernel == nullptr) throw nb::value_error("this CPU has none of the instruction sets");
    const auto run = [&] {
        p2pllm::product(*kernel, reinterpret_cast<const float *>(x), rows, inputs, reinterpret_cast<const float *>(w), tiles,
                        reinterpret_cast<float *>(y), threads);
    };
    if (rows * inputs * tiles * p2pllm::kTile >= kReleaseFrom) {
        nb::gil_scoped_release released;
        run();
    } else {
        run();
    }
}

nb::tuple available() {
    nb::list names;
    for (auto entry = p2pllm::available_products(); *entry != nullptr; ++entry) names.append((*entry)->name);
    return nb::tuple(names);
}

void use(const std::string &name) {
    for (auto entry = p2pllm::available_products(); *entry != nullptr; ++entry) {
        if (name == (*entry)->name) {
            active = *entry;
            return;
        }
    }
    throw nb::value_error(("this build or this CPU has no " + name).c_str());
}

}  // namespace

NB_MODULE(_kernels, module) {
    module.def("product", &product, nb::arg("x"), nb::arg("rows"), nb::arg("inputs"), nb::arg("w"), nb::arg("tiles"),
               nb::arg("y"), nb::arg("threads"));
    module.def("available", &available);
    module.def("use", [](nb::str name) { use(name.c_str()); });
    module.def("has_threads", &p2pllm::has_threads);
}
