"""The law of a session: which message may come when, and how rows move. Both automata obey this file.

Rule 1: every transition is in the two tables below; a pair that is not there is a protocol error of whoever made it.
Rule 2: this file does not know what a message does, only where it leads.
Rule 3: rows move through ``advance`` alone, on both sides, so that both always agree on positions.

A session belongs to the peer that opened it. Steps are numbered without gaps; a server computes them in order, keeps
every answer until the opener acknowledges it, and repeats it for a repeated id. One wiring of the chain is an epoch:
within it at most one other peer may push steps to this server. A stream may come and go; the session stays.

Invariants: sans-I/O, no clock; nothing here raises on a peer's account.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from p2pllm.types import PeerId, Priority
from p2pllm.wire import messages as m
from p2pllm.wire.ledger import Payload as Payload
from p2pllm.wire.ledger import nbytes


class ServerPhase(Enum):
    """Where a session is at its server."""

    ATTACHED = "attached"
    """The opener has a stream to it."""
    DETACHED = "detached"
    """The opener's stream was lost; it may come back until the session expires."""
    ENDED = "ended"
    """Closed, replaced, failed or expired; its cache is free."""


class HopPhase(Enum):
    """Where a session is at its client, for one server of the chain."""

    NEW = "new"
    OPENING = "opening"
    """Open is sent, Opened is awaited."""
    READY = "ready"
    ATTACHING = "attaching"
    """Attach or Rewire is sent, Attached is awaited; answers may come before it, steps may not go."""
    DETACHED = "detached"
    """The stream was lost."""
    CLOSING = "closing"
    OVER = "over"


class Lost:
    """Stands in the tables for the loss of the stream."""


class Ended:
    """Stands in the tables for an end without Close: a fatal fault, expiry, a newer Open."""


Table = dict[Any, dict[type[Any], Any]]

SERVER: Table = {
    ServerPhase.ATTACHED: {
        m.Open: ServerPhase.ATTACHED,
        m.Step: ServerPhase.ATTACHED,
        m.Attach: ServerPhase.ATTACHED,
        m.Rewire: ServerPhase.ATTACHED,
        m.Close: ServerPhase.ENDED,
        Lost: ServerPhase.DETACHED,
        Ended: ServerPhase.ENDED,
    },
    ServerPhase.DETACHED: {
        m.Open: ServerPhase.ATTACHED,
        m.Step: ServerPhase.DETACHED,
        m.Attach: ServerPhase.ATTACHED,
        m.Rewire: ServerPhase.ATTACHED,
        m.Close: ServerPhase.ENDED,
        Lost: ServerPhase.DETACHED,
        Ended: ServerPhase.ENDED,
    },
    ServerPhase.ENDED: {Lost: ServerPhase.ENDED, Ended: ServerPhase.ENDED},
}
"""What a server does on each message that it receives."""

CLIENT: Table = {
    HopPhase.NEW: {m.Open: HopPhase.OPENING, Lost: HopPhase.NEW, m.Close: HopPhase.OVER, Ended: HopPhase.OVER},
    HopPhase.OPENING: {
        m.Opened: HopPhase.READY,
        m.Close: HopPhase.CLOSING,
        Lost: HopPhase.NEW,
        Ended: HopPhase.OVER,
    },
    HopPhase.READY: {
        m.Step: HopPhase.READY,
        m.Answer: HopPhase.READY,
        m.Fault: HopPhase.READY,
        m.Unpushed: HopPhase.READY,
        m.Attach: HopPhase.ATTACHING,
        m.Rewire: HopPhase.ATTACHING,
        m.Close: HopPhase.CLOSING,
        Lost: HopPhase.DETACHED,
        Ended: HopPhase.OVER,
    },
    HopPhase.ATTACHING: {
        m.Attached: HopPhase.READY,
        m.Answer: HopPhase.ATTACHING,
        m.Fault: HopPhase.ATTACHING,
        m.Unpushed: HopPhase.ATTACHING,
        m.Close: HopPhase.CLOSING,
        Lost: HopPhase.DETACHED,
        Ended: HopPhase.OVER,
    },
    HopPhase.DETACHED: {
        m.Attach: HopPhase.ATTACHING,
        m.Rewire: HopPhase.ATTACHING,
        m.Close: HopPhase.CLOSING,
        Lost: HopPhase.DETACHED,
        Ended: HopPhase.OVER,
    },
    HopPhase.CLOSING: {
        m.Closed: HopPhase.OVER,
        m.Opened: HopPhase.CLOSING,
        m.Attached: HopPhase.CLOSING,
        m.Answer: HopPhase.CLOSING,
        m.Fault: HopPhase.CLOSING,
        m.Unpushed: HopPhase.CLOSING,
        Lost: HopPhase.OVER,
        Ended: HopPhase.OVER,
    },
    HopPhase.OVER: {Lost: HopPhase.OVER, Ended: HopPhase.OVER},
}
"""What a client does on each message that it sends (Open, Step, Attach, Rewire, Close) or receives (the others)."""


# -- what the automata tell their owners ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Encode ``message`` with ``payload`` and send it to ``to``, in the order in which the automaton says so.

    To the opener: on the stream that the session is attached to. To ``push_to`` (a Step): on the push stream to that
    peer. To another peer (a Fault): back on the stream that its frame came on.
    """

    to: PeerId
    message: m.Message
    payload: Payload = b""
    priority: Priority = Priority.STEP


@dataclass(frozen=True, slots=True)
class Run:
    """Compute this step, in order with the session's others; then call ``answered`` or ``failed`` with its id.

    Attributes:
        tail: how many of each row's last new tokens to return, -1 for all; what counts, instead of ``step.tail``.
    """

    step: m.Step
    payload: Payload
    tail: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """These accepted steps must not run any more, or their results will not be wanted: an earlier one failed."""

    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """The stream that this message came on is the opener's from now on; let go of an older one."""


@dataclass(frozen=True, slots=True)
class Wired:
    """This epoch's neighbours: whom outputs are pushed to (None: back to the opener), who may push to us."""

    epoch: int
    push_from: PeerId | None
    push_to: PeerId | None


@dataclass(frozen=True, slots=True)
class End:
    """The session is over: free its cache, drop its waiting steps, forget it."""


ServerEvent = Send | Run | Withdraw | Bind | Wired | End


@dataclass(frozen=True, slots=True)
class Ready:
    """The server has reserved the cache."""

    numerics: str


@dataclass(frozen=True, slots=True)
class Answered:
    """One step's outputs, checked against what was asked."""

    answer: m.Answer
    payload: Payload


@dataclass(frozen=True, slots=True)
class Resumed:
    """The server confirmed Attach or Rewire; ``resend`` what is unanswered. ``step``: the last one it computed.

    After a renumbering nothing is unanswered, and ``step`` is the last one, by its old id, that the rows contain.
    """

    step: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The server refused ``step`` and with it all later ones (-1: the whole session, which is then over).

    Attributes:
        error: ClientFault, Overloaded, SessionGone or ServerFault. After Overloaded the steps may be resent.
    """

    step: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Fallback:
    """The server cannot push: from here on its answers are ours to relay, the unanswered ones of its successor too."""


@dataclass(frozen=True, slots=True)
class Over:
    """The server confirmed Close."""


HopEvent = Ready | Answered | Resumed | Refused | Fallback | Over


# -- rows ----------------------------------------------------------------------------------------------------------


def advance(
    current: tuple[int, ...],
    positions: tuple[int, ...],
    counts: tuple[int, ...],
    sources: tuple[int, ...],
    max_length: int,
) -> tuple[int, ...]:
    """Where each row stands after a step: first ``sources``, then roll back to ``positions``, then append ``counts``.

    Raises:
        ValueError: the step does not fit these rows; the text says why.
    """
    if not len(current) == len(positions) == len(counts):
        raise ValueError(f"a step for {len(counts)} rows in a session of {len(current)}")
    if sources:
        if len(sources) != len(current) or not all(0 <= source < len(current) for source in sources):
            raise ValueError("sources name rows that do not exist")
        current = tuple(current[source] for source in sources)
    after = []
    for row, (cached, position, count) in enumerate(zip(current, positions, counts, strict=True)):
        if not 0 <= position <= cached:
            raise ValueError(f"row {row} continues at {position}, but has {cached} tokens")
        if count < 0 or position + count > max_length:
            raise ValueError(f"row {row} would have {position + count} tokens; the session has room for {max_length}")
        after.append(position + count)
    return tuple(after)


def kept_tokens(counts: tuple[int, ...], tail: int) -> int:
    """Tokens in the answer to a step of ``counts`` that asks for each row's last ``tail``."""
    return sum(counts) if tail < 0 else sum(min(count, tail) for count in counts)


def priority_of(payload: Payload) -> Priority:
    """One row's next token goes first; what takes several frames lets others pass."""
    return Priority.STEP if nbytes(payload) < 48 * 1024 else Priority.BULK


def no_session(message: m.Message) -> m.Message:
    """The answer to a frame of a session that does not exist here, or not for its sender: it tells them nothing more.

    Close is simply granted.
    """
    session = getattr(message, "session", m.NO_SESSION)
    if isinstance(message, m.Close):
        return m.Closed(session)
    step = message.step if isinstance(message, m.Step) else -1
    return m.Fault(m.FaultKind.GONE, "no such session here", session, getattr(message, "epoch", 0), step)
