"""Announcements: what a server says of itself, as signed bytes that anybody can check and nobody can alter.

    record = body | signature (64 bytes)      signature = Ed25519(key of body.peer, DOMAIN | body)
    body   = canonical msgpack: one map, keys ascending, shortest integers, 64-bit floats
    entry  = u32 age in milliseconds | record      (as members hand records on)

Invariants: pure, no clock; whatever bytes come in, only RemoteProtocolError comes out; an ``Announcement`` that
``verify`` returned is within every bound below, and its peer signed exactly these bytes. Valid is not trusted: anyone
can mint a peer id. Whether a record is timely is the view's question, not asked here.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from operator import attrgetter
from typing import Any, NoReturn

import msgpack

from p2pllm.dht.keys import SIGNATURE_BYTES, public_key_of, signature_holds
from p2pllm.errors import RemoteProtocolError
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span
from p2pllm.wire.messages import DIGEST_BYTES

DOMAIN = b"p2pllm announcement 1\0"
"""Prefixed to what is signed, so that no signature made for something else passes here."""
RECORD_VERSION = 1
ENTRY_BYTES_MAX = 8 * 1024
"""WireLimits.record_bytes_max: the age of an entry counts too."""
RECORD_BYTES_MAX = ENTRY_BYTES_MAX - 4
NAMESPACE = "p2pllm"
TTL_MAX_MS = 3_600_000
BLOCKS_MAX = 1024
ADDRS_MAX = 16
PINGS_MAX = 32
ADAPTERS_MAX = 32
_INT_MAX = 1 << 53
_TOKENS_PER_S_MAX = 1e9
_PING_S_MAX = 60.0
_MEMO_RECORDS = 8192

_MODEL = re.compile(r"[0-9A-Za-z._-]{1,128}")
_WORD = re.compile(r"[0-9A-Za-z._+-]{0,48}")
_ADAPTER = re.compile(r"[0-9A-Za-z._/-]{1,96}")
_ADDR = re.compile(r"(/[!-.0-~]+){4,}")
_ADDR_CHARS_MAX = 240
_AGE = struct.Struct(">I")
AGE_BYTES = _AGE.size


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens per second: single-token steps, long batches, and what the network carries."""

    inference: float = 0.0
    forward: float = 0.0
    network: float = 0.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a server says of itself, for one model.

    The last six fields are filled in by the directory that publishes it.

    Attributes:
        num_blocks: blocks of the whole model, so that a reader without its config sees gaps.
        queue: steps that wait for the device.
        name, model_name: what its owner calls the server, and people the model; shown, never trusted.
        pings: measured round trips in seconds to likely next hops.
        sequence: of two records of one peer and model the higher one is the newer.
        issued_ms: the server's wall clock.
        ttl_ms: how long after it was first seen the record lives.
    """

    model: ModelId
    span: Span
    num_blocks: int
    state: ServerState
    numerics: Numerics
    throughput: Throughput = Throughput()
    cache_tokens_free: int = 0
    queue: int = 0
    adapters: tuple[str, ...] = ()
    pings: tuple[tuple[PeerId, float], ...] = ()
    name: str = ""
    model_name: str = ""
    version: str = ""
    relayed: bool = False
    peer: PeerId = PeerId("")  # noqa: RUF009 - a NewType call is the identity
    addrs: tuple[str, ...] = ()
    sequence: int = 0
    issued_ms: int = 0
    ttl_ms: int = 0


def record_key(model: ModelId, peer: PeerId) -> str:
    """Where a server's record lies in the DHT."""
    return f"/{NAMESPACE}/{model}/{peer}"


def model_key(model: ModelId) -> str:
    """What the servers of a model provide in the DHT."""
    return f"/{NAMESPACE}/{model}"


def sign_announcement(ann: Announcement, sign: Callable[[bytes], bytes]) -> bytes:
    """The record of an announcement of ours; ``sign`` is ``Network.sign``.

    Raises:
        ValueError: a field breaks a bound; the announcement would be refused everywhere.
    """
    body = check_announcement(ann)
    return body + sign(DOMAIN + body)


def check_announcement(ann: Announcement) -> bytes:
    """The body of its record.

    Raises:
        ValueError: a field breaks a bound; the announcement would be refused everywhere.
    """
    body: bytes = msgpack.packb(_fields(ann))
    try:
        if _parse(body) != ann:
            raise ValueError("the announcement does not survive its own encoding")
        _check_size(len(body) + SIGNATURE_BYTES)
    except RemoteProtocolError as exc:
        raise ValueError(f"cannot announce: {exc}") from None
    return body


@dataclass(frozen=True, slots=True)
class Verified:
    """A record that was checked; the same object for the same bytes.

    Attributes:
        digest: stands for the record where members compare what they have.
        lasting: the same for what does not change with load and time.
    """

    record: bytes
    ann: Announcement
    digest: bytes
    lasting: bytes


def lasting(ann: Announcement) -> bytes:
    """A digest of everything but load, speed, pings and times."""
    return _digest(repr(_lasting(ann)).encode())


_lasting = attrgetter(
    "span", "state", "addrs", "num_blocks", "numerics", "adapters", "relayed", "name", "model_name", "version"
)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def check(record: bytes) -> Verified:
    """Decode a record, after checking size, signature, form and every bound; the same object for the same bytes.

    Raises:
        RemoteProtocolError: forged, altered, oversized or malformed.
    """
    known = _memo.get(record)
    if known is not None:
        _memo.move_to_end(record)
        return known
    _check_size(len(record))
    record = bytes(record)
    body, signature = record[:-SIGNATURE_BYTES], record[-SIGNATURE_BYTES:]
    ann = _parse(body)
    if not signature_holds(ann.peer, DOMAIN + body, signature):
        _refuse(f"a record of {ann.peer} that it did not sign")
    known = _memo[record] = Verified(record, ann, _digest(record), lasting(ann))
    if len(_memo) > _MEMO_RECORDS:
        _memo.popitem(last=False)
    return known


def verify(record: bytes) -> Announcement:
    """What a record says, after all that ``check`` does.

    Raises:
        RemoteProtocolError: forged, altered, oversized or malformed.
    """
    return check(record).ann


# A pure function's memo: one signature check costs as much as a small step's decoding.
_memo: OrderedDict[bytes, Verified] = OrderedDict()


def validate_dht(key: str, value: bytes, now: float | None = None, tolerance_s: float = 600.0) -> None:
    """The DHT's validator: a valid record, under its own key, and (given ``now``) not from another day.

    Raises:
        RemoteProtocolError: it must not be stored.
    """
    ann = verify(value)
    if key != record_key(ann.model, ann.peer):
        _refuse(f"a record of {record_key(ann.model, ann.peer)} under the key {key!r:.200}")
    if now is not None and not -tolerance_s <= ann.issued_ms / 1000 - now <= tolerance_s:
        _refuse("a record that was issued at another time")


def newer(a: bytes, b: bytes) -> bool:
    """Whether record ``a`` replaces record ``b`` of the same key; never both, and never for equal ones."""
    try:
        first = verify(a)
    except RemoteProtocolError:
        return False
    try:
        second = verify(b)
    except RemoteProtocolError:
        return True
    return (first.sequence, a) > (second.sequence, b)


def pack_entry(record: bytes, age_s: float) -> bytes:
    """A record as members hand it on: how long ago it came from its server, as far as we know, stands before it."""
    return _AGE.pack(min(max(int(age_s * 1000), 0), (1 << 32) - 1)) + record


def unpack_entry(entry: bytes) -> tuple[bytes, float]:
    """The record of an entry, and its age in seconds.

    Raises:
        RemoteProtocolError: too short or too long.
    """
    if not _AGE.size < len(entry) <= ENTRY_BYTES_MAX:
        _refuse(f"a record entry of {len(entry)} bytes")
    return bytes(entry[_AGE.size :]), _AGE.unpack_from(entry)[0] / 1000


def _refuse(reason: str) -> NoReturn:
    raise RemoteProtocolError(reason)


def _check_size(size: int) -> None:
    if not SIGNATURE_BYTES < size <= RECORD_BYTES_MAX:
        _refuse(f"a record of {size} bytes; at most {RECORD_BYTES_MAX} are allowed")


def _fields(ann: Announcement) -> dict[str, Any]:
    """The map that is signed; the keys ascend."""
    t, n = ann.throughput, ann.numerics
    return {
        "a": list(ann.addrs),
        "b": [ann.span.start, ann.span.end],
        "c": ann.cache_tokens_free,
        "d": list(ann.adapters),
        "g": [[peer, float(seconds)] for peer, seconds in ann.pings],
        "h": ann.model_name,
        "i": ann.issued_ms,
        "k": ann.relayed,
        "l": ann.ttl_ms,
        "m": ann.model,
        "n": ann.name,
        "p": ann.peer,
        "q": ann.queue,
        "r": [float(t.inference), float(t.forward), float(t.network)],
        "s": int(ann.state),
        "t": ann.sequence,
        "u": [n.dtype, n.quantization, n.kernels, n.isa, n.exact],
        "v": RECORD_VERSION,
        "w": ann.version,
        "x": ann.num_blocks,
    }


def _no_extensions(code: int, data: bytes) -> NoReturn:
    _refuse("a record with a msgpack extension")


def _parse(body: bytes) -> Announcement:
    try:
        raw = msgpack.unpackb(
            body, raw=False, strict_map_key=True, ext_hook=_no_extensions, max_array_len=64, max_map_len=64
        )
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise RemoteProtocolError(f"a record that is no msgpack: {type(exc).__name__}") from None
    if type(raw) is not dict or any(type(key) is not str for key in raw):
        _refuse("a record that is no map of named fields")
    if list(raw) != sorted(raw) or msgpack.packb(raw) != body:
        _refuse("a record that is not in canonical form")
    if _int(raw, "v", 0, _INT_MAX) != RECORD_VERSION:
        _refuse(f"a record of version {raw['v']}; this side reads version {RECORD_VERSION}")
    model, peer, num_blocks = _match(raw, "m", _MODEL), _peer(raw.get("p")), _int(raw, "x", 1, BLOCKS_MAX)
    return Announcement(
        model=ModelId(model),
        span=_span(raw.get("b"), num_blocks),
        num_blocks=num_blocks,
        state=ServerState(_int(raw, "s", 0, max(ServerState))),
        numerics=_numerics(raw.get("u")),
        throughput=Throughput(*(_float(x, _TOKENS_PER_S_MAX) for x in _list(raw, "r", 3, 3))),
        cache_tokens_free=_int(raw, "c", 0, _INT_MAX),
        queue=_int(raw, "q", 0, _INT_MAX),
        adapters=tuple(_pattern(x, _ADAPTER) for x in _list(raw, "d", 0, ADAPTERS_MAX)),
        pings=tuple(_ping(x) for x in _list(raw, "g", 0, PINGS_MAX)),
        name=_line(raw, "n", 64),
        model_name=_line(raw, "h", 128),
        version=_line(raw, "w", 48),
        relayed=_bool(raw.get("k")),
        peer=peer,
        addrs=tuple(_addr(x, peer) for x in _list(raw, "a", 0, ADDRS_MAX)),
        sequence=_int(raw, "t", 1, _INT_MAX),
        issued_ms=_int(raw, "i", 0, _INT_MAX),
        ttl_ms=_int(raw, "l", 1000, TTL_MAX_MS),
    )


def _int(raw: dict[str, Any], key: str, low: int, high: int) -> int:
    value = raw.get(key)
    if type(value) is not int or not low <= value <= high:
        _refuse(f"{key}: {value!r:.40} is no integer in {low}..{high}")
    return value


def _float(value: Any, high: float) -> float:
    if type(value) is not float or not (isfinite(value) and 0 <= value <= high):
        _refuse(f"{value!r:.40} is no number in 0..{high:g}")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        _refuse(f"{value!r:.40} is no boolean")
    return value


def _pattern(value: Any, pattern: re.Pattern[str]) -> str:
    if type(value) is not str or not pattern.fullmatch(value):
        _refuse(f"{value!r:.60} is not of the form {pattern.pattern}")
    return value


def _match(raw: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    return _pattern(raw.get(key), pattern)


def _line(raw: dict[str, Any], key: str, chars: int) -> str:
    """Text that people will see: printable, so that no peer writes to a terminal what it likes."""
    value = raw.get(key)
    if type(value) is not str or len(value) > chars or not value.isprintable():
        _refuse(f"{key}: {value!r:.60} is no line of at most {chars} characters")
    return value


def _list(raw: dict[str, Any], key: str, low: int, high: int) -> list[Any]:
    value = raw.get(key)
    if type(value) is not list or not low <= len(value) <= high:
        _refuse(f"{key}: not a list of {low}..{high} items")
    return value


def _peer(value: Any) -> PeerId:
    try:
        public_key_of(value if type(value) is str else "")
    except ValueError as exc:
        raise RemoteProtocolError(f"{value!r:.60}: {exc}") from None
    return PeerId(value)


def _span(value: Any, num_blocks: int) -> Span:
    if type(value) is not list or len(value) != 2 or any(type(x) is not int for x in value):
        _refuse("a span is two integers")
    if not 0 <= value[0] < value[1] <= num_blocks:
        _refuse(f"[{value[0]}, {value[1]}) is no span of {num_blocks} blocks")
    return Span(*value)


def _numerics(value: Any) -> Numerics:
    if type(value) is not list or len(value) != 5:
        _refuse("a numerics class has five parts")
    dtype, quantization, kernels, isa = (_pattern(x, _WORD) for x in value[:4])
    return Numerics(dtype, quantization, kernels, isa, exact=_bool(value[4]))


def _ping(value: Any) -> tuple[PeerId, float]:
    if type(value) is not list or len(value) != 2:
        _refuse("a ping is a peer and a number")
    return _peer(value[0]), _float(value[1], _PING_S_MAX)


def _addr(value: Any, peer: PeerId) -> str:
    if type(value) is not str or len(value) > _ADDR_CHARS_MAX or not _ADDR.fullmatch(value):
        _refuse(f"{value!r:.60} is no multiaddr")
    if not value.endswith(f"/p2p/{peer}"):
        _refuse(f"{value!r:.200} is not an address of {peer}")
    return value
