// The Python face of the kernels: arguments by buffer protocol (NumPy arrays, bytes, memoryviews, without a copy).
//
// DLPack would cost 3 us a tensor where a buffer costs 0.3; torch tensors come as t.numpy() or t.view(torch.uint16).numpy().
// Long calls release the GIL. Short ones keep it: taking it back can cost more than they do.
#include <nanobind/nanobind.h>

#include <atomic>
#include <string>

#include "codec.hpp"

namespace nb = nanobind;
using p2pllm::DType;

namespace {

constexpr size_t kReleaseFrom = 1 << 15;  // elements: about 10 us of work

std::atomic<const p2pllm::Kernels *> active{p2pllm::available_kernels()[0]};

class Buffer {
public:
    Buffer(nb::handle object, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) nb::raise_python_error();
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    uint8_t *data() const { return static_cast<uint8_t *>(view_.buf); }
    size_t size() const { return static_cast<size_t>(view_.len); }

    void expect(size_t size, const char *name) const {
        if (this->size() == size) return;
        const std::string text = std::string(name) + ": expected " + std::to_string(size) + " bytes, got ";
        throw nb::value_error((text + std::to_string(this->size())).c_str());
    }

private:
    Py_buffer view_;
};

DType dtype_of(int code) {
    if (code < 0 || code > 2) throw nb::value_error("unknown dtype code");
    return static_cast<DType>(code);
}

// Tokens are bounded by the buffers' true sizes: no product below can wrap before it is compared with one.
void check_shape(size_t tokens, size_t hidden) {
    if (hidden < 1 || hidden > p2pllm::kHiddenMax) throw nb::value_error("hidden size is outside 1..65536");
    if (tokens > (size_t{1} << 40)) throw nb::value_error("too many tokens");
}

template <typename Work>
void compute(size_t elements, Work work) {
    const char *error;
    if (elements >= kReleaseFrom) {
        nb::gil_scoped_release released;
        error = work(*active.load());
    } else {
        error = work(*active.load());
    }
    if (error != nullptr) throw nb::value_error(error);
}

nb::object encode_int8(nb::handle x, int dtype_code, size_t tokens, size_t hidden, nb::handle out) {
    const DType dtype = dtype_of(dtype_code);
    check_shape(tokens, hidden);
    const size_t size = tokens * p2pllm::int8_row_bytes(hidden);
    const Buffer source(x, false);
    source.expect(tokens * hidden * p2pllm::size_of(dtype), "tensor");
    const auto run = [&](uint8_t *target) {
        compute(tokens * hidden, [&](const p2pllm::Kernels &kernels) {
            return p2pllm::encode_int8(kernels, source.data(), dtype, tokens, hidden, target);
        });
    };
    if (!out.is_none()) {
        const Buffer target(out, true);
        target.expect(size, "out");
        run(target.data());
        return nb::none();
    }
    nb::object made = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!made.is_valid()) nb::raise_python_error();
    run(reinterpret_cast<uint8_t *>(PyBytes_AsString(made.ptr())));  // nobody else has seen these bytes yet
    return made;
}

void decode_int8(nb::handle payload, int dtype_code, size_t tokens, size_t hidden, nb::handle out) {
    const DType dtype = dtype_of(dtype_code);
    check_shape(tokens, hidden);
    const Buffer source(payload, false);
    source.expect(tokens * p2pllm::int8_row_bytes(hidden), "payload");
    const Buffer target(out, true);
    target.expect(tokens * hidden * p2pllm::size_of(dtype), "out");
    compute(tokens * hidden, [&](const p2pllm::Kernels &kernels) {
        return p2pllm::decode_int8(kernels, source.data(), dtype, tokens, hidden, target.data());
    });
}

void convert(nb::handle source_object, int from_code, nb::handle out, int to_code) {
    const DType from = dtype_of(from_code);
    const DType to = dtype_of(to_code);
    const Buffer source(source_object, false);
    const size_t count = source.size() / p2pllm::size_of(from);
    source.expect(count * p2pllm::size_of(from), "tensor");
    const Buffer target(out, true);
    target.expect(count * p2pllm::size_of(to), "out");
    compute(count, [&](const p2pllm::Kernels &kernels) {
        return p2pllm::convert(kernels, source.data(), from, count, target.data(), to);
    });
}

nb::tuple available() {
    nb::list names;
    for (auto entry = p2pllm::available_kernels(); *entry != nullptr; ++entry) names.append((*entry)->name);
    return nb::tuple(names);
}

void use(const std::string &name) {
    for (auto entry = p2pllm::available_kernels(); *entry != nullptr; ++entry) {
        if (name == (*entry)->name) {
            active = *entry;
            return;
        }
    }
    throw nb::value_error(("this build or this CPU has no " + name).c_str());
}

}  // namespace

NB_MODULE(_codec, module) {
    module.def("encode_int8", &encode_int8, nb::arg("x"), nb::arg("dtype"), nb::arg("tokens"), nb::arg("hidden"),
               nb::arg("out").none());
    module.def("decode_int8", &decode_int8, nb::arg("payload"), nb::arg("dtype"), nb::arg("tokens"), nb::arg("hidden"),
               nb::arg("out"));
    module.def("convert", &convert, nb::arg("source"), nb::arg("from_dtype"), nb::arg("out"), nb::arg("to_dtype"));
    module.def("available", &available);
    module.def("use", [](nb::str name) { use(name.c_str()); });
}
