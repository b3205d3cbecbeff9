"""Faults at exact moments: something breaks when the n-th message of a run is about to leave.

A message is one write on a stream of this world, between client and servers or from server to server; messages are
counted in the order in which they leave. The same seed and the same fault give the same run.

Invariants: a fault happens once, at its moment. What happens is what can happen in the world: nothing of the
production code is replaced, its servers are merely stopped, cut off, emptied or declared full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import trio

from p2pllm.errors import Overloaded, RemoteFault, RemoteProtocolError
from p2pllm.server.engine import Task
from p2pllm.types import PeerId
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Answer, FaultKind, Open, plain_size
from sim.swarm import SimServer, SimSwarm
from sim.world import TappedStream

BUSY_S = 1.2
"""How long a server that was declared full stays so."""
BUSY_RETRY_S = 0.5


class Mishap(Enum):
    """What happens to the victim or to the message."""

    KILL = "kill"
    """The victim's process ends; the message is lost with it."""
    HANG = "hang"
    """From now on nothing reaches or leaves the victim."""
    FREEZE = "freeze"
    """As HANG, but after ``FREEZE_S`` it goes on as if nothing had happened."""
    RESET = "reset"
    """The stream breaks on both sides; message and whatever is under way there are lost."""
    CORRUPT = "corrupt"
    """One bit of the message flips."""
    LIE = "lie"
    """An answer in the message comes with a shape that nobody asked for; what holds no answer stays as it is."""
    GONE = "gone"
    """The victim ends all of its sessions, and says so."""
    INTERNAL = "internal"
    """The same, for a failure of its own."""
    BUSY = "busy"
    """For a while the victim takes no step and no session: it is full."""


FREEZE_S = 45.0
"""Longer than anybody waits: the session has been routed around the victim when it wakes."""


@dataclass(frozen=True, slots=True)
class FaultAt:
    """A fault, and when.

    Attributes:
        mishap: what happens.
        index: at which message.
        sender: of a message from server to server, whether its sender is the victim, not its receiver. Where one end
            is a client, the other one is the victim.
    """

    mishap: Mishap
    index: int
    sender: bool = False

    def __str__(self) -> str:
        return f"{self.mishap.value}@{self.index}" + ("s" if self.sender else "")

    @classmethod
    def parse(cls, text: str) -> FaultAt:
        """From its text, such as ``kill@37`` or ``hang@40s``.

        Raises:
            ValueError: it is none.
        """
        word, _, index = text.partition("@")
        return cls(Mishap(word), int(index.removesuffix("s")), index.endswith("s"))


@dataclass(frozen=True, slots=True)
class Seen:
    """A write that left, for choosing moments."""

    source: str
    target: str
    data: bytes

    @property
    def kind(self) -> str:
        """The messages that it holds, by class, as far as it is whole messages."""
        try:
            return "+".join(type(message).__name__ for message, _ in MessageReader().feed(self.data)) or "part"
        except RemoteProtocolError:
            return "part"


class Injector:
    """Counts the messages of a swarm, and lets faults happen."""

    def __init__(self, swarm: SimSwarm, faults: Sequence[FaultAt] = ()) -> None:
        self.seen: list[Seen] = []
        self.struck: list[tuple[FaultAt, str]] = []
        """What happened so far, and the names of the victims."""
        self._swarm = swarm
        self._faults = {fault.index: fault for fault in faults}
        swarm.world.tap = self._message

    def _message(self, stream: TappedStream, data: bytes) -> bytes:
        source, target = stream.ends
        index = len(self.seen)
        self.seen.append(Seen(source, target, data))
        fault = self._faults.get(index)
        if fault is None:
            return data
        victim = self._choose(source, target, fault.sender)
        self.struck.append((fault, victim.name))
        return self._strike(fault.mishap, victim, stream, data)

    def _choose(self, source: str, target: str, sender: bool) -> SimServer:
        servers = self._swarm.servers
        if source in servers and (sender or target not in servers):
            return servers[source]
        return servers[target]

    def _strike(self, kind: Mishap, victim: SimServer, stream: TappedStream, data: bytes) -> bytes:
        match kind:
            case Mishap.KILL:
                self._swarm.world.kill(victim.name)
            case Mishap.HANG:
                self._swarm.world.hang(victim.name)
            case Mishap.FREEZE:
                self._swarm.world.hang(victim.name)
                self._swarm.world.nursery.start_soon(self._wake_later, victim.name)
            case Mishap.RESET:
                stream.fail_both("the stream was reset on its way")
            case Mishap.CORRUPT:
                return flipped(data, len(self.seen))
            case Mishap.LIE:
                return lie(data)
            case Mishap.GONE:
                end_sessions(victim, FaultKind.GONE)
            case Mishap.INTERNAL:
                end_sessions(victim, FaultKind.INTERNAL)
            case Mishap.BUSY:
                declare_full(victim)
        return data

    async def _wake_later(self, name: str) -> None:
        await trio.sleep(FREEZE_S)
        self._swarm.world.resume(name)


def lie(data: bytes) -> bytes:
    """``data``, its answers with other shapes than they had."""
    try:
        messages = MessageReader().feed(data)
    except RemoteProtocolError:
        return data
    out = []
    for message, payload in messages:
        if isinstance(message, Answer):
            tokens, hidden = message.tensor.shape
            size = plain_size(message.tensor.codec, tokens + 1, hidden)
            tensor = replace(message.tensor, shape=(tokens + 1, hidden), size=size)
            message, payload = replace(message, tensor=tensor), bytes(size)
        out.append(encode_message(message, payload))
    return b"".join(out)


def flipped(data: bytes, seed: int) -> bytes:
    """``data`` with one bit flipped; which one depends on ``seed``, so that all parts of frames are hit over a run."""
    bit = seed * 2654435761 % (8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def end_sessions(victim: SimServer, kind: FaultKind) -> None:
    """End every session of a server from its side, as when its owner withdraws what it served or its device failed."""
    sessions = victim.serving._sessions
    assert sessions is not None
    for hosted in list(sessions._sessions.values()):
        channel = hosted.channel
        hosted.end(kind, "the session was ended on this side")
        if channel is not None:
            victim.network.spawn(channel.flush)


def declare_full(victim: SimServer) -> None:
    """Let a server refuse steps and sessions as a full one does, for ``BUSY_S``."""
    until = trio.current_time() + BUSY_S
    refuse_step, sessions = victim.serving.engine.refuse, victim.serving._sessions
    assert sessions is not None
    refuse_open = sessions._refuse

    def full() -> Overloaded | None:
        return Overloaded("this server is full", BUSY_RETRY_S) if trio.current_time() < until else None

    def step(task: Task) -> Overloaded | None:
        return full() or refuse_step(task)

    def open_(peer: PeerId, asked: Open) -> RemoteFault | None:
        return full() or refuse_open(peer, asked)

    for owner, name, replaced in ((victim.serving.engine, "refuse", step), (sessions, "_refuse", open_)):
        setattr(owner, name, replaced)
