"""A session at its server: who may say what, which steps run, which answers are kept and repeated.

The owner feeds every frame of the session to ``receive`` and performs the events that come back, in order; it calls
``answered`` or ``failed`` when a step has run, ``lost`` when the opener's stream went, ``end`` to end it itself::

    session = ServerSession(open_, peer, hidden=4096)         # after the cache was reserved
    perform(session.opened(numerics.tag()))
    for message, payload in reader.feed(data):
        perform(session.receive(peer, message, payload))      # Run: queue the step; Send: encode and send; ...
    perform(session.answered(step_id, tensor_header, out))    # from the compute side, in order of ids

An Open that asks for something else in a newer epoch ends the session: the owner sees End, and then opens that one.

Invariants: sans-I/O; ``now`` is an argument. Steps are accepted in order of ids and answered in that order. Kept
answers and those still to come fit into the byte credit, and are bounded in number. No frame of an older epoch, of
another peer, or out of order changes anything. A refused step leaves the rows as they were before it, and what was
sent behind it is dropped silently until its id comes again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from p2pllm.config import ServerConfig, WireLimits
from p2pllm.errors import LocalProtocolError, RemoteProtocolError
from p2pllm.types import PeerId, Priority
from p2pllm.wire import messages as m
from p2pllm.wire.ledger import Entry, Ledger, Payload, digest_of
from p2pllm.wire.session import (
    SERVER,
    Bind,
    End,
    Ended,
    Lost,
    Run,
    Send,
    ServerEvent,
    ServerPhase,
    Wired,
    Withdraw,
    advance,
    kept_tokens,
    no_session,
    priority_of,
)

_LIMITS = WireLimits()
_CONFIG = ServerConfig()
_CREDIT_RETRY_S = 0.1


class ServerSession:
    """One opened session; see the module's text for how to drive it.

    Args:
        open_: the request whose cache was reserved.
        opener: the authenticated peer that sent it, the only one that commands the session.
        hidden: the model's hidden size.
        answer_bytes_max: credit for answers that are kept until acknowledged.
        linger_s: how long the session waits for its opener after its stream was lost.
    """

    def __init__(
        self,
        open_: m.Open,
        opener: PeerId,
        *,
        hidden: int,
        limits: WireLimits = _LIMITS,
        answer_bytes_max: int = _CONFIG.answer_bytes_max,
        linger_s: float = _CONFIG.linger_s,
    ) -> None:
        self.open = open_
        self.opener = opener
        self.phase = ServerPhase.ATTACHED
        self.epoch = open_.epoch
        self.push_from = open_.push_from
        self.push_to = open_.push_to
        self.stale_frames = 0
        """Frames refused because of an older epoch or a stranger, for the logs."""
        self._hidden = hidden
        self._limits = limits
        self._ledger = Ledger(answer_bytes_max)
        self._linger_s = linger_s
        self._deadline: float | None = None
        self._numerics = ""
        self._wiring: m.Rewire | None = None  # what began this epoch
        self._pushes = open_.push_to is not None  # decides for this epoch whether ``tail`` counts here
        self._rows = (0,) * open_.rows  # after every accepted step
        self._computed = (0,) * open_.rows  # after every answered step
        self._settled: m.Attached | None = None  # the answer to the Rewire that renumbered
        self._forgotten: deque[int] = deque()  # running under ids from before a renumbering
        self._skipping = False  # a step was refused: drop what was sent behind it

    # -- what the owner asks ---------------------------------------------------------------------------------------

    @property
    def positions(self) -> tuple[int, ...]:
        """Where each row stands after all accepted steps."""
        return self._rows

    @property
    def running(self) -> tuple[int, ...]:
        """Ids of the steps that are accepted and not yet answered, in order."""
        return tuple(self._ledger.running)

    @property
    def deadline(self) -> float | None:
        """When a detached session expires; None while it is attached."""
        return self._deadline

    def expired(self, now: float) -> bool:
        """Whether the opener stayed away too long; the owner then calls ``end``."""
        return self._deadline is not None and now >= self._deadline

    # -- what the owner tells --------------------------------------------------------------------------------------

    def opened(self, numerics: str) -> list[ServerEvent]:
        """The cache is reserved: tell the opener."""
        self._numerics = numerics
        return [Send(self.opener, m.Opened(self.open.session, self.epoch, numerics))]

    def lost(self, now: float) -> None:
        """The stream that the session is attached to has ended or died."""
        self._move(Lost)
        if self.phase is ServerPhase.DETACHED:
            self._deadline = now + self._linger_s

    def end(self, kind: m.FaultKind = m.FaultKind.GONE, reason: str = "the session was ended") -> list[ServerEvent]:
        """End the session from this side, with a word to the opener if it is there."""
        if self.phase is ServerPhase.ENDED:
            return []
        events: list[ServerEvent] = []
        if self.phase is ServerPhase.ATTACHED:
            events.append(Send(self.opener, self._fault(kind, reason, -1)))
        return [*events, *self._over()]

    def answered(
        self, step: int, tensor: m.TensorHeader, payload: Payload, queue_s: float = 0.0, compute_s: float = 0.0
    ) -> list[ServerEvent]:
        """Step ``step`` has run; steps of a session are answered in order.

        Raises:
            LocalProtocolError: it is not the oldest running step, or its output has not the shape that was asked for.
        """
        if self._done(step):
            return []
        entry = self._ledger.find(step) if self.running[:1] == (step,) else None
        if entry is None:
            raise LocalProtocolError(f"step {step} is not the oldest running step")
        if tensor.shape != (entry.tokens, self._hidden):
            raise LocalProtocolError(f"step {step} asked for {entry.tokens} tokens, its output is {tensor.shape}")
        answer = m.Answer(self.open.session, self.epoch, step, entry.after, tensor, queue_s, compute_s)
        self._ledger.answer(entry, answer, payload)
        self._computed = entry.after
        return self._deliver(entry)

    def failed(self, step: int, kind: m.FaultKind, reason: str, retry_after_s: float = 0.0) -> list[ServerEvent]:
        """Step ``step`` did not run. CLIENT and BUSY: before the cache was touched, and the session goes on from before
        it. INTERNAL and GONE: the cache cannot be trusted any more, and the session ends.

        Raises:
            LocalProtocolError: the step is not running.
        """
        fatal = kind in (m.FaultKind.INTERNAL, m.FaultKind.GONE)
        if self._forgotten and step in self._forgotten:
            # Its successors were accepted on top of it: they have no ground now.
            return self.end(m.FaultKind.GONE, reason)
        if self.phase is ServerPhase.ENDED:
            return []
        if step not in self.running:
            raise LocalProtocolError(f"step {step} failed, but is not running")
        events: list[ServerEvent] = []
        if self.phase is ServerPhase.ATTACHED:
            events.append(Send(self.opener, self._fault(kind, reason, step, retry_after_s)))
        if fatal:
            return [*events, *self._over()]
        self._rows, later = self._ledger.withdraw(step)
        self._skipping = True
        return [*events, Withdraw(later)] if later else events

    def unpushed(self) -> list[ServerEvent]:
        """``push_to`` cannot be reached: for the rest of this epoch the opener relays."""
        if self.push_to is None or self.phase is ServerPhase.ENDED:
            return []
        self.push_to = None
        if self.phase is ServerPhase.DETACHED:
            return []
        return [Send(self.opener, m.Unpushed(self.open.session, self.epoch))]

    # -- what peers say --------------------------------------------------------------------------------------------

    def receive(self, peer: PeerId, message: m.Message, payload: Payload = b"") -> list[ServerEvent]:
        """Take one frame of this session, from its opener or anybody else.

        Raises:
            RemoteProtocolError: a message that no client ever sends; drop the stream.
        """
        if not isinstance(message, m.Open | m.Step | m.Attach | m.Rewire | m.Close):
            raise RemoteProtocolError(f"{type(message).__name__} is not for a server")
        if message.session != self.open.session:
            raise LocalProtocolError("a frame of another session")
        pusher = isinstance(message, m.Step) and peer == self.push_from
        if self.phase is ServerPhase.ENDED or (peer != self.opener and not pusher):
            self.stale_frames += 1
            return [Send(peer, no_session(message))]
        if not isinstance(message, m.Close) and message.epoch < self.epoch:
            self.stale_frames += 1
            step = message.step if isinstance(message, m.Step) else -1
            reason = f"epoch {message.epoch} of this session is over"
            return [Send(peer, m.Fault(m.FaultKind.GONE, reason, self.open.session, message.epoch, step))]
        match message:
            case m.Step():
                return self._step(peer, message, payload)
            case m.Open():
                return self._open(message)
            case m.Attach():
                return self._attach(message)
            case m.Rewire():
                return self._rewire(message)
            case m.Close():
                return [Send(self.opener, m.Closed(self.open.session)), *self._over()]

    def _open(self, message: m.Open) -> list[ServerEvent]:
        if message == self.open and self._ledger.next == 0 and self._wiring is None:
            self._attached(m.Open)
            return [Bind(), *self.opened(self._numerics)]
        if message.epoch > self.epoch:
            # The opener gave this cache up and begins anew: the owner ends this session and opens that one.
            return self._over()
        return [Send(self.opener, self._fault(m.FaultKind.CLIENT, "this session is already open", -1))]

    def _attach(self, message: m.Attach) -> list[ServerEvent]:
        if message.epoch > self.epoch:
            return [Send(self.opener, self._fault(m.FaultKind.CLIENT, f"epoch {message.epoch} has not begun", -1))]
        self._attached(m.Attach)
        return [Bind(), Send(self.opener, self._standing())]

    def _rewire(self, message: m.Rewire) -> list[ServerEvent]:
        if message.epoch == self.epoch and message != self._wiring:
            return [Send(self.opener, self._fault(m.FaultKind.CLIENT, "this epoch is wired otherwise", -1))]
        self._attached(m.Rewire)
        if message != self._wiring:
            self._wiring = message
            self.epoch = message.epoch
            self.push_from = message.push_from
            self.push_to = message.push_to
            self._pushes = message.push_to is not None
            if message.step >= 0:
                self._renumber(message.step)
        standing = self._settled if message.step >= 0 else None
        wired = Wired(self.epoch, self.push_from, self.push_to)
        return [Bind(), wired, Send(self.opener, standing or self._standing())]

    def _renumber(self, step: int) -> None:
        """Forget answers and ids; what runs goes on, as later steps build on it, but nobody waits for it."""
        self._settled = m.Attached(self.open.session, self.epoch, self._ledger.next - 1, self._rows)
        self._forgotten.extend(self._ledger.renumber(step))
        self._computed = self._rows
        self._skipping = False

    def _step(self, peer: PeerId, message: m.Step, payload: Payload) -> list[ServerEvent]:
        if peer == self.opener and self.phase is ServerPhase.DETACHED:
            return [Send(peer, self._fault(m.FaultKind.CLIENT, "attach before you step", message.step))]
        if message.epoch > self.epoch:
            return self._refuse(peer, message, f"epoch {message.epoch} has not begun")
        due = self._ledger.next
        if message.acked > self._ledger.acked:
            if message.acked > self._ledger.computed:
                return self._refuse(peer, message, f"step {message.acked} was not answered yet")
            self._ledger.acknowledge(message.acked)
        if message.step < due:
            return self._repeat(peer, message, payload)
        if message.step == due:
            return self._accept(peer, message, payload)
        if self._skipping:
            return []
        return self._refuse(peer, message, f"step {message.step} came where {due} was due")

    def _repeat(self, peer: PeerId, message: m.Step, payload: Payload) -> list[ServerEvent]:
        entry = self._ledger.find(message.step)
        if entry is None:
            return self._refuse(
                peer, message, f"the answer to step {message.step} was acknowledged already", skip=False
            )
        if not entry.repeated_by(message, payload):
            return self._refuse(peer, message, f"step {message.step} came again with other contents", skip=False)
        return [] if entry.answer is None else self._deliver(entry)

    def _accept(self, peer: PeerId, message: m.Step, payload: Payload) -> list[ServerEvent]:
        if message.tensor.shape[1] != self._hidden:
            return self._refuse(peer, message, f"hidden size {message.tensor.shape[1]}; this model has {self._hidden}")
        try:
            after = advance(self._rows, message.positions, message.counts, message.sources, self.open.max_length)
        except ValueError as exc:
            return self._refuse(peer, message, str(exc))
        running = len(self.running) + len(self._forgotten)
        if running >= self._limits.steps_in_flight_max:
            reason = f"more than {self._limits.steps_in_flight_max} steps in flight"
            return self._refuse(peer, message, reason)
        tail = -1 if self._pushes else message.tail
        tokens = kept_tokens(message.counts, tail)
        cost = m.plain_size(self.open.returns or self.open.activations, tokens, self._hidden)
        if cost > self._ledger.credit:
            limit = self._ledger.credit
            return self._refuse(peer, message, f"an answer of {cost} bytes; a session keeps at most {limit}")
        if not self._ledger.has_room(cost):
            return self._refuse(peer, message, "too many answers are not acknowledged", busy=True)
        self._ledger.accept(Entry(message, digest_of(payload), self._rows, after, tokens, cost))
        self._rows = after
        self._skipping = False
        return [Run(message, payload, tail)]

    def _refuse(
        self, peer: PeerId, message: m.Step, reason: str, *, busy: bool = False, skip: bool = True
    ) -> list[ServerEvent]:
        """Refuse a step at the door; the opener hears of it also when another peer pushed it."""
        self._skipping = self._skipping or skip
        kind = m.FaultKind.BUSY if busy else m.FaultKind.CLIENT
        fault = self._fault(kind, reason, message.step, _CREDIT_RETRY_S if busy else 0.0)
        events: list[ServerEvent] = [Send(peer, fault)]
        if peer != self.opener and self.phase is ServerPhase.ATTACHED:
            events.append(Send(self.opener, fault))
        return events

    # -- parts -----------------------------------------------------------------------------------------------------

    def _deliver(self, entry: Entry) -> list[ServerEvent]:
        """An answer's way out: to the opener, and in push mode first to the next hop, as its step."""
        assert entry.answer is not None
        events: list[ServerEvent] = []
        urgency = priority_of(entry.payload)
        tensor = entry.answer.tensor
        if self.push_to is not None and tensor.shape[0] == sum(entry.step.counts):
            acked = min(self._ledger.acked, entry.step.step - 1)
            pushed = replace(entry.step, epoch=self.epoch, tensor=tensor, acked=acked)
            events.append(Send(self.push_to, pushed, entry.payload, urgency))
            urgency = Priority.BULK  # the opener's copy is history: off the critical path
        if self.phase is ServerPhase.ATTACHED:
            events.append(Send(self.opener, replace(entry.answer, epoch=self.epoch), entry.payload, urgency))
        return events

    def _done(self, step: int) -> bool:
        """Whether nobody waits for this result any more."""
        if self._forgotten and self._forgotten[0] == step:
            self._forgotten.popleft()
            return True
        return self.phase is ServerPhase.ENDED

    def _standing(self) -> m.Attached:
        return m.Attached(self.open.session, self.epoch, self._ledger.computed, self._computed)

    def _fault(self, kind: m.FaultKind, reason: str, step: int, retry_after_s: float = 0.0) -> m.Fault:
        return m.Fault(kind, reason, self.open.session, self.epoch, step, retry_after_s)

    def _attached(self, message: type) -> None:
        self._move(message)
        self._deadline = None

    def _over(self) -> list[ServerEvent]:
        self._move(Ended)
        self._deadline = None
        self._ledger.clear()
        return [End()]

    def _move(self, event: type) -> None:
        self.phase = SERVER[self.phase][event]
