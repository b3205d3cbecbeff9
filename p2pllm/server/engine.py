"""The device's only customer: takes waiting work, forms passes, wakes whoever asked.

Invariants: one pass at a time. A pass that has begun is never cancelled, and the pages that it uses stay pinned until
it ends. Every task that entered gets an outcome: a result, a fault, or "given up". A pass that fails is repeated task
by task, so that one task cannot fail those it shared a pass with.

A task that finds the device idle runs its pass itself: from the arrival of a step to its answer the loop then switches
tasks only for the device. Whatever is left when a pass ends goes to the engine's own task, so that the device never
waits for somebody's answer to be sent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from p2pllm.config import ServerConfig
from p2pllm.errors import Overloaded, P2PLLMError, ServerFault, SessionGone
from p2pllm.ports import Compute
from p2pllm.server.kvcache import Reservation
from p2pllm.server.room import CacheRoom
from p2pllm.server.scheduler import CHUNK_TOKENS_MIN, Job, Scheduler, Slice, chunk_for
from p2pllm.types import Cost, PeerId, WorkKind

log = logging.getLogger(__name__)

PASS_ERRORS = (
    RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, MemoryError, OSError,
)  # fmt: skip
"""Whatever torch or a bug of ours can raise in a pass: it fails those tasks, never the server."""


@dataclass(eq=False, slots=True)
class Task(Job):
    """A job on its way through the engine; backends add what they need to compute it.

    Attributes:
        reservation: cache pages that the passes of this task use.
        error: why there is no result: P2PLLMError by whose fault it is.
        finished: there is a result or an error.
        queue_s: seconds from its submission to its first pass.
        compute_s: device seconds of the passes that it was part of.
        on_finish: called at that moment, in the loop, before anything behind it in its lane is given up.
        withdrawn: its owner does not want the result any more.
    """

    reservation: Reservation | None = None
    error: P2PLLMError | None = None
    finished: bool = False
    queue_s: float = 0.0
    compute_s: float = 0.0
    submitted_s: float = 0.0
    on_finish: Callable[[], None] | None = field(default=None, repr=False)
    withdrawn: bool = False
    waiter: trio.Event | None = field(default=None, repr=False)

    @property
    def bytes_held(self) -> int:
        """Bytes that waiting costs."""
        return 0


class Backend(Protocol):
    """Computes slices of tasks on one device."""

    def run(self, batch: Sequence[Slice]) -> None:
        """Compute a pass, in the device's thread. Faults of single tasks go to their ``error``.

        Raises:
            RuntimeError, MemoryError, ...: the pass failed as a whole; it may be run again.
        """
        ...

    def cost(self, batch: Sequence[Slice]) -> Cost: ...


class Engine:
    """The line before one device, and the passes through it."""

    def __init__(
        self, backend: Backend, compute: Compute, room: CacheRoom, config: ServerConfig, device: str = "cpu"
    ) -> None:
        self._backend = backend
        self._compute = compute
        self._room = room
        self._config = config
        self._devices = (device,)
        self._scheduler = Scheduler(config.batch_tokens_max, config.prefill_chunk_tokens)
        self._tokens_per_s = 0.0
        self._busy = False
        self._more = trio.Event()
        self._held: Counter[PeerId] = Counter()
        self._bytes_held: Counter[PeerId] = Counter()
        self.bytes_waiting = 0
        self.passes = 0
        self.step_s = 0.0
        """Seconds of a single token in one block, as live traffic shows it; 0: not known."""

    @property
    def waiting(self) -> int:
        """Tasks that wait for their (next) pass."""
        return self._scheduler.waiting

    def refuse(self, task: Task) -> Overloaded | None:
        """Why ``task`` cannot wait here now: too many do; None: it can."""
        if self._scheduler.waiting >= self._config.queue_max:
            return Overloaded(f"{self._scheduler.waiting} steps wait already", self._config.busy_retry_s)
        if self.bytes_waiting + task.bytes_held > self._config.queue_bytes_max:
            return Overloaded(f"{self.bytes_waiting} bytes of steps wait already", self._config.busy_retry_s)
        jobs, held = self._held[task.peer], self._bytes_held[task.peer]
        if jobs >= self._config.queue_per_peer_max or held + task.bytes_held > self._config.queue_bytes_per_peer_max:
            return Overloaded(f"{jobs} steps of yours ({held} bytes) wait already", self._config.busy_retry_s)
        return None

    def submit(self, task: Task) -> None:
        """Let ``task`` stand in line; somebody has to ``wait`` for it soon."""
        task.submitted_s = trio.current_time()
        self._scheduler.add(task)
        self.bytes_waiting += task.bytes_held
        self._held[task.peer] += 1
        self._bytes_held[task.peer] += task.bytes_held

    async def run(self, task: Task) -> None:
        """``submit`` and ``wait``."""
        self.submit(task)
        await self.wait(task)

    async def wait(self, task: Task) -> None:
        """Until ``task`` has its result or its error. Cancelling gives up its whole lane."""
        try:
            if not self._busy and not task.finished:
                await self._run_pass()
            if not task.finished:
                task.waiter = trio.Event()
                await task.waiter.wait()
        finally:
            if not task.finished:
                self.discard(task.lane)

    def discard(self, lane: Hashable) -> None:
        """Give up what still waits in a lane; a pass in flight ends on its own, and pins what it uses until then."""
        for job in self._scheduler.discard(lane):
            assert isinstance(job, Task)
            job.error = job.error or SessionGone("the work was given up before it was computed")
            self._finish(job)

    async def serve(self) -> None:
        """Run passes for as long as work waits and nobody else does; for ever."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._scheduler.waiting and not self._busy:
                await self._run_pass()

    async def _run_pass(self) -> None:
        batch = self._scheduler.next_batch()
        pinned = [r for s in batch if (r := _task(s).reservation) is not None]
        now = trio.current_time()
        for part in batch:
            if part.first:
                _task(part).queue_s = now - _task(part).submitted_s
        self._busy = True
        for reservation in pinned:
            self._room.pin(reservation)
        try:
            # The pass belongs to everybody in it: whoever happens to run it may not take the answers along.
            with trio.CancelScope(shield=True):
                await self._compute_batch(batch)
        finally:
            self._busy = False
            for reservation in pinned:
                self._room.unpin(reservation)
            for part in batch:
                if part.last or _task(part).error is not None:
                    self._finish(_task(part))
            if self._scheduler.waiting:
                self._more.set()

    async def _compute_batch(self, batch: list[Slice]) -> None:
        try:
            await self._compute_pass(batch)
        except PASS_ERRORS as exc:
            log.exception("a pass of %d tasks failed", len(batch))
            if len(batch) == 1:
                _task(batch[0]).error = ServerFault(f"computing failed: {type(exc).__name__}")
            else:
                for part in batch:
                    await self._compute_batch([part])

    async def _compute_pass(self, batch: list[Slice]) -> None:
        work, cost = partial(self._backend.run, batch), self._backend.cost(batch)
        _, seconds = await self._compute.run(work, cost, self._devices)
        self.passes += 1
        for part in batch:
            _task(part).compute_s += seconds
        self._learn(cost, seconds)

    def _learn(self, cost: Cost, seconds: float) -> None:
        """What this pass says of the device: single steps for the announcement, long passes for the chunks."""
        if seconds <= 0:
            return
        if cost.kind is WorkKind.STEP and cost.tokens == 1 and cost.blocks:
            self.step_s = _smoothed(self.step_s, seconds / cost.blocks)
        elif cost.kind in (WorkKind.PREFILL, WorkKind.FORWARD) and cost.tokens >= CHUNK_TOKENS_MIN:
            self._tokens_per_s = _smoothed(self._tokens_per_s, cost.tokens / seconds)
            limit = self._config.prefill_chunk_tokens
            self._scheduler.chunk_tokens = chunk_for(self._tokens_per_s, self._config.pass_target_s, limit)

    def _finish(self, task: Task) -> None:
        if task.finished:
            return
        task.finished = True
        self.bytes_waiting -= task.bytes_held
        self._held[task.peer] -= 1
        self._bytes_held[task.peer] -= task.bytes_held
        if not self._held[task.peer]:
            del self._held[task.peer], self._bytes_held[task.peer]
        if task.on_finish is not None:
            task.on_finish()
        if task.error is not None:
            # What follows in the lane, and the rest of a long task, would be computed on garbage.
            self.discard(task.lane)
        if task.waiter is not None:
            task.waiter.set()


def _smoothed(known: float, new: float) -> float:
    """A running mean that forgets; 0: nothing known yet."""
    return new if not known else 0.7 * known + 0.3 * new


def _task(part: Slice) -> Task:
    assert isinstance(part.job, Task)
    return part.job
