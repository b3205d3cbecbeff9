"""Valid messages of every kind, for properties and fuzzing."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import msgpack
from hypothesis import strategies as st

from p2pllm.types import ModelId, PeerId, SessionId, Span
from p2pllm.wire import messages as m

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
SESSION = SessionId(bytes(range(16)))
MODEL = ModelId("ab" * 32)
CODECS = ("int8", "bf16", "fp16", "fp32")

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
sessions = st.binary(min_size=16, max_size=16).map(SessionId)
peers = st.text(ALPHABET, min_size=1, max_size=128).map(PeerId)
models = st.text("0123456789abcdef", min_size=1, max_size=64).map(ModelId)
seconds = st.floats(0, 1e6, allow_nan=False)
names = st.text("abc/-.é ", max_size=200)
points = st.lists(st.integers(0, 1024), unique=True, max_size=20).map(lambda values: tuple(sorted(values)))


@st.composite
def spans(draw: Any) -> Span:
    start = draw(st.integers(0, 1023))
    return Span(start, draw(st.integers(start + 1, 1024)))


@st.composite
def tensors(draw: Any, tokens: int | None = None) -> m.TensorHeader:
    tokens = draw(st.integers(0, 20)) if tokens is None else tokens
    hidden = draw(st.integers(1, 300))
    codec = draw(st.sampled_from(CODECS))
    size = m.plain_size(codec, tokens, hidden)
    if tokens and draw(st.booleans()):
        return m.TensorHeader(codec, (tokens, hidden), draw(st.integers(1, size - 1)), True)
    return m.TensorHeader(codec, (tokens, hidden), size)


@st.composite
def opens(draw: Any) -> m.Open:
    return m.Open(
        draw(sessions),
        draw(u32),
        draw(models),
        draw(spans()),
        draw(st.integers(1, 256)),
        draw(st.integers(1, 1 << 20)),
        draw(st.sampled_from(CODECS)),
        draw(points),
        draw(names),
        draw(st.none() | peers),
        draw(st.none() | peers),
        draw(names),
        draw(seconds),
        draw(st.sampled_from(("", *CODECS))),
    )


@st.composite
def steps(draw: Any) -> m.Step:
    rows = draw(st.integers(1, 6))
    counts = tuple(draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows)))
    positions = tuple(draw(st.lists(st.integers(0, 1 << 19), min_size=rows, max_size=rows)))
    sources = tuple(draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows) | st.just([])))
    step = draw(u32)
    return m.Step(
        draw(sessions),
        draw(u32),
        step,
        positions,
        counts,
        draw(tensors(sum(counts))),
        sources,
        draw(st.integers(-1, 4096)),
        draw(st.integers(-1, step - 1)),
    )


@st.composite
def forwards(draw: Any) -> m.Forward:
    counts = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    return m.Forward(
        draw(u32),
        draw(models),
        draw(spans()),
        counts,
        draw(st.sampled_from(CODECS)),
        draw(tensors(sum(counts))),
        draw(points),
        draw(names),
    )


@st.composite
def backwards(draw: Any) -> m.Backward:
    counts = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    inputs = draw(tensors(sum(counts)))
    codec = draw(st.sampled_from(CODECS))
    gradient = m.TensorHeader(codec, inputs.shape, m.plain_size(codec, *inputs.shape))
    if draw(st.booleans()) and gradient.size > 1:
        gradient = dataclasses.replace(gradient, size=draw(st.integers(1, gradient.size - 1)), zstd=True)
    return m.Backward(
        draw(u32),
        draw(models),
        draw(spans()),
        counts,
        draw(st.sampled_from(CODECS)),
        inputs,
        gradient,
        draw(points),
        draw(names),
    )


rows = st.lists(st.integers(0, 1 << 20), min_size=1, max_size=8).map(tuple)
ids_or_none = st.integers(-1, 2**32 - 1)
digests = st.lists(st.binary(min_size=8, max_size=8), max_size=20).map(b"".join)
records = st.lists(st.binary(max_size=300), max_size=6).map(tuple)

messages: st.SearchStrategy[m.Message] = st.one_of(
    opens(),
    st.builds(m.Rewire, sessions, u32, st.none() | peers, st.none() | peers, ids_or_none),
    st.builds(m.Attach, sessions, u32),
    steps(),
    st.builds(m.Close, sessions),
    st.builds(m.Opened, sessions, u32, names),
    st.builds(m.Attached, sessions, u32, ids_or_none, rows),
    st.builds(m.Answer, sessions, u32, u32, rows, tensors(), seconds, seconds),
    st.builds(m.Closed, sessions),
    st.builds(
        m.Fault,
        st.sampled_from(m.FaultKind),
        st.text("abc é", max_size=500),
        sessions | st.just(m.NO_SESSION),
        u32,
        ids_or_none,
        st.floats(0, 60),
    ),
    st.builds(m.Unpushed, sessions, u32),
    forwards(),
    st.builds(m.Forwarded, u32, tensors(), seconds, seconds),
    backwards(),
    st.builds(m.Backwarded, u32, tensors(), seconds, seconds),
    st.builds(m.InfoRequest, u64, models),
    st.builds(m.Info, u64, st.binary(max_size=8192)),
    st.builds(m.RecordsRequest, models, u64, u64, st.integers(1, 256), digests),
    st.builds(m.RecordsPage, u64, u64, st.booleans(), records),
    st.builds(m.RecordsOffer, records),
)


def payload_of(message: m.Message) -> bytes:
    """Some payload of the size that the message declares."""
    sizes = [tensor.size for name in ("tensor", "gradient") if (tensor := getattr(message, name, None)) is not None]
    return (b"\x5a\x00\xc3" * (sum(sizes) // 3 + 1))[: sum(sizes)]


def tensor_of(tokens: int, hidden: int, codec: str = "int8") -> m.TensorHeader:
    return m.TensorHeader(codec, (tokens, hidden), m.plain_size(codec, tokens, hidden))


def raw_frame(header: bytes, body: bytes = b"", *, version: int = 1, kind: int = 0, header_size: int = -1) -> bytes:
    """A frame built by hand from the words of docs/protocol.md, with a right checksum."""
    size = len(header) if header_size < 0 else header_size
    rest = bytes([version, kind]) + size.to_bytes(2, "big") + header + body
    frame = (len(rest) + 4).to_bytes(4, "big") + rest
    return frame + zlib.crc32(frame).to_bytes(4, "big")


def raw_message(fields: dict[str, Any], body: bytes = b"") -> bytes:
    """A head frame of any map whatsoever."""
    return raw_frame(msgpack.packb(fields), body)
