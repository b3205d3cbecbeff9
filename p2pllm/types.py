"""The nouns that every layer shares: ids, spans, costs, paths.

Invariants: everything here is an immutable value; nothing here does I/O, reads a clock or imports a heavy library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58 (Ed25519 keys: ``12D3KooW...``)."""

SessionId = NewType("SessionId", bytes)
"""128 random bits, bound to the peer that opened the session."""

ModelId = NewType("ModelId", str)
"""Hex digest of a model's canonical config and weight digests; a base model and its fine-tune differ."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A run of consecutive transformer blocks ``[start, end)``, never empty.

    Raises:
        ValueError: the bounds are negative, equal or reversed.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not a span: [{self.start}, {self.end})")

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and self.start <= block < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def covers(self, other: Span) -> bool:
        """Whether every block of ``other`` is in this span."""
        return self.start <= other.start and other.end <= self.end


class ServerState(IntEnum):
    """What a server says of itself in its announcement, in the order of its life."""

    JOINING = 0
    """Loading weights: counts for placement, not for routing."""
    ONLINE = 1
    DRAINING = 2
    """Finishes what it has, takes no new session."""
    OFFLINE = 3


class Priority(IntEnum):
    """Whose bytes go first on a connection: somebody's next token before anybody's bulk."""

    STEP = 0
    BULK = 1


class Reachability(Enum):
    """Whether strangers can open a connection to this machine."""

    UNKNOWN = "unknown"
    PUBLIC = "public"
    PRIVATE = "private"


class WorkKind(Enum):
    """What a compute pass is for; the scheduler serves them in this order."""

    STEP = "step"
    PREFILL = "prefill"
    FORWARD = "forward"
    BACKWARD = "backward"
    CLIENT = "client"
    """The client's own ends: embedding, head, sampling."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pass asks of a device, for schedulers and for the simulator's cost models.

    Attributes:
        kind: what the pass is for.
        tokens: new tokens, summed over rows.
        context: tokens already in the caches, summed over rows.
        blocks: transformer blocks that the tokens pass through.
    """

    kind: WorkKind
    tokens: int = 0
    context: int = 0
    blocks: int = 0


@dataclass(frozen=True, slots=True)
class Path:
    """How we reach a peer at the moment.

    Attributes:
        direct: False when the bytes go through a relay.
        address: the multiaddr in use, as text.
        rtt_s: the last measured round trip, None while unknown.
    """

    direct: bool
    address: str
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """A peer came (``connected``) or its last connection went."""

    peer: PeerId
    connected: bool


@dataclass(frozen=True, slots=True)
class Numerics:
    """A server's numerics class: within one class, equal inputs give equal bits (if ``exact``, however they are cut).

    Attributes:
        dtype: compute dtype, ``float32``, ``bfloat16`` or ``float16``.
        quantization: ``none``, ``int8`` or ``nf4``.
        kernels: kernel set and version, such as ``torch-2.13.0``.
        isa: the instruction set that the kernels dispatched to, such as ``avx512``.
        exact: a row's result depends neither on its batch nor on how its sequence was cut into steps.
    """

    dtype: str
    quantization: str
    kernels: str
    isa: str
    exact: bool

    def tag(self) -> str:
        """The class as one short string, as announcements and sessions carry it."""
        return "/".join((self.dtype, self.quantization, self.kernels, self.isa, "exact" if self.exact else "inexact"))
