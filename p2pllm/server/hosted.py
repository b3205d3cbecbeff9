"""One session as this server holds it: the automaton, its cache pages, its stream, its work in the engine.

Invariants: the automaton decides, this performs, in the order of its events. Everything here is synchronous; whoever
calls it flushes afterwards. The session outlives its stream: a step goes on without one, and its answer is kept. Row
page lists change when a step is accepted, in order, and go back when it is refused before it touched the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from p2pllm.errors import LocalProtocolError
from p2pllm.server.backend import RowCopy, SpanTask
from p2pllm.server.channel import Channel
from p2pllm.server.engine import Engine
from p2pllm.server.faults import kind_of, reason_of, retry_after
from p2pllm.server.kvcache import Pages, Reservation, continue_rows
from p2pllm.server.offer import inner_points
from p2pllm.server.scheduler import kind_of_step
from p2pllm.types import PeerId, SessionId
from p2pllm.wire.messages import FaultKind, Message, Open, Step
from p2pllm.wire.session import Bind, End, Payload, Run, Send, ServerEvent, ServerPhase, Withdraw
from p2pllm.wire.session_server import ServerSession

log = logging.getLogger(__name__)


class Hosted:
    """A session; made once its cache is reserved."""

    def __init__(
        self,
        open_: Open,
        automaton: ServerSession,
        reservation: Reservation,
        engine: Engine,
        *,
        push: Callable[[Hosted, Send], None],
        ended: Callable[[Hosted], None],
    ) -> None:
        self.automaton = automaton
        self.reservation = reservation
        self.channel: Channel | None = None
        self.used_s = 0.0
        """When the last step came; the owner keeps it."""
        self.credit_bytes = 0
        """Answers that it may make us keep; the owner keeps this, too."""
        self._open = open_
        self._points = inner_points(open_.codec_points, open_.span)
        self._engine = engine
        self._push = push
        self._ended = ended
        self._running: dict[int, SpanTask] = {}
        """By step id."""
        self._started: list[SpanTask] = []

    @property
    def id(self) -> SessionId:
        return self._open.session

    @property
    def opener(self) -> PeerId:
        return self.automaton.opener

    @property
    def over(self) -> bool:
        return self.automaton.phase is ServerPhase.ENDED

    @property
    def busy(self) -> int:
        """Steps under way."""
        return len(self._running)

    def receive(self, channel: Channel, message: Message, payload: Payload) -> list[SpanTask]:
        """Take one frame that came on ``channel``; returns the tasks that it started: somebody has to wait for each.

        Raises:
            RemoteProtocolError: the peer sent what no client ever sends.
        """
        self.perform(self.automaton.receive(channel.peer, message, payload), channel)
        started, self._started = self._started, []
        return started

    def perform(self, events: list[ServerEvent], via: Channel | None) -> None:
        """Do what the automaton says; ``via`` is the channel of the frame that caused it, if one did."""
        for event in events:
            match event:
                case Send():
                    self._post(event, via)
                case Run():
                    self._run(event)
                case Withdraw():
                    self._withdraw(event.steps)
                case Bind():
                    assert via is not None
                    self.bind(via)
                case End():
                    self._end()
                case _:  # Wired: the automaton names the receiver of every push itself
                    pass

    def bind(self, channel: Channel) -> None:
        """From now on the opener is at ``channel``."""
        old, self.channel = self.channel, channel
        if old is not None and old is not channel:
            old.abort()

    def lost(self, now: float) -> None:
        """The opener's stream is gone."""
        self.channel = None
        self.automaton.lost(now)

    def end(self, kind: FaultKind, reason: str) -> None:
        """End the session from this side."""
        self.perform(self.automaton.end(kind, reason), None)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _post(self, event: Send, via: Channel | None) -> None:
        if event.to == self.opener and not isinstance(event.message, Step):
            # Before the session is bound, and for its opener's frames on another stream, the answer goes back there.
            at_home = via is None or via.peer != self.opener or via is self.channel
            channel = self.channel if at_home else via
        elif isinstance(event.message, Step):
            self._push(self, event)
            return
        else:
            channel = via  # a word to whoever sent this frame
        if channel is not None:
            channel.post(event.message, event.payload, event.priority)

    def _run(self, event: Run) -> None:
        step = event.step
        before = tuple(self.reservation.rows)
        copies: tuple[RowCopy, ...] = ()
        if step.sources:
            rows, plan = continue_rows(before, step.sources)
            lengths = step.positions
            copies = tuple(RowCopy(before[old], rows[new], lengths[new]) for old, new in plan if lengths[new])
            self.reservation.rows[:] = rows
        task = SpanTask(
            self.opener,
            self.id,
            kind_of_step(step.counts),
            step.counts,
            reservation=self.reservation,
            span=self._open.span,
            tensor=step.tensor,
            payload=event.payload,
            codec=self._open.activations,
            returns=self._open.returns or self._open.activations,
            points=self._points,
            positions=step.positions,
            rows=tuple(self.reservation.rows),
            copies=copies,
            tail=event.tail,
        )
        self._running[step.step] = task
        task.error = self._engine.refuse(task)
        if task.error is not None:
            self._finished(step.step, task, before)
            return
        task.on_finish = lambda: self._finished(step.step, task, before)
        self._engine.submit(task)
        self._started.append(task)

    def _finished(self, step: int, task: SpanTask, before: tuple[Pages, ...]) -> None:
        """The engine is done with a task: let the automaton answer, or say what went wrong."""
        if task.withdrawn:
            return
        if self._running.get(step) is task:
            del self._running[step]
        try:
            events = self._outcome(step, task, before)
        except LocalProtocolError:
            # Our bug, found in the middle of somebody's pass: it costs this session, not the server.
            log.exception("step %d of a session of %s", step, self.opener)
            events = self.automaton.end(FaultKind.INTERNAL, "the step's result cannot be told")
        self.perform(events, None)

    def _outcome(self, step: int, task: SpanTask, before: tuple[Pages, ...]) -> list[ServerEvent]:
        if task.error is None:
            assert task.answer is not None
            return self.automaton.answered(step, *task.answer, queue_s=task.queue_s, compute_s=task.compute_s)
        kind = kind_of(task.error)
        if kind in (FaultKind.CLIENT, FaultKind.BUSY):
            self.reservation.rows[:] = before  # refused before it touched the cache
        return self.automaton.failed(step, kind, reason_of(task.error), retry_after(task.error))

    def _withdraw(self, steps: tuple[int, ...]) -> None:
        for step in steps:
            if (task := self._running.pop(step, None)) is not None:
                task.withdrawn = True
        self._engine.discard(self.id)

    def _end(self) -> None:
        for task in self._running.values():
            task.withdrawn = True
        self._running.clear()
        self._engine.discard(self.id)
        self._ended(self)
