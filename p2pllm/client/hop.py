"""One server's half of a session: the automaton of ``wire.session_client`` over one link.

Invariants: steps go out in order, and ``receive`` returns their answers in that order. One task may send while another
receives. A stream that breaks is replaced once it can be: the session attaches again and repeats what is unanswered; a
server that is silent beyond the deadline is given up. What is wrong leaves as PeerLost, RemoteProtocolError or one of
the faults; the hop is of no use afterwards and only to be closed.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from p2pllm.client.edge import Packed
from p2pllm.client.link import Links, PeerSilent
from p2pllm.client.patience import work
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop
from p2pllm.client.talk import Talk, Unpushed
from p2pllm.config import Config
from p2pllm.errors import Overloaded, PeerLost
from p2pllm.wire.messages import Open, Step
from p2pllm.wire.session import Answered, HopPhase

log = logging.getLogger(__name__)

MEASURED_TOKENS_MAX = 8
"""Steps of at most so many tokens tell what a hop costs; longer ones tell of bandwidth and of others' prefills."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """When a step went out, how much it asks for, and whether its time says what the hop costs."""

    at: float
    work: float
    telling: bool


class HopSession(Talk):
    """A session's cache at one server. Made, then ``open``ed, used, and ``aclose``d."""

    def __init__(self, links: Links, peers: Peers, config: Config, hop: Hop, open_: Open, hidden: int) -> None:
        super().__init__(links, peers, config, hop, open_, hidden)
        self._sent: deque[tuple[int, _Sent]] = deque()  # ids whose answers were not fetched yet, in order
        self._answers: dict[int, Packed] = {}
        self._answered_at = float("-inf")

    @property
    def next_step(self) -> int:
        """The id of the next step."""
        return self._wire.next_step

    @property
    def acked(self) -> int:
        """All answers up to this id have arrived."""
        return self._wire.acked

    async def send(
        self,
        positions: tuple[int, ...],
        counts: tuple[int, ...],
        packed: Packed,
        *,
        tail: int = -1,
        sources: tuple[int, ...] = (),
        acked: int | None = None,
    ) -> None:
        """Send one step; what goes wrong meanwhile is ``receive``'s business: it repeats the step, or says why not.

        In push mode ``acked`` is what every hop that the step passes has answered.
        """
        await self._take_turn()
        try:
            if self._wire.phase is not HopPhase.READY:
                self._refusal = PeerLost("its stream was lost before the step")
                return
            step = self._wire.step(
                positions, counts, packed.tensor, packed.payload, sources=sources, tail=tail, acked=acked
            )
            self._asked(step.step, positions, packed.tokens)
            await self._current.send(step, packed.payload)
        except PeerLost as exc:
            log.debug("step to %s was not sent: %s", self.peer_id, exc)
        finally:
            self._sending.release()

    def expect(
        self, positions: tuple[int, ...], counts: tuple[int, ...], *, tail: int = -1, sources: tuple[int, ...] = ()
    ) -> None:
        """A neighbour will push the next step."""
        if self._wire.phase is not HopPhase.READY:
            self._refusal = PeerLost("its stream was lost before the step")
            return
        step = self._wire.expect(positions, counts, sources=sources, tail=tail)
        # Its time is also that of the hops before it.
        self._sent.append((step, _Sent(trio.current_time(), work(sum(counts), max(positions)), telling=False)))

    async def supply(
        self,
        index: int,
        positions: tuple[int, ...],
        counts: tuple[int, ...],
        packed: Packed,
        *,
        tail: int = -1,
        sources: tuple[int, ...] = (),
    ) -> None:
        """Send a step of a past epoch (again): the one whose answer is fetched after ``index`` others.

        Perhaps a neighbour should have pushed it, or did; perhaps it was ours, but for a server that pushed.
        """
        await self._take_turn()
        try:
            step = self._sent[index][0]
            if step in self._answers:
                return
            if self._wire.phase is not HopPhase.READY:
                self._refusal = PeerLost("its stream was lost before the step")
                return
            like = Step(self.session, 0, step, positions, counts, packed.tensor, sources, tail)
            message = self._wire.supply(step, packed.tensor, packed.payload, like)
            await self._current.send(message, packed.payload)
        except PeerLost as exc:
            log.debug("step to %s was not sent: %s", self.peer_id, exc)
        finally:
            self._sending.release()

    async def watch(self) -> None:
        """Wait for whatever goes wrong while nothing is under way; cancel it when something is.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault, Unpushed: as ``receive``.
        """
        while True:
            await self._until(Answered, math.inf)

    async def receive(self, *, mend: bool = True) -> Packed:
        """The answer to the oldest step whose answer was not fetched yet.

        Args:
            mend: replace a broken stream, wait when the server is full, which is no failure, as long as we have
                patience; otherwise that is raised at once.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed; say so and find another one.
            Unpushed: the server cannot push.
        """
        client = self._config.client
        last = trio.current_time() + max(client.step_timeout_s, client.patience_s)
        while True:
            if self._sent and (packed := self._answers.pop(self._sent[0][0], None)) is not None:
                self._sent.popleft()
                return packed
            if self._refusal is not None:
                raise self._refusal
            size = self._sent[0][1].work if self._sent else math.inf
            now = trio.current_time()
            deadline = now + self._peers.step_timeout_s(self.peer_id, size)
            more_s = partial(self._more_s, now + client.step_timeout_s, deadline - now)
            if mend:
                await self._take(last, deadline, more_s)
            else:
                await self._until(Answered, deadline, more_s)

    def _more_s(self, last: float, timeout_s: float) -> float:
        """How much longer to wait for a server: while it answers other steps of ours it is at work."""
        return min(last, self._peers.answered_at(self.peer_id) + timeout_s) - trio.current_time()

    async def _take(self, last: float, deadline: float, more_s: Callable[[], float]) -> None:
        """Wait for an answer until ``deadline``; what can be mended is, until ``last``."""
        try:
            await self._until(Answered, deadline, more_s)
        except Unpushed:
            log.debug("server %s cannot push, and need not", self.peer_id)
        except PeerSilent:
            raise
        except PeerLost as exc:
            await self._reattach(exc)
        except Overloaded as busy:
            await self._repeat_later(busy, last)

    def _asked(self, step: int, positions: tuple[int, ...], tokens: int) -> None:
        telling = not self._sent and tokens <= MEASURED_TOKENS_MAX
        self._sent.append((step, _Sent(trio.current_time(), work(tokens, max(positions)), telling)))

    def _answered(self, event: Answered) -> None:
        answer = event.answer
        self._broken_in_a_row = 0
        self._answers[answer.step] = Packed(answer.tensor, event.payload)
        sent = next((s for step, s in self._sent if step == answer.step), None)
        if sent is None:
            return
        now = trio.current_time()
        wall_s = now - sent.at
        # Of steps under way together each began when the one before it was done.
        self._peers.took(self.peer_id, sent.work, now - max(sent.at, self._answered_at), now)
        self._answered_at = now
        if sent.telling:
            spent_s, blocks = answer.compute_s, len(self.span)
            self._peers.answered(self.peer_id, wall_s=wall_s, compute_s=spent_s, blocks=blocks, now=now)
