"""The four ports between decisions and the world: network, compute, storage, time (and chance).

Invariants: everything above these protocols is the same in production and in the simulator, which swaps the arms and
nothing else. Real arms: ``p2pllm.net`` (py-libp2p) and ``p2pllm.local`` (threads, disk, clock); simulated: ``sim``.
One conformance suite runs against both.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from p2pllm.types import Cost, Path, PeerEvent, PeerId, Priority, Reachability

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview


EventSource = AsyncIterator[PeerEvent]
"""Events as they come, such as a trio memory channel's receiving end."""


class Stream(Protocol):
    """One ordered, reliable, bidirectional byte stream to one peer, for one protocol.

    One task may send while another receives; two tasks never do the same at once. After any error the stream is dead:
    ``abort`` it. End of file says nothing about success: messages carry their own ends.
    """

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        ...

    async def send_all(self, data: Buffer, priority: Priority = Priority.STEP) -> None:
        """Send ``data`` whole; returns when the bytes are handed to the connection.

        Cancellation may interrupt the wait before a byte has left, never the middle of a write: a cancelled sender
        leaves a dead stream but an intact connection. STEP bytes overtake waiting BULK bytes of other streams.

        Raises:
            PeerLost: the stream or connection is gone, or the peer took no data for the send deadline.
        """
        ...

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Return 1..max_bytes bytes as soon as any are there; ``b""`` once the peer has closed its side.

        Cancellation is safe. A receiver that pauses is never punished: the sender waits.

        Raises:
            PeerLost: the stream was reset or the connection is gone.
        """
        ...

    async def aclose(self) -> None:
        """Say goodbye politely (flush, then end of file), within a bound; never raises a network error."""
        ...

    def abort(self) -> None:
        """Drop the stream at once, without waiting; the peer sees PeerLost. Idempotent, also after ``aclose``."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Network(Protocol):
    """This node's place in the peer-to-peer network."""

    @property
    def me(self) -> PeerId: ...

    @property
    def addrs(self) -> tuple[str, ...]:
        """Multiaddrs (with ``/p2p/<me>``) under which others may dial us; never 0.0.0.0."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature by this peer's key, 64 bytes. Callers prefix ``data`` with a domain of their own."""
        ...

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Remember where a peer may be dialled (from its signed record); replaces what was known."""
        ...

    async def open_stream(self, peer: PeerId, protocol: str, *, timeout_s: float | None = None) -> Stream:
        """Dial if needed (all known addresses raced), then open a stream.

        Raises:
            PeerLost: nobody answers, or the peer does not speak ``protocol``, or the deadline passed.
        """
        ...

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run ``handler`` in its own task for every incoming stream of ``protocol``.

        A handler's exception aborts that stream and is logged; it never takes the node down.
        """
        ...

    async def close_peer(self, peer: PeerId) -> None:
        """Drop every connection to ``peer``."""
        ...

    def path(self, peer: PeerId) -> Path | None:
        """How ``peer`` is connected now; None when it is not."""
        ...

    def peer_events(self) -> AbstractAsyncContextManager[EventSource]:
        """Subscribe to arrivals and departures of peers; a slow subscriber misses the oldest ones."""
        ...

    def reachability(self) -> Reachability: ...

    async def bootstrap(self) -> int:
        """(Re-)join through the bootstrap addresses and remembered members; how many of them answered."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Store a record in the DHT. Raises PeerLost when no other member could be reached."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The newest valid record that other members hold for ``key`` (never only a stale local copy)."""
        ...

    async def provide(self, key: str) -> None:
        """Say in the DHT that we have ``key``."""
        ...

    async def find(self, key: str, limit: int = 32) -> tuple[PeerId, ...]:
        """Peers that provide ``key``, ourselves excluded, without repeats; their addresses are learned."""
        ...


class Compute(Protocol):
    """Where long work runs, so that the loop never stalls."""

    async def run(self, work: Callable[[], T], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[T, float]:
        """Run ``work`` alone on its devices, in order of arrival; returns its result and the device seconds it took.

        Once begun a pass is shielded: cancellation discards the answer, never the pass, and is delivered only after
        the pass has ended, so buffers that the pass uses stay valid. Exceptions of ``work`` propagate.
        """
        ...


class Scratch(Protocol):
    """A temporary file without a name: gone when it is closed, and with the process in any case."""

    def append(self, data: Buffer) -> int:
        """Write at the end; returns where. Blocking, call it inside ``Storage.run``. Raises StorageError."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)``. Blocking. Raises StorageError when they are not there."""
        ...

    def close(self) -> None:
        """Give the space back. Idempotent; never blocks for long."""
        ...


class Storage(Protocol):
    """Files and downloads, off the loop."""

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking I/O in a bounded pool (the simulator: inline); exceptions propagate, cancellation waits."""
        ...

    def size(self, path: str) -> int:
        """Bytes in a file; blocking, call it inside ``run``. Raises StorageError when it is not there."""
        ...

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of a file; blocking. Raises StorageError naming the file when they are not there."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically, making its folder; blocking. Raises StorageError (disk full: how much is free)."""
        ...

    def names(self, folder: str) -> tuple[str, ...]:
        """The files in a folder, sorted; empty when there is no such folder. Blocking."""
        ...

    def stamp(self, path: str) -> str:
        """A short text that changes whenever the file's content may have changed. Blocking. Raises StorageError."""
        ...

    def scratch(self) -> Scratch:
        """A new temporary file. Blocking. Raises StorageError."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything of the world that a node may touch.

    Attributes:
        wall_time: seconds since 1970, only for signed timestamps; durations use ``trio.current_time()``.
        rng: jitter, sampling of peers, placement; never for secrets.
        token_bytes: unpredictable bytes (session ids, nonces, seeds); seeded in the simulator.
    """

    network: Network
    compute: Compute
    storage: Storage
    wall_time: Callable[[], float]
    rng: random.Random
    token_bytes: Callable[[int], bytes]
