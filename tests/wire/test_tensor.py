"""The wire's face of the codec: headers, sizes, compression, and what hostile bytes turn into."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.errors import RemoteProtocolError
from p2pllm.wire.messages import TensorHeader
from p2pllm.wire.tensor import CODECS, DTYPES, decode, encode, payload_size, round_trip

REPO = Path(__file__).parents[2]


def activations(tokens, hidden, dtype="fp32", seed=0):
    """Like a model's: ordinary numbers, and a few channels that are much larger in every token."""
    x = np.random.default_rng(seed).standard_normal((tokens, hidden)).astype(np.float32)
    x[:, :: max(1, hidden // 5)] *= 60
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(DTYPES[dtype])


def values(x, dtype):
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32)


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 64), (1, 1), (1, 512), (5, 200)])
def test_there_and_back(shape, dtype, codec, zstd):
    x = activations(*shape, dtype)
    header, payload = encode(x, dtype, codec, zstd=zstd)
    assert header.shape == shape
    assert header.codec == codec
    assert header.size == len(payload)
    assert header.zstd or header.size == payload_size(codec, *shape)
    y = decode(header, payload, dtype)
    assert y.shape == shape
    assert y.dtype == DTYPES[dtype]
    assert y.flags.writeable
    assert y.tobytes() == round_trip(x, dtype, codec).tobytes()
    if codec in ("fp32", dtype):
        assert y.tobytes() == x.tobytes(), "lossless where nothing was narrowed"
    elif x.size:
        error = np.linalg.norm(values(y, dtype) - values(x, dtype)) / np.linalg.norm(values(x, dtype))
        assert error < 0.01


def test_an_int8_error_below_one_per_cent_beside_outliers():
    x = activations(32, 4096)
    ordinary = np.abs(x) < 8
    error = (round_trip(x, "fp32", "int8") - x)[ordinary]
    assert np.linalg.norm(error) / np.linalg.norm(x[ordinary]) < 0.0125


def test_sizes():
    assert payload_size("int8", 1, 4096) <= 0.52 * payload_size("bf16", 1, 4096)
    assert [payload_size(codec, 3, 128) for codec in CODECS] == [3 * (5 + 8 + 128), 768, 768, 1536]
    for arguments in [("int4", 1, 64), ("int8", -1, 64), ("int8", 1, 0), ("fp32", 1, 65537)]:
        with pytest.raises(ValueError, match=r"codec|shape"):
            payload_size(*arguments)


def test_zstd_is_used_only_where_it_helps():
    smooth = np.tile(np.float32([1, 2, 3, 4]), (4, 256))
    header, payload = encode(smooth, "fp32", "int8", zstd=True)
    assert header.zstd
    assert len(payload) < payload_size("int8", 4, 1024) / 4
    noise = np.random.default_rng(0).integers(0, 0x7F00, (1, 64)).astype(np.uint16)
    header, payload = encode(noise, "bf16", "bf16", zstd=True)
    assert not header.zstd
    assert bytes(payload) == noise.tobytes()


def test_given_memory_is_used():
    x = activations(4, 256)
    for codec in CODECS:
        room = bytearray(payload_size(codec, 4, 256))
        header, payload = encode(x, "fp32", codec, out=room)
        assert bytes(payload) == bytes(room) == bytes(encode(x, "fp32", codec)[1])
        out = np.empty((4, 256), np.float32)
        assert decode(header, payload, "fp32", out=out) is out
        assert out.tobytes() == round_trip(x, "fp32", codec).tobytes()
        with pytest.raises(ValueError, match="expected"):
            encode(x, "fp32", codec, out=bytearray(5))
    for wrong in (np.empty((4, 255), np.float32), np.empty((256, 4), np.float32).T, np.empty((4, 256), np.float16)):
        with pytest.raises(ValueError, match=r"out|array"):
            decode(header, payload, "fp32", out=wrong)


def test_slices_of_larger_arrays_are_welcome():
    x = activations(6, 256)
    assert bytes(encode(x[::2, :128], "fp32", "int8")[1]) == bytes(encode(x[::2, :128].copy(), "fp32", "int8")[1])
    header, payload = encode(x, "fp32", "bf16")
    room = memoryview(b"\0" + bytes(payload))[1:]  # as a payload lies in a frame: not aligned
    assert decode(header, room, "bf16").tobytes() == bytes(payload)


def test_our_own_mistakes_are_value_errors():
    x = activations(2, 64)
    for bad in (np.float32([[np.nan]]), np.float32([[np.inf]]), np.float32([[-np.inf] * 200])):
        for codec in CODECS:
            with pytest.raises(ValueError, match="finite"):
                encode(bad, "fp32", codec)
    with pytest.raises(ValueError, match="too large"):
        encode(np.float32([[70000]]), "fp32", "fp16")
    with pytest.raises(ValueError, match="beyond"):
        encode(np.float32([[3e38]]), "fp32", "int8")
    for wrong in (x.astype(np.float64), x.astype(np.float16), x[0], x[None]):
        with pytest.raises(ValueError, match="activations"):
            encode(wrong, "fp32", "int8")
    with pytest.raises(ValueError, match="unknown dtype"):
        encode(x, "float32", "int8")
    with pytest.raises(ValueError, match="unknown dtype"):
        decode(*encode(x, "fp32", "int8"), "float32")
    with pytest.raises(ValueError, match="unknown tensor codec"):
        encode(x, "fp32", "int4")


HEADER, PAYLOAD = encode(
    activations(2, 128), "fp32", "int8"
)  # k = 2: scale 0:8, exponent 8:10, index 10:18, value 18:26


def poke(offset, data):
    return PAYLOAD[:offset] + data + PAYLOAD[offset + len(data) :]


@pytest.mark.parametrize(
    ("offset", "data", "says"),
    [
        (0, np.float32(np.nan).tobytes(), "scale"),
        (0, np.float32(np.inf).tobytes(), "scale"),
        (4, np.float32(-1).tobytes(), "scale"),
        (4, np.float32(-0.0).tobytes(), "scale"),
        (4, np.float32(3e38).tobytes(), "too large"),
        (8, b"\x7f", "exponent"),
        (9, b"\xff", "exponent"),
        (10, np.uint16([5, 5]).tobytes(), "indices"),
        (10, np.uint16([9, 5]).tobytes(), "indices"),
        (14, np.uint16([5, 128]).tobytes(), "indices"),
        (18, np.float16(np.inf).tobytes(), "finite"),
        (22, np.float16(np.nan).tobytes(), "finite"),
        (8, b"\x7e", "too large"),
    ],
)
def test_a_field_that_lies(offset, data, says):
    with pytest.raises(RemoteProtocolError, match=says):
        decode(HEADER, poke(offset, data), "fp32")


def test_a_number_that_our_dtype_cannot_hold():
    header, payload = encode(np.float32([[1e6] * 64]), "fp32", "int8")
    with pytest.raises(RemoteProtocolError, match="too large"):
        decode(header, payload, "fp16")
    for codec in ("bf16", "fp16", "fp32"):
        nan = (
            np.full((1, 8), 0x7FC0, np.uint16).tobytes()
            if codec == "bf16"
            else np.full(8, np.nan, DTYPES[codec]).tobytes()
        )
        for dtype in DTYPES:
            with pytest.raises(RemoteProtocolError, match="finite"):
                decode(TensorHeader(codec, (1, 8), len(nan)), nan, dtype)


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, codec="int4"),
        replace(HEADER, codec="fp32"),
        replace(HEADER, shape=(3, 128)),
        replace(HEADER, shape=(2, 129)),
        replace(HEADER, shape=(2, 0)),
        replace(HEADER, shape=(-2, 128)),
        replace(HEADER, shape=(1, 65537)),
        replace(HEADER, shape=(1 << 50, 65536)),
        replace(HEADER, size=HEADER.size + 1),
        replace(HEADER, zstd=True),
    ],
)
def test_a_header_that_lies(header):
    with pytest.raises(RemoteProtocolError):
        decode(header, PAYLOAD, "fp32")


def frame(content_size, block):
    """A zstd frame by hand: single segment, an 8-byte content size, one block."""
    return b"\x28\xb5\x2f\xfd\xe0" + content_size.to_bytes(8, "little") + block


def run_length(count):
    """A block that says: a zero byte, so many times. Four bytes that unpack to megabytes."""
    return (1 | 1 << 1 | count << 3).to_bytes(3, "little") + b"\0"


@pytest.mark.parametrize(
    "packed",
    [
        frame(1 << 40, run_length(1 << 17)),
        frame(HEADER.size - 1, run_length(HEADER.size - 1)),
        frame(HEADER.size, run_length(HEADER.size + 1)),
        frame(HEADER.size, run_length(HEADER.size - 1)),
        frame(HEADER.size, run_length(1 << 17)),
        zstandard.ZstdCompressor(write_content_size=False).compress(PAYLOAD),
        zstandard.compress(PAYLOAD) + b"\0",
        zstandard.compress(PAYLOAD) * 2,
        zstandard.compress(PAYLOAD)[:-1],
        zstandard.compress(PAYLOAD + b"\0"),
        b"\x50\x2a\x4d\x18" + HEADER.size.to_bytes(4, "little") + bytes(HEADER.size),
        PAYLOAD,
        b"",
    ],
)
def test_compressed_lies(packed):
    with pytest.raises(RemoteProtocolError):
        decode(replace(HEADER, size=len(packed), zstd=True), packed, "fp32")


def test_a_bomb_is_refused_before_memory_is_taken():
    bombs = [
        (TensorHeader("int8", (2, 128), 0, True), frame(1 << 34, run_length(1 << 17))),
        (TensorHeader("fp32", (1 << 20, 65536), 0, True), frame(4 << 36, run_length(1 << 17))),
        (TensorHeader("int8", (4000, 4096), 0, True), frame(4000 * 4165, run_length(1 << 17))),
    ]
    for header, packed in bombs:
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError):
                decode(replace(header, size=len(packed)), packed, "fp32", size_max=1 << 20)
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


@settings(max_examples=150, deadline=None)
@given(
    codec=st.sampled_from([*CODECS, "int4", ""]),
    tokens=st.integers(-1, 5),
    hidden=st.integers(-1, 200),
    zstd=st.booleans(),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**32 - 1),
    cut=st.integers(-2, 2),
)
def test_any_bytes_give_finite_numbers_or_a_protocol_error(codec, tokens, hidden, zstd, dtype, seed, cut):
    try:
        size = payload_size(codec, tokens, hidden)
    except ValueError:
        size = 100
    payload = np.random.default_rng(seed).bytes(max(0, size + (cut if abs(cut) == 2 else 0)))
    packed = zstandard.compress(payload) if zstd and seed % 2 else payload
    try:
        x = decode(TensorHeader(codec, (tokens, hidden), len(packed), zstd), packed, dtype)
    except RemoteProtocolError:
        return
    assert x.shape == (tokens, hidden)
    assert np.isfinite(values(x, dtype)).all()


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, HEADER.size - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_payloads_give_finite_numbers_or_a_protocol_error(flips):
    payload = bytearray(PAYLOAD)
    for at, byte in flips:
        payload[at] = byte
    for dtype in DTYPES:
        try:
            x = decode(HEADER, payload, dtype)
        except RemoteProtocolError:
            continue
        assert np.isfinite(values(x, dtype)).all()


@pytest.mark.real_clock
@pytest.mark.parametrize("isa", ["", "numpy"])
def test_the_import_is_light(isa):
    code = "import sys, p2pllm.wire.tensor; print([m for m in ('torch', 'libp2p', 'trio') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(REPO), "P2PLLM_NATIVE_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
