"""Both automata against each other over a link that breaks at any moment, judged by what the rows really contain.

Whatever happens (broken streams, late frames of old ones, refusals, roll-backs, forks, new epochs and numberings), the
server computes exactly what the client asked, in that order, and every answer is the right one. When the link is whole
again, everything is answered.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pllm.types import PeerId, Span
from p2pllm.wire import messages as m
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.session import (
    Answered,
    Bind,
    End,
    HopPhase,
    Ready,
    Refused,
    Resumed,
    Run,
    Send,
    ServerEvent,
    ServerPhase,
    Wired,
    Withdraw,
)
from p2pllm.wire.session_client import ClientHop
from p2pllm.wire.session_server import ServerSession
from tests.wire.strategies import MODEL, SESSION
from tests.wire.toy import HIDDEN, Rows, new_token, pack, run, unpack

ME = PeerId("12D3opener")
ROWS = 2
MAX_LENGTH = 40


class Stream:
    """One stream's two directions, in real frames."""

    def __init__(self) -> None:
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.server_reader = MessageReader()
        self.client_reader = MessageReader()


class Pair(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.hop = ClientHop(m.Open(SESSION, 1, MODEL, Span(0, 4), ROWS, MAX_LENGTH, "int8"), hidden=HIDDEN)
        self.session: ServerSession | None = None
        self.stream: Stream | None = Stream()
        self.bound: Stream | None = None
        self.late: Stream | None = None  # what the client gave up, and the server may not know yet
        self.queue: deque[Run] = deque()
        self.cache: Rows = [()] * ROWS
        self.content: Rows = [()] * ROWS  # what the client means the rows to contain
        self.contents: dict[int, Rows] = {-1: self.content}  # after each step
        self.expected: dict[int, list[bytes]] = {}
        self.tokens = 0
        self.answers = 0
        self.send(self.hop.open())

    # -- the world -------------------------------------------------------------------------------------------------

    def send(self, message: m.Message, payload: Any = b"") -> None:
        if self.stream is not None:
            self.stream.up.append(encode_message(message, payload))

    def perform(self, events: list[ServerEvent], stream: Stream | None) -> None:
        for event in events:
            match event:
                case Bind():
                    self.bound = stream
                    if self.late is not stream:
                        self.late = None
                case Run():
                    self.queue.append(event)
                case Send(to=to, message=message, payload=payload):
                    assert to == ME
                    if self.bound is not None:
                        self.bound.down.append(encode_message(message, payload))
                case Withdraw(steps=steps):
                    assert tuple(item.step.step for item in self.queue) == steps
                    self.queue.clear()
                case Wired():
                    pass
                case End():
                    raise AssertionError("nobody ended it")

    def server_takes(self, stream: Stream) -> None:
        for message, payload in stream.server_reader.feed(stream.up.popleft()):
            if isinstance(message, m.Open) and self.session is None:
                self.session = ServerSession(message, ME, hidden=HIDDEN)
                self.bound = stream
                self.perform(self.session.opened("class"), stream)
            else:
                assert self.session is not None
                self.perform(self.session.receive(ME, message, payload), stream)

    def client_takes(self, stream: Stream) -> None:
        for message, payload in stream.client_reader.feed(stream.down.popleft()):
            for event in self.hop.receive(message, payload):
                match event:
                    case Answered(answer=answer, payload=out):
                        assert unpack(out) == self.expected.pop(answer.step)
                        self.answers += 1
                    case Ready():
                        pass
                    case Resumed(step=step):
                        if self.renumbered is not None:
                            self.content = self.contents[step]
                            self.contents = {self.renumbered - 1: self.content}
                            self.expected.clear()
                            self.renumbered = None
                        self.resend()
                    case Refused(error=error):
                        assert type(error).__name__ == "Overloaded"
                        if self.hop.phase is HopPhase.READY:
                            self.resend()

    def resend(self) -> None:
        for step, payload in self.hop.resend():
            self.send(step, payload)

    renumbered: int | None = None

    # -- what may happen -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.hop.room)
    @rule(data=st.data(), tail=st.integers(-1, 2), fork=st.booleans())
    def ask(self, data: st.DataObject, tail: int, fork: bool) -> None:
        sources = tuple(data.draw(st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS))) if fork else ()
        current = tuple(self.hop.positions[source] for source in sources or range(ROWS))
        counts = tuple(data.draw(st.integers(0, 3)) for _ in range(ROWS))
        positions = tuple(
            min(MAX_LENGTH - count, max(0, cached - data.draw(st.sampled_from((0, 0, 0, 1, 5)))))
            for cached, count in zip(current, counts, strict=True)
        )
        tokens = [new_token(self.tokens + i) for i in range(sum(counts))]
        self.tokens += len(tokens)
        number = self.hop.next_step
        step = self.hop.step(positions, counts, *pack(tokens), sources=sources, tail=tail)
        self.content, self.expected[number] = run(self.content, positions, counts, sources, tokens, tail)
        self.contents[number] = self.content
        self.send(step, pack(tokens)[1])

    @precondition(lambda self: self.hop.phase is HopPhase.READY)
    @rule()
    def ask_again(self) -> None:
        self.resend()

    @precondition(lambda self: self.stream is not None and self.stream.up)
    @rule()
    def server_reads(self) -> None:
        assert self.stream is not None
        self.server_takes(self.stream)

    @precondition(lambda self: self.stream is not None and self.stream.down)
    @rule()
    def client_reads(self) -> None:
        assert self.stream is not None
        self.client_takes(self.stream)

    @precondition(lambda self: self.late is not None and self.late.up)
    @rule()
    def server_reads_what_comes_late(self) -> None:
        assert self.late is not None
        self.server_takes(self.late)

    @precondition(lambda self: self.queue)
    @rule()
    def compute(self) -> None:
        assert self.session is not None
        item = self.queue.popleft()
        step = item.step
        self.cache, out = run(self.cache, step.positions, step.counts, step.sources, unpack(item.payload), item.tail)
        self.perform(self.session.answered(step.step, *pack(out)), None)

    @precondition(lambda self: self.queue and self.session is not None and self.session.running == self.ids_in_queue())
    @rule()
    def refuse(self) -> None:
        assert self.session is not None
        item = self.queue.popleft()
        self.perform(self.session.failed(item.step.step, m.FaultKind.BUSY, "full", 0.1), None)

    def ids_in_queue(self) -> tuple[int, ...]:
        return tuple(item.step.step for item in self.queue)

    @precondition(lambda self: self.stream is not None)
    @rule(noticed=st.booleans())
    def the_stream_breaks(self, noticed: bool) -> None:
        broken, self.stream = self.stream, None
        self.hop.lost()
        if noticed:
            self.late = None
            self.server_notices(broken)
        else:
            self.late = broken

    def server_notices(self, broken: Stream | None) -> None:
        if self.session is not None and self.bound is broken:
            self.session.lost(0.0)
            self.bound = None

    @precondition(lambda self: self.late is not None)
    @rule()
    def the_server_notices_late(self) -> None:
        self.server_notices(self.late)
        self.late = None

    @precondition(lambda self: self.stream is None)
    @rule()
    def come_back(self) -> None:
        if self.late is not None and self.session is None:
            self.late = None  # two opens at once are the business of the session's owner
        self.stream = Stream()
        self.send(self.hop.open() if self.hop.phase is HopPhase.NEW else self.hop.attach())

    @precondition(lambda self: self.hop.phase is HopPhase.READY and self.stream is not None)
    @rule(number=st.integers(-1, 60))
    def begin_an_epoch(self, number: int) -> None:
        self.renumbered = number if number >= 0 else None
        self.send(self.hop.rewire(self.hop.epoch + 1, step=number))

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def positions_are_those_of_the_contents(self) -> None:
        if getattr(self, "hop", None) is not None and self.renumbered is None:
            assert self.hop.positions == tuple(len(row) for row in self.content)

    def teardown(self) -> None:
        """Heal the link; everything is answered, and both sides agree."""
        if not hasattr(self, "hop"):
            return
        for _ in range(20_000):  # every message of a long exchange, and no livelock
            if self.stream is None:
                self.come_back()
            elif self.stream.up:
                self.server_takes(self.stream)
            elif self.queue:
                self.compute()
            elif self.stream.down:
                self.client_takes(self.stream)
            else:
                break
        assert self.hop.phase is HopPhase.READY
        assert self.session is not None
        assert self.session.phase is ServerPhase.ATTACHED
        assert self.hop.unanswered == ()
        assert self.expected == {}
        assert self.cache == self.content
        assert self.session.positions == self.hop.positions
        assert self.session.epoch == self.hop.epoch


Pair.TestCase.settings = settings(
    max_examples=250, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPair = Pair.TestCase
