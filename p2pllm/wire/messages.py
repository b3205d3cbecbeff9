"""Typed messages: one frozen dataclass each, and all validation of what a peer sends.

Invariants: sans-I/O; a message that exists is valid (bounds, lengths, enums); decoding raises only RemoteProtocolError.
Tensor bytes travel outside the msgpack header, as the message's payload, described by a ``TensorHeader``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from p2pllm.types import ModelId, PeerId, SessionId, Span


class FaultKind(Enum):
    """Whose fault a refusal is, on the wire."""

    CLIENT = "client"
    BUSY = "busy"
    GONE = "gone"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Describes a message's payload; ``plain_size`` says how long it is when not compressed.

    Attributes:
        codec: ``int8``, ``bf16``, ``fp16`` or ``fp32``.
        shape: (tokens, hidden).
        size: payload bytes on the wire, after compression.
        zstd: the payload is one zstd frame.
    """

    codec: str
    shape: tuple[int, int]
    size: int
    zstd: bool = False


def plain_size(codec: str, tokens: int, hidden: int) -> int:
    """Bytes of an uncompressed [tokens, hidden] tensor: part of the protocol, so a relay can check unread bytes."""
    if codec == "int8":
        outliers = min(16, max(1, hidden // 64))
        return tokens * (4 + 1 + 4 * outliers + hidden)
    return tokens * hidden * (4 if codec == "fp32" else 2)


# -- session: client to server ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a session: reserve cache for ``rows`` sequences of up to ``max_length`` tokens in ``span``.

    Attributes:
        activations: codec of this session's tensors, and the rounding that its codec points stand for.
        codec_points: block borders (in model numbering) where hidden states are rounded by ``activations``. A border
            that is the start or end of ``span`` is rounded by travelling; one strictly inside is rounded by the server.
        numerics: required numerics class, empty when any will do.
        push_from: the one peer that may push steps of this epoch to this hop; None: only the opener itself.
        push_to: where this hop pushes its outputs in this epoch; None: back to the opener.
        alloc_timeout_s: how long the client is willing to wait in line for cache room.
        returns: codec of the answers, where it is not ``activations``: a span that ends at a border without a codec
            point answers losslessly in the compute dtype. Steps may come in any codec.
    """

    session: SessionId
    epoch: int
    model: ModelId
    span: Span
    rows: int
    max_length: int
    activations: str
    codec_points: tuple[int, ...] = ()
    numerics: str = ""
    push_from: PeerId | None = None
    push_to: PeerId | None = None
    adapter: str = ""
    alloc_timeout_s: float = 0.0
    returns: str = ""


@dataclass(frozen=True, slots=True)
class Rewire:
    """Begin a new epoch of the same session: new neighbours, same cache. Older epochs are refused from here on.

    It also attaches the session to the stream that it came on.

    Attributes:
        step: the next step's id, so that the hops of a chain count alike after one of them was replaced; what was kept
            or under way under the old ids is forgotten. -1: counting goes on, and answers are still repeated.
    """

    session: SessionId
    epoch: int
    push_from: PeerId | None = None
    push_to: PeerId | None = None
    step: int = -1


@dataclass(frozen=True, slots=True)
class Attach:
    """The opener is back on a new stream, within ``linger_s`` of losing the old one."""

    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens for some rows; payload [sum(counts), hidden], rows one after the other.

    A server that pushes passes on its whole output under the same ids, with ``tail`` for the last hop.

    Attributes:
        step: counts up by one from 0 within a session; a repeated id repeats its answer.
        positions: per row, how many cached tokens the new ones follow; less than cached: the row is rolled back first.
        counts: per row, how many new tokens (0: the row sits this step out).
        sources: per row, which row's cache it continues (beams, forks), applied before ``positions``; empty: its own.
        tail: return only each row's last ``tail`` new tokens; -1: all of them.
        acked: all answers up to this step id have arrived; -1: none yet.
    """

    session: SessionId
    epoch: int
    step: int
    positions: tuple[int, ...]
    counts: tuple[int, ...]
    tensor: TensorHeader
    sources: tuple[int, ...] = ()
    tail: int = -1
    acked: int = -1


@dataclass(frozen=True, slots=True)
class Close:
    """The session is over; the server frees its cache at once and answers Closed."""

    session: SessionId


# -- session: server to client ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """Cache is reserved. ``numerics`` is the server's class."""

    session: SessionId
    epoch: int
    numerics: str


@dataclass(frozen=True, slots=True)
class Attached:
    """Answers Attach and Rewire: the last step id that was computed (-1: none), and where each row stood after it.

    After a Rewire that renumbers: the last one that was accepted under the old ids, all of which run.
    """

    session: SessionId
    epoch: int
    step: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A step's outputs: payload [kept tokens, hidden]; ``positions`` after the step.

    Attributes:
        queue_s: seconds that the step waited for the device.
        compute_s: device seconds of its pass (shared by the steps of one batch).
    """

    session: SessionId
    epoch: int
    step: int
    positions: tuple[int, ...]
    tensor: TensorHeader
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Closed:
    """The cache is freed."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Unpushed:
    """This hop could not reach its ``push_to``: in this epoch its answers are the opener's to relay."""

    session: SessionId
    epoch: int


NO_SESSION = SessionId(b"")


@dataclass(frozen=True, slots=True)
class Fault:
    """A refusal, typed by fault. ``step`` is -1 when no single step is meant; ``session`` empty outside sessions."""

    kind: FaultKind
    reason: str
    session: SessionId = NO_SESSION
    epoch: int = 0
    step: int = -1
    retry_after_s: float = 0.0


# -- forward without cache ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forward:
    """Whole sequences through a span, no cache kept; payload [sum(counts), hidden]. Requests may be pipelined."""

    request: int
    model: ModelId
    span: Span
    counts: tuple[int, ...]
    activations: str
    tensor: TensorHeader
    codec_points: tuple[int, ...] = ()
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The outputs of one Forward, same shape; or a Fault whose ``step`` is the request id."""

    request: int
    tensor: TensorHeader
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Backward:
    """The way back through a span; nothing is kept between a Forward and its Backward.

    The payload is the inputs as they went forward, [sum(counts), hidden], then the gradient at the outputs, the same
    shape, each in its own codec.
    """

    request: int
    model: ModelId
    span: Span
    counts: tuple[int, ...]
    activations: str
    tensor: TensorHeader
    gradient: TensorHeader
    codec_points: tuple[int, ...] = ()
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Backwarded:
    """The gradient at the inputs, in the codec of the one that came; or a Fault whose ``step`` is the request id."""

    request: int
    tensor: TensorHeader
    queue_s: float = 0.0
    compute_s: float = 0.0


# -- info and records ---------------------------------------------------------------------------------------------

DIGEST_BYTES = 8
"""Of a record, BLAKE2b: enough to tell what somebody has; a record itself is trusted for its signature."""


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """Ask a peer for its current announcement; also what pings measure. ``nonce`` comes back."""

    nonce: int
    model: ModelId


@dataclass(frozen=True, slots=True)
class Info:
    """``record`` is the signed announcement as in the DHT, empty when the peer serves nothing of that model."""

    nonce: int
    record: bytes


@dataclass(frozen=True, slots=True)
class RecordsRequest:
    """What changed for ``model`` since ``cursor`` (0: everything) of the change log ``log``?

    Attributes:
        log: random id of the log that ``cursor`` belongs to; a restarted member has another one and starts over.
        have: digests of records that the asker has from others and need not be sent, ``DIGEST_BYTES`` each, one after
            the other.
    """

    model: ModelId
    log: int = 0
    cursor: int = 0
    limit: int = 128
    have: bytes = b""


@dataclass(frozen=True, slots=True)
class RecordsPage:
    """Signed records in the order in which they changed; ask again from ``cursor`` while ``more``."""

    log: int
    cursor: int
    more: bool
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RecordsOffer:
    """Gossip: records that the sender thinks are news. Not answered."""

    records: tuple[bytes, ...]


Message = (
    Open | Rewire | Attach | Step | Close | Opened | Attached | Answer | Closed | Fault | Unpushed
    | Forward | Forwarded | Backward | Backwarded | InfoRequest | Info | RecordsRequest | RecordsPage | RecordsOffer
)  # fmt: skip
