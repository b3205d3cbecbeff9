"""Headers and indexes from anywhere: understood or refused, never anything else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from p2pllm.errors import CheckpointError
from p2pllm.model.header import header_length, parse_header, parse_index
from tests.model.files import TINY, weights


def test_a_real_header_says_where_every_tensor_is():
    tensors = weights(TINY)
    data = save(tensors, metadata={"format": "pt"})
    length = header_length(data[:8], "f", len(data))
    stored = parse_header(data[8 : 8 + length], "f", len(data))
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert stored[name].shape == tuple(tensor.shape)
        assert data[stored[name].start : stored[name].stop] == tensor.numpy().tobytes()


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": 3},
        {"shape": "2"},
        {"shape": [2, -2]},
        {"shape": [True, 4]},
        {"data_offsets": [16, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 15]},
        {"data_offsets": [0.0, 16.0]},
    ],
)
def test_a_malformed_entry_is_named(change):
    header = json.dumps({"t": {**ENTRY, **change}}).encode()
    with pytest.raises(CheckpointError, match=r"f: .*t"):
        parse_header(header, "f", 10_000)


@given(st.binary(max_size=64), st.integers(0, 200))
def test_any_bytes_are_a_header_or_refused(data, size):
    for parse in (lambda: header_length(data[:8], "f", size), lambda: parse_header(data, "f", size)):
        with contextlib.suppress(CheckpointError):
            parse()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.fixed_dictionaries({}, optional={"dtype": json_values, "shape": json_values, "data_offsets": json_values})
        | json_values,
        max_size=3,
    )
)
def test_any_json_is_a_header_or_refused(value):
    data = json.dumps(value).encode()
    for parse in (parse_header, lambda d, f, _: parse_index(d, f)):
        with contextlib.suppress(CheckpointError):
            parse(data, "f", 100)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "a\\b", "", "..", 3, None])
def test_an_index_cannot_point_outside(shard):
    with pytest.raises(CheckpointError):
        parse_index(json.dumps({"weight_map": {"t": shard}}).encode(), "f")


def test_deeply_nested_json_is_refused():
    with pytest.raises(CheckpointError):
        parse_header(b'{"a":' + b"[" * 200_000, "f", 10**6)
