"""The C++ codec and its NumPy twin give the same bytes and refuse the same bytes, on every instruction set here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm_native import codec

REPO = Path(__file__).parents[2]
DTYPES = ("fp32", "bf16", "fp16")
TEMPERS = ("normal", "bits", "ties", "equal", "subnormal", "zeros", "huge", "spiked", "alternating")
HIDDEN = st.one_of(st.integers(1, 300), st.sampled_from([511, 512, 1024, 1025, 4096]))


@contextlib.contextmanager
def running(name):
    before = codec.isa()
    codec.use(name)
    try:
        yield
    finally:
        codec.use(before)


def stored(x, dtype):
    """Float32 values as an array of ``dtype``: truncated bfloat16 bits, or clipped halves."""
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return np.clip(x, -65504, 65504).astype(np.float16) if dtype == "fp16" else x


def make(temper, tokens, hidden, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    if temper == "bits":  # any finite float up to 2^127
        bits = (
            rng.integers(0, 0x7F000001, x.shape, dtype=np.uint32) | rng.integers(0, 2, x.shape, dtype=np.uint32) << 31
        )
        return bits.astype(np.uint32).view(np.float32)
    if temper == "ties":
        return rng.integers(-2, 3, x.shape).astype(np.float32)
    if temper == "equal":
        return np.full_like(x, 3.25) * rng.choice(np.float32([-1, 1]), x.shape)
    if temper == "subnormal":
        return x * np.float32(1e-39)
    if temper == "zeros":
        return x * rng.choice(np.float32([0, -0.0]), x.shape)
    if temper == "huge":
        return np.clip(x, -4, 4) * np.float32(2.0**125)
    if temper == "spiked":
        x[:, rng.integers(0, hidden, 3)] *= np.float32(3e6)
        return x
    if temper == "alternating":  # halfway between levels, so that rounding to even shows
        return (rng.integers(-127, 127, x.shape) + np.float32(0.5)).astype(np.float32)
    return x


def outcome(work, sentences):
    """Bytes, or the refusal; its sentence too where only one thing is wrong."""
    try:
        return work()
    except ValueError as exc:
        return f"refused: {exc}" if sentences else "refused"


def decoded(payload, dtype, tokens, hidden):
    out = np.empty((tokens, hidden), codec.STORAGE[dtype])
    codec.decode_int8(payload, dtype, out)
    return out.tobytes()


def converted(x, source, target):
    out = np.empty(x.shape, codec.STORAGE[target])
    codec.convert(x, source, out, target)
    return out.tobytes()


def agree(work, sentences=True):
    """Run ``work`` on every implementation and return the one outcome."""
    results = {}
    for name in codec.available():
        with running(name):
            results[name] = outcome(work, sentences)
    first = results["numpy"]
    assert all(result == first for result in results.values()), {n: r == first for n, r in results.items()}
    return first


def test_the_extension_is_built_where_the_tests_run():
    """Else everything below would compare NumPy with itself."""
    if importlib.util.find_spec("p2pllm_native._codec") is None:
        pytest.skip("p2pllm_native was installed without a compiler")
    assert "scalar" in codec.available()
    assert codec.available()[-1] == "numpy"


@pytest.mark.parametrize("temper", TEMPERS)
@settings(max_examples=15, deadline=None)
@given(tokens=st.integers(0, 4), hidden=HIDDEN, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_encode_and_decode_agree(temper, tokens, hidden, dtype, seed):
    x = stored(make(temper, tokens, hidden, seed), dtype)
    payload = agree(lambda: bytes(codec.encode_int8(x, dtype)))
    assert len(payload) == codec.int8_size(tokens, hidden)
    assert not isinstance(payload, str)
    assert isinstance(agree(lambda: decoded(payload, dtype, tokens, hidden)), bytes), "what was encoded decodes"
    for target in DTYPES:
        agree(lambda target=target: decoded(payload, target, tokens, hidden))
        agree(lambda target=target: converted(x, dtype, target))


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 3), hidden=st.integers(1, 200), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_hostile_bytes_are_refused_alike(tokens, hidden, seed, data):
    payload = bytearray(codec.encode_int8(make("normal", tokens, hidden, seed), "fp32"))
    head = len(payload) - tokens * hidden  # scales, exponents, indices, values: where bytes can be wrong
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    for dtype in DTYPES:
        result = agree(lambda dtype=dtype: decoded(bytes(payload), dtype, tokens, hidden), sentences=False)
        if isinstance(result, bytes) and dtype != "bf16":
            assert np.isfinite(np.frombuffer(result, codec.STORAGE[dtype])).all()


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 3), hidden=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
def test_random_bytes_are_refused_alike(tokens, hidden, seed):
    payload = np.random.default_rng(seed).bytes(codec.int8_size(tokens, hidden))
    for dtype in DTYPES:
        agree(lambda dtype=dtype: decoded(payload, dtype, tokens, hidden), sentences=False)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("at", [0, 70, 99])
def test_numbers_that_cannot_travel_are_refused_alike(value, at):
    x = np.ones((2, 100), np.float32)
    x[1, at] = value
    assert "refused" in agree(lambda: bytes(codec.encode_int8(x, "fp32")))
    assert "refused" in agree(lambda: converted(x, "fp32", "fp16"))
    if not np.isfinite(value):
        assert "refused" in agree(lambda: converted(x, "fp32", "fp32"))
        assert "refused" in agree(lambda: converted(x, "fp32", "bf16"))


@pytest.mark.parametrize(
    ("target", "fits", "not_any_more"), [("fp16", 65519.996, 65520.0), ("bf16", 3.3961e38, 3.3962e38)]
)
def test_the_edge_of_each_format(target, fits, not_any_more):
    for sign in (1, -1):
        assert isinstance(agree(lambda s=sign: converted(np.float32([[s * fits]]), "fp32", target)), bytes)
        assert "too large" in agree(lambda s=sign: converted(np.float32([[s * not_any_more]]), "fp32", target))


def test_every_half_survives_every_way():
    bits = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    halves = bits[(bits & 0x7C00) != 0x7C00].view(np.float16).reshape(1, -1)
    assert agree(lambda: converted(halves, "fp16", "fp32")) == halves.astype(np.float32).tobytes()
    assert agree(lambda: converted(halves.astype(np.float32), "fp32", "fp16")) == halves.tobytes()
    brains = bits[(bits & 0x7F80) != 0x7F80].reshape(1, -1)
    wide = np.frombuffer(agree(lambda: converted(brains, "bf16", "fp32")), np.float32)
    assert agree(lambda: converted(wide, "fp32", "bf16")) == brains.tobytes()


def test_rounding_to_bfloat16_is_torchs():
    torch = pytest.importorskip("torch")
    x = make("bits", 3, 4099, 1)
    want = torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy().tobytes()
    assert agree(lambda: converted(x, "fp32", "bf16")) == want


@pytest.mark.parametrize("name", codec.available())
def test_unaligned_buffers_and_given_memory(name):
    x = make("spiked", 3, 200, 5)
    size = codec.int8_size(3, 200)
    with running(name):
        fresh = bytes(codec.encode_int8(x, "fp32"))
        room = bytearray(size + 1)
        assert bytes(codec.encode_int8(x, "fp32", memoryview(room)[1:])) == fresh
        assert room[1:] == fresh
        assert decoded(memoryview(room)[1:], "fp32", 3, 200) == decoded(fresh, "fp32", 3, 200)
        raw = b"\0" + stored(x, "bf16").tobytes()
        out = np.empty((3, 200), np.float32)
        codec.convert(memoryview(raw)[1:], "bf16", out, "fp32")
        assert out.tobytes() == converted(stored(x, "bf16"), "bf16", "fp32")


@pytest.mark.parametrize("name", codec.available())
def test_sizes_are_checked(name):
    x = np.ones((2, 100), np.float32)
    with running(name):
        payload = bytes(codec.encode_int8(x, "fp32"))
        for wrong in (payload[:-1], payload + b"\0", b""):
            with pytest.raises(ValueError, match="expected"):
                decoded(wrong, "fp32", 2, 100)
        with pytest.raises(ValueError, match="expected"):
            codec.encode_int8(x, "fp32", bytearray(len(payload) - 1))
        with pytest.raises(ValueError, match="expected"):
            codec.convert(b"123", "fp32", x, "fp32")
        for hidden in (0, 65537):
            with pytest.raises(ValueError, match="hidden"):
                codec.encode_int8(np.ones((1, hidden), np.float32), "fp32")


def test_one_token_of_the_widest_model():
    x = make("normal", 1, codec.HIDDEN_MAX, 3)
    x[0, -1] = 1e9  # the highest index that 16 bits hold
    payload = agree(lambda: bytes(codec.encode_int8(x, "fp32")))
    agree(lambda: decoded(payload, "fp32", 1, codec.HIDDEN_MAX))


def test_use_knows_what_is_here():
    with pytest.raises(ValueError, match="numpy"):
        codec.use("sse9")
    with running("numpy"):
        assert codec.isa() == "numpy"


@pytest.mark.real_clock
@pytest.mark.skipif(codec.available() == ("numpy",), reason="NumPy's own business")
@pytest.mark.parametrize("direction", ["encode", "decode", "convert"])
def test_large_tensors_release_the_interpreter(direction):
    """With threads that never yield on their own, this one can run during the call only if the call lets it."""
    x = make("normal", 256, 1024, 0)
    payload = codec.encode_int8(x, "fp32")
    out = np.empty_like(x)
    work = {
        "encode": lambda: codec.encode_int8(x, "fp32"),
        "decode": lambda: codec.decode_int8(payload, "fp32", out),
        "convert": lambda: codec.convert(x, "fp32", out, "fp32"),
    }[direction]
    flag: list[bool] = []
    seen: list[bool] = []

    def loop():
        for _ in range(3000):
            work()
            if flag:
                seen.append(True)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=loop)
        thread.start()
        flag.append(True)
        thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert seen


def python(code, **env):
    environment = {**os.environ, "PYTHONPATH": str(REPO), **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


@pytest.mark.real_clock
def test_the_environment_picks_the_twin_in_silence():
    done = python("from p2pllm_native import codec; print(codec.isa())", P2PLLM_NATIVE_ISA="numpy")
    assert (done.stdout, done.stderr) == ("numpy\n", "")


@pytest.mark.real_clock
def test_without_the_extension_everything_works_and_says_so_once():
    done = python(
        "import sys; sys.modules['p2pllm_native._codec'] = None\n"
        "import numpy as np\n"
        "from p2pllm_native import codec\n"
        "from p2pllm.wire.tensor import decode, encode\n"
        "header, payload = encode(np.ones((2, 64), np.float32), 'fp32', 'int8')\n"
        "print(codec.isa(), codec.available(), (decode(header, payload, 'fp32') == 1).all())\n",
        P2PLLM_NATIVE_ISA="",
    )
    assert done.stdout == "numpy ('numpy',) True\n"
    assert done.stderr.count("\n") == 1
    assert "slower" in done.stderr


@pytest.mark.real_clock
def test_an_unknown_isa_is_named_and_passed_over():
    done = python("from p2pllm_native import codec; print(codec.isa())", P2PLLM_NATIVE_ISA="sse9")
    assert done.stdout.strip() == codec.available()[0]
    assert "sse9" in done.stderr


@pytest.mark.real_clock
def test_the_package_itself_imports_nothing():
    done = python("import sys, p2pllm_native; print([m for m in sys.modules if 'numpy' in m or 'p2pllm_native.' in m])")
    assert done.stdout == "[]\n"
