from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.wire.messages import plain_size
from p2pllm.wire.pieces import Piece, join, widths
from p2pllm.wire.tensor import CODECS, encode


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("hidden", [1, 63, 64, 200, 2048])
def test_widths_are_those_of_a_token(codec, hidden):
    assert sum(widths(codec, hidden)) == plain_size(codec, 1, hidden)


cuts = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 6)), max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODECS), cuts, st.integers(0, 99))
def test_joined_tokens_are_the_bytes_of_an_encoding_of_them(codec, cuts, seed):
    rng = np.random.default_rng(seed)
    wholes = [rng.standard_normal((tokens, 130)).astype(np.float32) for tokens in (1, 3, 6)]
    pieces, parts = [], [np.zeros((0, 130), np.float32)]
    for index, a, b in cuts:
        whole = wholes[index]
        start, stop = sorted((min(a, len(whole)), min(b, len(whole))))
        pieces.append(Piece(encode(whole, "fp32", codec)[1], len(whole), start, stop))
        parts.append(whole[start:stop])
    expected = encode(np.concatenate(parts), "fp32", codec)
    header, payload = join(codec, 130, pieces)
    assert (header, bytes(payload)) == (expected[0], bytes(expected[1]))
