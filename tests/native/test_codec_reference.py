"""The codec's specification, by hand: layout, ties, exponents, and how far a value may move."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2pllm_native import codec_reference as reference

FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)


def encode(x):
    out = np.empty(reference.int8_size(*x.shape), np.uint8)
    reference.encode_int8(x, "fp32", out)
    return out


def decode(payload, shape, dtype="fp32"):
    out = np.empty(shape, reference.STORAGE[dtype])
    reference.decode_int8(payload, dtype, out)
    return out


@pytest.mark.parametrize(
    ("hidden", "k"), [(1, 1), (63, 1), (127, 1), (128, 2), (512, 8), (1023, 15), (1024, 16), (4096, 16), (65536, 16)]
)
def test_how_many_outliers(hidden, k):
    assert reference.outliers(hidden) == k
    assert reference.int8_size(3, hidden) == 3 * (4 + 1 + 2 * k + 2 * k + hidden)


def test_a_payload_byte_by_byte():
    x = np.zeros((2, 128), np.float32)
    x[0, :6] = [127.0, -300.0, 2.5, 3.5, -2.5, 999_936.0]  # outliers at 1 and 5; 127 is the largest of the rest
    payload = encode(x).tobytes()
    scales, exponents, indices, values, levels = (
        payload[:8], payload[8:10], payload[10:18], payload[18:26], payload[26:]
    )  # fmt: skip
    assert scales == struct.pack("<2f", 1.0, 0.0)
    assert exponents == bytes([4, 0]), "999936 / 2^4 is the first that is at most 65504"
    assert indices == struct.pack("<4H", 1, 5, 0, 1), "ascending; among equals the lowest"
    assert values == struct.pack("<4e", -300.0 / 16, 62496.0, 0.0, 0.0)
    assert levels[:6] == struct.pack("6b", 127, 0, 2, 4, -2, 0), "ties to even; zero where an outlier is"
    assert levels[6:] == bytes(250)
    decoded = decode(np.frombuffer(payload, np.uint8), x.shape)
    assert decoded[0, :6].tolist() == [127.0, -300.0, 2.0, 4.0, -2.0, 999_936.0]


@pytest.mark.parametrize(
    ("top", "exponent"),
    [(0.0, 0), (1e-40, 0), (65504.0, 0), (65504.004, 1), (65520.0, 1), (131008.0, 1), (131009.0, 2), (2.0**127, 112)],
)
def test_the_exponent_is_the_smallest_that_fits(top, exponent):
    x = np.zeros((1, 64), np.float32)
    x[0, 40] = -top
    assert encode(x)[4] == exponent
    assert np.isfinite(decode(encode(x), x.shape)).all()


def test_equal_magnitudes_take_the_lowest_index():
    x = np.full((1, 256), -7.0, np.float32)
    x[0, 100:] = 7.0
    x[0, 200] = 8.0
    payload = encode(x)
    assert payload[5 : 5 + 8].view("<u2").tolist() == [0, 1, 2, 200]


def test_a_row_that_is_almost_zero_has_no_scale():
    x = np.full((1, 64), 2.0**-101, np.float32)
    x[0, 3] = 1.0
    payload = encode(x)
    assert payload[:4].view("<f4") == 0
    assert not payload[9:].any()


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(1, 140)), elements=FLOATS))
def test_how_far_a_value_may_move(x):
    tokens, hidden = x.shape
    payload = encode(x)
    decoded = decode(payload, x.shape)
    k = reference.outliers(hidden)
    scale = payload[: 4 * tokens].view("<f4")
    picked = payload[5 * tokens : (5 + 2 * k) * tokens].view("<u2").reshape(tokens, k).astype(np.int64)
    error = np.abs(decoded.astype(np.float64) - x)
    for row, taken in enumerate(picked):
        top = float(np.abs(x[row]).max())
        rest = np.delete(np.arange(hidden), taken)
        # Half a level, and the rounding of the scale itself; below 2^-100 everything is zero.
        assert (error[row, rest] <= max(float(scale[row]) * 0.50001, 2.0**-100)).all()
        # Half precision: 11 bits, or the smallest half at the row's exponent.
        floor = 2.0**-25 * max(1.0, top / 65504 * 2)
        assert (error[row, taken] <= np.abs(x[row, taken]) * 2.0**-11 + floor).all()
        assert np.abs(x[row, rest]).max(initial=0) <= np.abs(x[row, taken]).min(), "outliers are the largest"


def test_large_tensors_are_worked_on_in_parts():
    x = np.random.default_rng(0).standard_normal((700, 512)).astype(np.float32)
    whole = decode(encode(x), x.shape)
    parts = np.concatenate([decode(encode(part), part.shape) for part in np.array_split(x, 7)])
    assert np.array_equal(whole, parts)
