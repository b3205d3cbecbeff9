"""One server's half of a session, at the client: what to send, and whether the answers can be true.

The owner sends what the methods return, feeds what arrives to ``receive`` and acts on the events::

    hop = ClientHop(open_, hidden=4096)
    send(hop.open())                                        # -> Ready
    send(hop.step((0,), (12,), header, payload), payload)   # -> Answered, in any order after a re-attach
    hop.lost(); ...; send(hop.attach())                     # new stream -> Resumed, then:
    for step, payload in hop.resend(): send(step, payload)  # what is still unanswered, under the same ids

In push mode a neighbour sends this hop its steps: ``expect`` registers them, and their answers arrive all the same.

Invariants: sans-I/O. Whatever leaves is legal by the same rules that the server checks, so its CLIENT fault can be
judged; whatever arrives is checked against what was asked (session, epoch, step, positions, shape, codec, size) or
raises RemoteProtocolError. A caller's mistake is LocalProtocolError. Payloads of unanswered steps are kept, by
reference, at most ``steps_in_flight_max`` of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2pllm.config import WireLimits
from p2pllm.errors import (
    ClientFault,
    LocalProtocolError,
    Overloaded,
    RemoteFault,
    RemoteProtocolError,
    ServerFault,
    SessionGone,
)
from p2pllm.types import PeerId
from p2pllm.wire import messages as m
from p2pllm.wire.ledger import Payload
from p2pllm.wire.session import (
    CLIENT,
    Answered,
    Ended,
    Fallback,
    HopEvent,
    HopPhase,
    Lost,
    Over,
    Ready,
    Refused,
    Resumed,
    advance,
    kept_tokens,
)

_LIMITS = WireLimits()


@dataclass(slots=True)
class _Asked:
    """A step that is not answered yet."""

    step: m.Step | None
    """None when a neighbour pushes it."""
    payload: Payload
    counts: tuple[int, ...]
    tail: int
    sizes: tuple[int, ...]
    """Tokens that its answer may have: one number, or two once a Rewire has changed whether ``tail`` counts."""


class ClientHop:
    """The session with one server; see the module's text for how to drive it.

    Args:
        open_: what will be asked of the server; its session id is the chain's.
        hidden: the model's hidden size.
    """

    def __init__(self, open_: m.Open, *, hidden: int, limits: WireLimits = _LIMITS) -> None:
        self.phase = HopPhase.NEW
        self.epoch = open_.epoch
        self.numerics = ""
        self.pushes = open_.push_to is not None
        """Whether this hop's outputs go straight to the next one in this epoch; if so, ``tail`` does not count here."""
        self._open = open_
        self._hidden = hidden
        self._limits = limits
        self._codec = open_.returns or open_.activations
        self._rows = (0,) * open_.rows  # after every step that was asked
        self._confirmed = (0,) * open_.rows  # after the last step whose answer, and all before, arrived
        self._next = 0
        self._first = 0  # first id of this numbering
        self._asked: dict[int, _Asked] = {}  # in order of ids
        self._after: dict[int, tuple[int, ...]] = {}  # rows after each step beyond ``acked``
        self._rewire: m.Rewire | None = None  # sent, not yet confirmed
        self._past_epoch = open_.epoch  # answers of this one may still come while a Rewire is under way

    # -- what the owner asks ---------------------------------------------------------------------------------------

    @property
    def positions(self) -> tuple[int, ...]:
        """Where each row stands once all steps are answered."""
        return self._rows

    @property
    def next_step(self) -> int:
        """The id of the next step."""
        return self._next

    @property
    def unconfirmed(self) -> bool:
        """Whether a Rewire was sent that the server did not confirm yet."""
        return self._rewire is not None

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Ids under way, in order."""
        return tuple(self._asked)

    @property
    def acked(self) -> int:
        """All answers up to this id have arrived; -1: none yet."""
        return next(iter(self._asked), self._next) - 1

    @property
    def room(self) -> bool:
        """Whether one more step may be under way."""
        return self.phase is HopPhase.READY and len(self._asked) < self._limits.steps_in_flight_max

    # -- what the owner sends --------------------------------------------------------------------------------------

    def open(self) -> m.Open:
        """The first message; also the first on a new stream when the old one was lost before Ready."""
        self._go(m.Open)
        return self._open

    def step(
        self,
        positions: tuple[int, ...],
        counts: tuple[int, ...],
        tensor: m.TensorHeader,
        payload: Payload,
        *,
        sources: tuple[int, ...] = (),
        tail: int = -1,
        acked: int | None = None,
    ) -> m.Step:
        """The next step, to be sent with ``payload``.

        Args:
            positions: per row, how many cached tokens the new ones follow; less than cached rolls the row back.
            counts: per row, how many new tokens.
            tensor: describes ``payload``.
            sources: per row, which row's cache it continues; empty: its own.
            tail: only each row's last ``tail`` outputs are wanted; -1: all.
            acked: acknowledge no more than this (in push mode: what every hop of the chain has answered).

        Raises:
            LocalProtocolError: it does not fit the rows or the limits, or the session cannot take a step now.
        """
        if tensor.shape != (sum(counts), self._hidden):
            raise LocalProtocolError(f"{sum(counts)} tokens of hidden {self._hidden} in a tensor of {tensor.shape}")
        known = self._known(acked)
        step = m.Step(self._open.session, self.epoch, self._next, positions, counts, tensor, sources, tail, known)
        self._ask(positions, counts, sources, tail, step, payload)
        return step

    def expect(
        self,
        positions: tuple[int, ...],
        counts: tuple[int, ...],
        *,
        sources: tuple[int, ...] = (),
        tail: int = -1,
    ) -> int:
        """In push mode: the neighbour will push the next step; its id."""
        self._ask(positions, counts, sources, tail, None, b"")
        return self._next - 1

    def resend(self, acked: int | None = None) -> list[tuple[m.Step, Payload]]:
        """The unanswered steps that are ours to send, in order, under their old ids; ``acked`` as for ``step``.

        Raises:
            LocalProtocolError: the session is not ready.
        """
        self._check(m.Step)
        out: list[tuple[m.Step, Payload]] = []
        for asked in self._asked.values():
            if asked.step is not None:
                asked.step = replace(asked.step, epoch=self.epoch, acked=self._known(acked))
                out.append((asked.step, asked.payload))
        return out

    def supply(self, step: int, tensor: m.TensorHeader, payload: Payload, like: m.Step) -> m.Step:
        """Send a step ourselves that a neighbour should have pushed: its output ``payload`` came to us instead.

        Args:
            step: its id.
            tensor: describes ``payload``.
            payload: the neighbour's output, unchanged.
            like: the step as the neighbour got it, with the ``tail`` that is wanted now.
        """
        self._check(m.Step)
        asked = self._asked.get(step)
        if asked is None:
            raise LocalProtocolError(f"step {step} is not under way")
        asked.payload = payload
        asked.tail = like.tail
        asked.sizes = (*asked.sizes, kept_tokens(asked.counts, -1 if self.pushes else like.tail))
        asked.step = replace(like, epoch=self.epoch, step=step, tensor=tensor, acked=min(like.acked, self.acked))
        return asked.step

    def attach(self) -> m.Attach | m.Rewire:
        """The first message on a new stream; an unconfirmed Rewire is sent once more instead."""
        if self._rewire is not None:
            self._go(m.Rewire)
            return self._rewire
        self._go(m.Attach)
        return m.Attach(self._open.session, self.epoch)

    def rewire(
        self, epoch: int, push_from: PeerId | None = None, push_to: PeerId | None = None, *, step: int = -1
    ) -> m.Rewire:
        """Begin a new epoch with other neighbours.

        Args:
            epoch: higher than every one before.
            push_from: who may push to this hop.
            push_to: where this hop pushes its outputs.
            step: number the next step so; unanswered steps are given up (Resumed says which of them had arrived, and
                ran or will run). -1: count on.
        """
        if self._rewire is not None:
            raise LocalProtocolError("the last Rewire is not confirmed: attach first")
        if epoch <= self.epoch:
            raise LocalProtocolError(f"epoch {epoch} does not follow {self.epoch}")
        self._go(m.Rewire)
        self._past_epoch = self.epoch
        self.epoch = epoch
        self.pushes = push_to is not None
        for asked in self._asked.values():
            # Whether the server has it from before the Rewire or gets it anew is not known here.
            asked.sizes = (*asked.sizes, kept_tokens(asked.counts, -1 if self.pushes else asked.tail))
        self._rewire = m.Rewire(self._open.session, epoch, push_from, push_to, step)
        return self._rewire

    def close(self) -> m.Close:
        """The last message; the server frees the cache."""
        self._go(m.Close)
        return m.Close(self._open.session)

    def lost(self) -> None:
        """The stream has ended or died; ``attach`` (or ``open``, when NEW again) on another one."""
        self.phase = CLIENT[self.phase][Lost]

    def _ask(
        self,
        positions: tuple[int, ...],
        counts: tuple[int, ...],
        sources: tuple[int, ...],
        tail: int,
        step: m.Step | None,
        payload: Payload,
    ) -> None:
        self._check(m.Step)
        if not self.room:
            raise LocalProtocolError(f"{len(self._asked)} steps are in flight already")
        try:
            after = advance(self._rows, positions, counts, sources, self._open.max_length)
        except ValueError as exc:
            raise LocalProtocolError(str(exc)) from None
        size = kept_tokens(counts, -1 if self.pushes else tail)
        self._asked[self._next] = _Asked(step, payload, counts, tail, (size,))
        self._after[self._next] = self._rows = after
        self._next += 1

    def _known(self, acked: int | None) -> int:
        return self.acked if acked is None else max(-1, min(acked, self.acked))

    def _check(self, message: type) -> HopPhase:
        phase = CLIENT[self.phase].get(message)
        if phase is None:
            raise LocalProtocolError(f"{message.__name__} cannot be sent while the session is {self.phase.value}")
        assert isinstance(phase, HopPhase)
        return phase

    def _go(self, message: type) -> None:
        self.phase = self._check(message)

    # -- what the server says --------------------------------------------------------------------------------------

    def receive(self, message: m.Message, payload: Payload = b"") -> list[HopEvent]:
        """Take one message of this session's stream.

        Raises:
            RemoteProtocolError: it is not what a right server would have sent; drop the stream and the server.
        """
        if isinstance(message, m.Fault):
            return self._fault(message)
        if not isinstance(message, m.Opened | m.Attached | m.Answer | m.Closed | m.Unpushed):
            raise RemoteProtocolError(f"{type(message).__name__} is not for a client")
        if message.session != self._open.session:
            raise RemoteProtocolError(f"{type(message).__name__} of another session")
        phase = CLIENT[self.phase].get(type(message))
        if phase is None:
            raise RemoteProtocolError(f"{type(message).__name__} while the session is {self.phase.value}")
        if self.phase is HopPhase.CLOSING:
            self.phase = phase
            return [Over()] if phase is HopPhase.OVER else []
        match message:
            case m.Answer():
                events = self._answer(message, payload)
            case m.Opened():
                events = self._opened(message)
            case m.Attached():
                events = self._attached(message)
            case m.Unpushed():
                events = [Fallback()] if message.epoch == self.epoch and self.pushes else []
            case m.Closed():
                events = [Over()]
        self.phase = phase
        return events

    def _opened(self, message: m.Opened) -> list[HopEvent]:
        if message.epoch != self.epoch:
            raise RemoteProtocolError(f"opened in epoch {message.epoch} instead of {self.epoch}")
        if self._open.numerics and message.numerics != self._open.numerics:
            raise RemoteProtocolError(f"opened with numerics {message.numerics!r} instead of {self._open.numerics!r}")
        self.numerics = message.numerics
        return [Ready(message.numerics)]

    def _attached(self, message: m.Attached) -> list[HopEvent]:
        if message.epoch != self.epoch:
            raise RemoteProtocolError(f"attached in epoch {message.epoch} instead of {self.epoch}")
        expected = self._confirmed if message.step == self.acked else self._after.get(message.step)
        if expected is None:
            raise RemoteProtocolError(f"step {message.step} as the last one of {self.acked}..{self._next - 1}")
        if message.positions != expected:
            raise RemoteProtocolError(f"rows at {message.positions} after step {message.step} instead of {expected}")
        if self._rewire is not None and self._rewire.step >= 0:
            self._rows = self._confirmed = expected
            self._next = self._first = self._rewire.step
            self._asked.clear()
            self._after.clear()
        self._rewire = None
        self._past_epoch = self.epoch
        return [Resumed(message.step, message.positions)]

    def _answer(self, message: m.Answer, payload: Payload) -> list[HopEvent]:
        if not self._past_epoch <= message.epoch <= self.epoch:
            raise RemoteProtocolError(f"answer in epoch {message.epoch} instead of {self.epoch}")
        asked = self._asked.get(message.step)
        if asked is None:
            if self._first <= message.step < self._next:
                return []  # repeated after a re-attach
            raise RemoteProtocolError(f"answer to step {message.step}, which was never asked for")
        codec = message.tensor.codec
        tokens, hidden = message.tensor.shape
        if codec != self._codec or hidden != self._hidden or tokens not in asked.sizes:
            wanted = f"{self._codec} [{asked.sizes[-1]}, {self._hidden}]"
            raise RemoteProtocolError(f"answer of {codec} [{tokens}, {hidden}] instead of {wanted}")
        if message.positions != self._after[message.step]:
            raise RemoteProtocolError(f"rows at {message.positions} instead of {self._after[message.step]}")
        del self._asked[message.step]
        for step in range(next(iter(self._after)), self.acked + 1):
            self._confirmed = self._after.pop(step)
        return [Answered(message, payload)]

    def _fault(self, fault: m.Fault) -> list[HopEvent]:
        if fault.session not in (self._open.session, m.NO_SESSION):
            raise RemoteProtocolError("fault of another session")
        if self.phase in (HopPhase.NEW, HopPhase.DETACHED, HopPhase.OVER):
            raise RemoteProtocolError(f"fault while the session is {self.phase.value}")
        if fault.session == self._open.session and fault.epoch > self.epoch:
            raise RemoteProtocolError(f"fault in epoch {fault.epoch}, which has not begun")
        if fault.session == self._open.session and fault.epoch < self._past_epoch:
            return []
        if self.phase is HopPhase.CLOSING:
            self.phase = CLIENT[self.phase][m.Fault if fault.step >= 0 else Ended]
            return [] if fault.step >= 0 else [Over()]
        error = self._error(fault)
        fatal = fault.step < 0 or fault.kind in (m.FaultKind.GONE, m.FaultKind.INTERNAL)
        if not fatal and fault.step not in self._asked:
            if self._first <= fault.step < self._next:
                return []
            raise RemoteProtocolError(f"fault for step {fault.step}, which was never asked for")
        if fatal:
            self.phase = CLIENT[self.phase][Ended]
        return [Refused(fault.step, error)]

    def _error(self, fault: m.Fault) -> RemoteFault:
        match fault.kind:
            case m.FaultKind.CLIENT:
                return ClientFault(fault.reason)
            case m.FaultKind.BUSY:
                return Overloaded(fault.reason, min(fault.retry_after_s, self._limits.retry_after_s_max))
            case m.FaultKind.GONE:
                return SessionGone(fault.reason)
            case m.FaultKind.INTERNAL:
                return ServerFault(fault.reason)
