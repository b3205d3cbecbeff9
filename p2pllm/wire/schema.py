"""Headers as msgpack maps: one table per message, and every check of a field that a peer can fill.

Invariants: a message that leaves ``Schema.unpack`` is valid in itself (types, bounds, lengths, enums, sums); what it
means within a session is the automata's business. Bad input raises RemoteProtocolError and nothing else. Whatever has
its default is left out; unknown keys are ignored, so a later version may add some. Integer lists are packed u32, so
that a header cannot make msgpack build large nested lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

import msgpack

from p2pllm.config import WireLimits
from p2pllm.errors import LocalProtocolError, RemoteProtocolError
from p2pllm.wire import checks as c
from p2pllm.wire import fields as f
from p2pllm.wire import messages as m
from p2pllm.wire.checks import refuse

_MISSING: Any = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """A decoded header: the message, and what its payload must be."""

    message: m.Message
    payload_size: int
    cuts: tuple[int, ...] | None = None
    """Lengths of the byte strings that the payload is made of, for messages that carry a list of them."""

    def finish(self, payload: bytes | memoryview) -> tuple[m.Message, bytes | memoryview]:
        """The message as its receiver wants it, once the whole payload is there."""
        if self.cuts is None:
            return self.message, payload
        parts = []
        start = 0
        for size in self.cuts:
            parts.append(bytes(payload[start : start + size]))
            start += size
        assert isinstance(self.message, m.RecordsPage | m.RecordsOffer)
        return dataclasses.replace(self.message, records=tuple(parts)), b""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One message's layout: its class, number, fields, and the check across fields."""

    kind: type[Any]
    number: int
    fields: tuple[tuple[str, str, f.Field, Any], ...]
    """(attribute, key, codec, default or _MISSING), in the order of the dataclass."""
    check: Callable[[Any, WireLimits], None] | None
    tensor: bool
    gradient: bool
    """A second tensor of the same shape follows the first."""
    records: bool

    def required(self, name: str) -> bool:
        """Whether the field ``name`` must be there."""
        return any(field == name and default is _MISSING for field, _, _, default in self.fields)


class Schema:
    """Every message's table, bound to one set of limits; get it from ``schema_for``."""

    def __init__(self, limits: WireLimits) -> None:
        self.limits = limits
        self.shapes: dict[type[Any], Shape] = {}
        self._numbers: dict[int, Shape] = {}
        codecs = f.codecs(limits)
        for kind, (number, keys) in _TABLE.items():
            spec = []
            for field in dataclasses.fields(kind):
                if field.name not in keys:
                    continue
                key, codec = keys[field.name]
                default = _MISSING if field.default is dataclasses.MISSING else field.default
                spec.append((field.name, key, codecs[codec], default))
            names = {field.name for field in dataclasses.fields(kind)}
            shape = Shape(
                kind, number, tuple(spec), _CHECKS.get(kind), "tensor" in names, "gradient" in names, "records" in names
            )
            self.shapes[kind] = self._numbers[number] = shape

    def pack(self, message: m.Message, payload: bytes | bytearray | memoryview) -> tuple[bytes, Any]:
        """Header bytes and payload of a message of ours.

        Raises:
            LocalProtocolError: the message breaks a limit or contradicts itself or its payload.
        """
        shape = self.shapes[type(message)]
        if shape.records:
            records: tuple[bytes, ...] = message.records  # type: ignore[union-attr]
            payload = b"".join(records)
        size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        out: dict[str, Any] = {"t": shape.number}
        try:
            if size:
                out["p"] = size
            for name, key, codec, default in shape.fields:
                value = getattr(message, name)
                if value != default:
                    raw = codec.dump(value)
                    codec.load(raw)
                    out[key] = raw
            if shape.tensor:
                self._pack_tensor(message.tensor, out)  # type: ignore[union-attr]
            if shape.gradient:
                self._pack_gradient(message.gradient, out)  # type: ignore[union-attr]
            if shape.records:
                out["l"] = f.dump_ints([len(record) for record in records])
                _check_cuts(out["l"], size, self.limits)
            if shape.tensor or shape.records:
                self._check_payload(shape, message, size)
            elif size:
                refuse(f"{shape.kind.__name__} carries no payload")
            if shape.check is not None:
                shape.check(message, self.limits)
        except RemoteProtocolError as exc:
            raise LocalProtocolError(f"cannot send {shape.kind.__name__}: {exc}") from None
        header: bytes = msgpack.packb(out)
        if len(header) > self.limits.header_bytes_max:
            raise LocalProtocolError(f"cannot send {shape.kind.__name__}: header of {len(header)} bytes")
        return header, payload

    def unpack(self, header: bytes | memoryview) -> Head:
        """Decode and validate a head frame's header.

        Raises:
            RemoteProtocolError: it is not a valid message of this version.
        """
        raw = _unpack_map(header)
        number = raw.get("t")
        shape = self._numbers.get(number) if type(number) is int else None
        if shape is None:
            refuse(f"unknown message type {number!r:.40}")
        size = raw.get("p", 0)
        if type(size) is not int or not 0 <= size <= self.limits.payload_bytes_max:
            refuse(f"payload of {size!r:.40} bytes; at most {self.limits.payload_bytes_max} are allowed")
        values: dict[str, Any] = {}
        get = raw.get
        try:
            for name, key, codec, default in shape.fields:
                item = get(key, _MISSING)
                if item is not _MISSING:
                    values[name] = codec.load(item)
                elif default is _MISSING:
                    refuse(f"key {key!r} is missing")
            cuts = None
            if shape.tensor:
                rest = size
                if shape.gradient:
                    values["gradient"] = gradient = self._unpack_gradient(raw, size)
                    rest -= gradient.size
                values["tensor"] = self._unpack_tensor(raw, rest)
            elif shape.records:
                cuts = _check_cuts(raw.get("l", b""), size, self.limits)
                values["records"] = ()
            elif size:
                refuse("it carries no payload")
            message = shape.kind(**values)
            if shape.tensor or shape.records:
                self._check_payload(shape, message, size)
            if shape.check is not None:
                shape.check(message, self.limits)
        except RemoteProtocolError as exc:
            raise RemoteProtocolError(f"bad {shape.kind.__name__}: {exc}") from None
        return Head(message, size, cuts)

    def _pack_tensor(self, tensor: m.TensorHeader, out: dict[str, Any]) -> None:
        number = f.CODEC_NUMBERS.get(tensor.codec)
        if number is None:
            refuse(f"unknown codec {tensor.codec!r}")
        out["x"] = number
        out["s"] = list(tensor.shape)
        if tensor.zstd:
            out["z"] = True

    def _unpack_tensor(self, raw: dict[str, Any], size: int) -> m.TensorHeader:
        number = raw.get("x")
        codec = f.CODECS[number] if type(number) is int and 0 <= number < len(f.CODECS) else None
        if codec is None:
            refuse(f"unknown codec {number!r:.40}")
        shape = raw.get("s")
        if type(shape) is not list or len(shape) != 2 or type(shape[0]) is not int or type(shape[1]) is not int:
            refuse("a tensor's shape is two integers")
        zstd = raw.get("z", False)
        if type(zstd) is not bool:
            refuse("the zstd flag is a boolean")
        return m.TensorHeader(codec, (shape[0], shape[1]), size, zstd)

    def _pack_gradient(self, gradient: m.TensorHeader, out: dict[str, Any]) -> None:
        own: dict[str, Any] = {}
        self._pack_tensor(gradient, own)
        out["gx"], out["gp"] = own["x"], gradient.size
        if gradient.zstd:
            out["gz"] = True

    def _unpack_gradient(self, raw: dict[str, Any], total: int) -> m.TensorHeader:
        size = raw.get("gp")
        if type(size) is not int or not 0 <= size <= total:
            refuse(f"a gradient of {size!r:.40} bytes in a payload of {total}")
        keys = {"x": raw.get("gx"), "s": raw.get("s"), "z": raw.get("gz", False)}
        return self._unpack_tensor(keys, size)

    def _check_payload(self, shape: Shape, message: Any, size: int) -> None:
        """Whether a payload of ``size`` bytes is what the header describes."""
        if size > self.limits.payload_bytes_max:
            refuse(f"payload of {size} bytes; at most {self.limits.payload_bytes_max} are allowed")
        if not shape.tensor:
            return
        if shape.gradient:
            gradient: m.TensorHeader = message.gradient
            self._check_tensor(gradient, gradient.size)
            size -= gradient.size
        self._check_tensor(message.tensor, size)

    def _check_tensor(self, tensor: m.TensorHeader, size: int) -> None:
        tokens, hidden = tensor.shape
        if not (0 <= tokens <= self.limits.step_tokens_max and 1 <= hidden <= self.limits.hidden_max):
            refuse(f"tensor of shape [{tokens}, {hidden}] is beyond the limits")
        if tensor.size != size:
            refuse(f"payload of {size} bytes where its header says {tensor.size}")
        plain = m.plain_size(tensor.codec, tokens, hidden)
        if plain > self.limits.payload_bytes_max:
            refuse(f"tensor of {plain} bytes; at most {self.limits.payload_bytes_max} are allowed")
        if tensor.zstd:
            if not 0 < size < plain:  # otherwise it is sent as it is
                refuse(f"{size} compressed bytes cannot be a {tensor.codec} tensor of [{tokens}, {hidden}]")
        elif size != plain:
            refuse(f"{size} bytes are no {tensor.codec} tensor of [{tokens}, {hidden}], which has {plain}")


@lru_cache(maxsize=8)
def schema_for(limits: WireLimits) -> Schema:
    """The schema of these limits, built once."""
    return Schema(limits)


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise RemoteProtocolError(f"msgpack extension type {code}")


def _unpack_map(header: bytes | memoryview) -> dict[str, Any]:
    try:
        # Short arrays only (spans, shapes): nested ones must not be able to claim memory.
        raw = msgpack.unpackb(
            header, raw=False, strict_map_key=True, max_array_len=8, max_map_len=64, ext_hook=_refuse_extension
        )
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise RemoteProtocolError(f"header is no msgpack map: {type(exc).__name__}") from None
    if type(raw) is not dict:
        refuse("header is no msgpack map")
    return raw


def _check_cuts(raw: object, size: int, limits: WireLimits) -> tuple[int, ...]:
    cuts = f.load_ints(raw, limits.records_per_page_max, limits.record_bytes_max)
    if sum(cuts) != size:
        refuse(f"records of {sum(cuts)} bytes in a payload of {size}")
    return cuts


_CHECKS: dict[type[Any], Callable[[Any, WireLimits], None]] = {
    m.Open: c.check_open,
    m.Step: c.check_step,
    m.Forward: c.check_forward,
    m.Backward: c.check_backward,
    m.Answer: c.check_positions,
    m.Attached: c.check_positions,
}

# Message -> (number, {attribute: (key, codec in fields.codecs)}). ``tensor`` (keys p, x, s, z) and ``records`` (p, l)
# are handled above. The numbers and keys are the protocol: never reuse one.
_SESSION = {"session": ("i", "session"), "epoch": ("e", "u32")}
_TIMES = {"queue_s": ("q", "seconds"), "compute_s": ("c", "seconds")}
_TABLE: dict[type[Any], tuple[int, dict[str, tuple[str, str]]]] = {
    m.Open: (
        1,
        _SESSION
        | {
            "model": ("m", "model"),
            "span": ("b", "span"),
            "rows": ("r", "rows"),
            "max_length": ("n", "length"),
            "activations": ("a", "codec"),
            "returns": ("o", "codec"),
            "codec_points": ("k", "points"),
            "numerics": ("u", "name"),
            "push_from": ("f", "peer"),
            "push_to": ("g", "peer"),
            "adapter": ("d", "name"),
            "alloc_timeout_s": ("w", "seconds"),
        },
    ),
    m.Rewire: (2, _SESSION | {"push_from": ("f", "peer"), "push_to": ("g", "peer"), "step": ("j", "id_or_none")}),
    m.Attach: (3, _SESSION),
    m.Step: (
        4,
        _SESSION
        | {
            "step": ("j", "u32"),
            "positions": ("h", "positions"),
            "counts": ("n", "counts"),
            "sources": ("y", "row_indices"),
            "tail": ("l", "tail"),
            "acked": ("k", "id_or_none"),
        },
    ),
    m.Close: (5, {"session": ("i", "session")}),
    m.Opened: (6, _SESSION | {"numerics": ("u", "name")}),
    m.Attached: (7, _SESSION | {"step": ("j", "id_or_none"), "positions": ("h", "positions")}),
    m.Answer: (8, _SESSION | _TIMES | {"step": ("j", "u32"), "positions": ("h", "positions")}),
    m.Closed: (9, {"session": ("i", "session")}),
    m.Fault: (
        10,
        {
            "kind": ("k", "fault_kind"),
            "reason": ("m", "reason"),
            "session": ("i", "session"),
            "epoch": ("e", "u32"),
            "step": ("j", "id_or_none"),
            "retry_after_s": ("w", "retry_after"),
        },
    ),
    m.Unpushed: (11, _SESSION),
    m.Forward: (
        16,
        {
            "request": ("j", "u32"),
            "model": ("m", "model"),
            "span": ("b", "span"),
            "counts": ("n", "counts"),
            "activations": ("a", "codec"),
            "codec_points": ("k", "points"),
            "adapter": ("d", "name"),
        },
    ),
    m.Forwarded: (17, _TIMES | {"request": ("j", "u32")}),
    m.Backward: (
        18,
        {
            "request": ("j", "u32"),
            "model": ("m", "model"),
            "span": ("b", "span"),
            "counts": ("n", "counts"),
            "activations": ("a", "codec"),
            "codec_points": ("k", "points"),
            "adapter": ("d", "name"),
        },
    ),
    m.Backwarded: (19, _TIMES | {"request": ("j", "u32")}),
    m.InfoRequest: (24, {"nonce": ("n", "u64"), "model": ("m", "model")}),
    m.Info: (25, {"nonce": ("n", "u64"), "record": ("r", "record")}),
    m.RecordsRequest: (
        26,
        {
            "model": ("m", "model"),
            "log": ("g", "u64"),
            "cursor": ("c", "u64"),
            "limit": ("n", "page"),
            "have": ("h", "digests"),
        },
    ),
    m.RecordsPage: (27, {"log": ("g", "u64"), "cursor": ("c", "u64"), "more": ("o", "bool")}),
    m.RecordsOffer: (28, {}),
}
