"""Headers: every field is checked, on the way in for what it is, on the way out for what we meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgpack
import pytest

from p2pllm.config import WireLimits
from p2pllm.errors import LocalProtocolError, RemoteProtocolError
from p2pllm.types import PeerId, SessionId, Span
from p2pllm.wire import messages as m
from p2pllm.wire.frame import encode_message
from p2pllm.wire.schema import Schema, schema_for
from tests.wire.strategies import MODEL, SESSION, tensor_of

SCHEMA = schema_for(WireLimits())
PROTOCOL = Path(__file__).parent.parent.parent / "docs" / "protocol.md"
PEER = PeerId("12D3KooWBy4DyF4VvFmDLyuAtbvCFdzXFTPmu1hUHDxXdwZ8s7jV")


def ints(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "big") for value in values)


OPEN: dict[str, Any] = {"t": 1, "i": SESSION, "e": 3, "m": MODEL, "b": [0, 4], "r": 2, "n": 100, "a": 0}
STEP: dict[str, Any] = {
    "t": 4,
    "i": SESSION,
    "e": 3,
    "j": 7,
    "h": ints(5, 0),
    "n": ints(1, 2),
    "x": 0,
    "s": [3, 64],
    "p": m.plain_size("int8", 3, 64),
}
ANSWER: dict[str, Any] = {"t": 8, "i": SESSION, "e": 3, "j": 7, "h": ints(6), "x": 3, "s": [1, 8], "p": 32}
FORWARD: dict[str, Any] = {
    "t": 16,
    "j": 7,
    "m": MODEL,
    "b": [0, 4],
    "n": ints(1, 2),
    "a": 0,
    "x": 1,
    "s": [3, 8],
    "p": 48,
}
BACKWARD: dict[str, Any] = FORWARD | {"t": 18, "p": 48 + 96, "gx": 3, "gp": 96}
FAULT: dict[str, Any] = {"t": 10, "k": 1, "m": "full"}


def unpack(fields: dict[str, Any]) -> m.Message:
    return SCHEMA.unpack(msgpack.packb(fields)).message


def test_the_examples_are_right() -> None:
    """Each table below spoils one field of a message that is accepted as it stands."""
    tensor = m.TensorHeader("int8", (3, 64), STEP["p"])
    assert unpack(OPEN) == m.Open(SESSION, 3, MODEL, Span(0, 4), 2, 100, "int8")
    assert unpack(STEP) == m.Step(SESSION, 3, 7, (5, 0), (1, 2), tensor)
    assert unpack(ANSWER) == m.Answer(SESSION, 3, 7, (6,), m.TensorHeader("fp32", (1, 8), 32))
    forward = m.Forward(7, MODEL, Span(0, 4), (1, 2), "int8", m.TensorHeader("bf16", (3, 8), 48))
    assert unpack(FORWARD) == forward
    gradient = m.TensorHeader("fp32", (3, 8), 96)
    assert unpack(BACKWARD) == m.Backward(7, MODEL, Span(0, 4), (1, 2), "int8", forward.tensor, gradient)
    assert unpack(FAULT) == m.Fault(m.FaultKind.BUSY, "full")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (BACKWARD | {"gx": 9}, "unknown codec 9"),
        (BACKWARD | {"gx": None}, "unknown codec"),
        (BACKWARD | {"gp": None}, "a gradient of None bytes"),
        (BACKWARD | {"gp": -1}, "a gradient of -1 bytes"),
        (BACKWARD | {"gp": 145}, "a gradient of 145 bytes in a payload of 144"),
        (BACKWARD | {"gp": 95}, "95 bytes are no fp32 tensor"),
        (BACKWARD | {"gp": 100, "p": 148}, "100 bytes are no fp32 tensor"),
        (BACKWARD | {"p": 143}, "47 bytes are no bf16 tensor"),
        (BACKWARD | {"gz": 1}, "zstd flag"),
        (BACKWARD | {"gz": True}, "compressed bytes cannot be"),
        (OPEN | {"t": 99}, "unknown message type 99"),
        (OPEN | {"t": True}, "unknown message type True"),
        (OPEN | {"t": "1"}, "unknown message type"),
        (OPEN | {"p": -1}, "payload of -1 bytes"),
        (OPEN | {"p": True}, "payload of True bytes"),
        (OPEN | {"p": 5}, "carries no payload"),
        (OPEN | {"i": SESSION + b"x"}, "byte string of 16 to 16"),
        (OPEN | {"i": b""}, "byte string"),
        (OPEN | {"i": "0123456789abcdef"}, "byte string"),
        (OPEN | {"e": -1}, "no integer in 0"),
        (OPEN | {"e": 2**32}, "no integer"),
        (OPEN | {"e": True}, "True is no integer"),
        (OPEN | {"e": 1.0}, "no integer"),
        (OPEN | {"m": "../etc"}, "no model id"),
        (OPEN | {"m": "ab\n"}, "no model id"),
        (OPEN | {"m": "a" * 129}, "no model id"),
        (OPEN | {"b": [4, 4]}, "no span"),
        (OPEN | {"b": [-1, 4]}, "no span"),
        (OPEN | {"b": [0, 1025]}, "no span"),
        (OPEN | {"b": [0]}, "two integers"),
        (OPEN | {"b": [False, True]}, "two integers"),
        (OPEN | {"b": "04"}, "two integers"),
        (OPEN | {"r": 0}, "no integer in 1..256"),
        (OPEN | {"r": 257}, "no integer in 1..256"),
        (OPEN | {"n": 0}, "no integer"),
        (OPEN | {"n": 2**21}, "no integer"),
        (OPEN | {"a": 4}, "unknown codec 4"),
        (OPEN | {"a": "int8"}, "unknown codec"),
        (OPEN | {"o": -1}, "unknown codec -1"),
        (OPEN | {"k": ints(4, 4)}, "not strictly ascending"),
        (OPEN | {"k": ints(2000)}, "2000 in a list"),
        (OPEN | {"k": b"abc"}, "4 bytes each"),
        (OPEN | {"k": [1, 2]}, "4 bytes each"),
        (OPEN | {"k": ints(*range(1026))}, "list of 1026 integers"),
        (OPEN | {"u": "x" * 201}, "no line of at most 200"),
        (OPEN | {"u": "a\nb"}, "no line"),
        (OPEN | {"d": 5}, "no line"),
        (OPEN | {"f": "0OIl"}, "no peer id"),
        (OPEN | {"f": ""}, "no peer id"),
        (OPEN | {"g": "1" * 129}, "no peer id"),
        (OPEN | {"g": None}, "no peer id"),
        (OPEN | {"w": -0.5}, "no number of seconds"),
        (OPEN | {"w": float("nan")}, "no number of seconds"),
        (OPEN | {"w": float("inf")}, "no number of seconds"),
        (OPEN | {"w": 1e7}, "too many"),
        (OPEN | {"w": True}, "no number of seconds"),
        (STEP | {"j": -1}, "no integer"),
        (STEP | {"h": ints(5)}, "1 positions for 2 counts"),
        (STEP | {"h": b"", "n": b"", "s": [0, 64], "p": 0}, "0 positions for 0 counts"),
        (STEP | {"h": ints(5, 2**20)}, "at most 1048576 are allowed"),
        (STEP | {"h": ints(5, 2**20 + 1)}, "in a list of integers"),
        (STEP | {"n": ints(1, 1)}, "counts sum to 2"),
        (STEP | {"n": ints(4097, 2)}, "4097 in a list"),
        (STEP | {"y": ints(0)}, "sources"),
        (STEP | {"y": ints(0, 2)}, "sources"),
        (STEP | {"l": -2}, "no integer"),
        (STEP | {"k": 7}, "step 7 acknowledges step 7"),
        (STEP | {"x": 9}, "unknown codec 9"),
        (STEP | {"x": False}, "unknown codec False"),
        (STEP | {"s": [3, 64, 1]}, "two integers"),
        (STEP | {"s": [3, True]}, "two integers"),
        (STEP | {"s": [3, 0]}, "beyond the limits"),
        (STEP | {"s": [3, 65537]}, "beyond the limits"),
        (STEP | {"s": [-3, 64]}, "beyond the limits"),
        (STEP | {"z": 1}, "zstd flag"),
        (STEP | {"p": STEP["p"] + 1}, "are no int8 tensor"),
        (STEP | {"p": 0}, "0 bytes are no int8 tensor"),
        (STEP | {"z": True, "p": 10000}, "cannot be a int8 tensor"),
        (STEP | {"z": True, "p": 0}, "cannot be a int8 tensor"),
        (STEP | {"n": ints(1, 4095), "h": ints(0, 0), "s": [4096, 65536], "x": 3, "z": True}, "at most 67108864"),
        (ANSWER | {"h": b""}, "no positions"),
        (ANSWER | {"q": "soon"}, "no number of seconds"),
        (FORWARD | {"n": ints(3, 0)}, "each at least one token"),
        (FORWARD | {"n": b"", "s": [0, 8], "p": 0}, "at least one sequence"),
        (FORWARD | {"n": ints(1, 1)}, "counts sum to 2"),
        (FAULT | {"k": 4}, "unknown kind of fault"),
        (FAULT | {"m": "x" * 501}, "at most 500"),
        (FAULT | {"m": b"full"}, "at most 500"),
        (FAULT | {"w": -1}, "no number of seconds"),
        ({"t": 26, "m": MODEL, "n": 257}, "no integer in 1..256"),
        ({"t": 27, "g": 0, "c": 0, "o": 1, "l": b""}, "no boolean"),
        ({"t": 27, "g": 0, "c": 0, "o": True, "l": ints(9000), "p": 9000}, "9000 in a list"),
        ({"t": 28, "l": ints(*[0] * 257)}, "list of 257"),
        ({"t": 25, "n": 1, "r": b"x" * 8193}, "byte string of 0 to 8192"),
    ],
)
def test_a_bad_field_is_refused_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason.replace("[", r"\[")):
        unpack(fields)


@pytest.mark.parametrize("fields", [OPEN, STEP, ANSWER, FORWARD, FAULT], ids=lambda fields: str(fields["t"]))
def test_every_required_key_is_missed(fields: dict[str, Any]) -> None:
    for key in fields:
        with pytest.raises(RemoteProtocolError):
            unpack({other: value for other, value in fields.items() if other != key})


@pytest.mark.parametrize(
    "header", [b"", b"\xc1", b"\xc0", msgpack.packb([1]), msgpack.packb({1: 2}), b"\x81\xa1t\x01\x00"]
)
def test_a_header_is_one_map_with_string_keys(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        SCHEMA.unpack(header)


@pytest.mark.parametrize("value", [msgpack.Timestamp(5), msgpack.ExtType(3, b"x"), {"deep": {"er": 1}}])
def test_unknown_keys_are_ignored_unless_they_are_code(value: Any) -> None:
    """A later version may add keys; extension types are nobody's business here, known key or not."""
    if isinstance(value, msgpack.ExtType):
        with pytest.raises(RemoteProtocolError, match="extension type 3"):
            unpack({**FAULT, "zz": value})
    else:
        assert unpack({**FAULT, "zz": value}) == unpack(FAULT)


def test_what_is_at_its_default_is_not_sent() -> None:
    header, _ = SCHEMA.pack(m.Attach(SESSION, 3), b"")
    assert msgpack.unpackb(header) == {"t": 3, "i": SESSION, "e": 3}
    header, _ = SCHEMA.pack(unpack(STEP), bytes(STEP["p"]))
    assert msgpack.unpackb(header) == STEP


def test_a_fault_is_fit_to_be_shown() -> None:
    """Wishes are capped and control characters dropped, in what is sent as in what is received."""
    fault = unpack(FAULT | {"m": "no\x1b[31m\nroom", "w": 1e300})
    assert fault == m.Fault(m.FaultKind.BUSY, "no [31m room", retry_after_s=60.0)
    header, _ = SCHEMA.pack(m.Fault(m.FaultKind.INTERNAL, "a\nb" * 500), b"")
    assert len(msgpack.unpackb(header)["m"]) == 500
    assert "\n" not in msgpack.unpackb(header)["m"]


@pytest.mark.parametrize(
    "message",
    [
        m.Attach(SessionId(b"short"), 1),
        m.Attach(SESSION, -1),
        m.Rewire(SESSION, 1, PeerId("not base58!")),
        m.Open(SESSION, 1, MODEL, Span(0, 4), 300, 10, "int8"),
        m.Open(SESSION, 1, MODEL, Span(0, 4), 3, 10, "int4"),
        m.Open(SESSION, 1, MODEL, Span(0, 4), 3, 10, "int8", codec_points=(3, 2)),
        m.Step(SESSION, 1, 0, (0,), (2,), tensor_of(1, 8)),
        m.Step(SESSION, 1, 0, (0,), (1,), m.TensorHeader("int4", (1, 8), 4)),
        m.Step(SESSION, 1, 0, (-1,), (1,), tensor_of(1, 8)),
        m.Fault(m.FaultKind.BUSY, "full", retry_after_s=float("nan")),
    ],
)
def test_our_own_mistakes_are_ours(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError, match=f"cannot send {type(message).__name__}"):
        SCHEMA.pack(message, bytes(tensor.size) if (tensor := getattr(message, "tensor", None)) else b"")


def test_a_header_never_outgrows_its_limit() -> None:
    """The largest legal step fits; what could not be read is not sent."""
    count = WireLimits().rows_max
    step = m.Step(SESSION, 1, 0, (2**19,) * count, (1,) * count, tensor_of(count, 8), (0,) * count, 1)
    header, _ = SCHEMA.pack(step, bytes(step.tensor.size))
    assert len(header) < 4096
    with pytest.raises(LocalProtocolError, match="header of"):
        Schema(WireLimits(header_bytes_max=100)).pack(step, bytes(step.tensor.size))


def test_every_message_has_a_number_and_every_field_a_key() -> None:
    kinds = set(m.Message.__args__)
    assert set(SCHEMA.shapes) == kinds
    for kind, shape in SCHEMA.shapes.items():
        keys = [key for _, key, _, _ in shape.fields]
        assert len(keys) == len(set(keys))
        assert not set(keys) & {"t", "p", *("xsz" if shape.tensor else ""), *("l" if shape.records else "")}
        named = {name for name, *_ in shape.fields} | {"tensor", "gradient", "records"}
        assert {field.name for field in dataclasses.fields(kind)} <= named


def test_the_document_lists_every_message_and_key() -> None:
    """docs/protocol.md is what another implementation is written from."""
    text = PROTOCOL.read_text()
    for kind, shape in SCHEMA.shapes.items():
        section = text.split(f"### {shape.number} {kind.__name__}\n", 1)
        assert len(section) == 2, kind.__name__
        body = section[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
        for name, key, _, _ in shape.fields:
            row = next((line for line in body.splitlines() if line.startswith(f"| `{key}` | {name} |")), None)
            assert row is not None, f"{kind.__name__}.{name}"
            assert ("| required" in row) == shape.required(name), row


def test_the_documents_example_is_a_frame() -> None:
    frame = bytes.fromhex(PROTOCOL.read_text().split("## An example")[1].split("```")[1])
    assert frame == encode_message(m.Attach(SESSION, 3))
