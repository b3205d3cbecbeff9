"""Which waiting jobs form the next pass through the device.

Invariants: pure; time and tensors are elsewhere. Jobs of one lane (a session) run in the order in which they came, one
per pass. Somebody's next token goes before anybody's prefill, prefill before forwards of whole sequences, those before
backwards; but who was passed over often enough rides along, so nothing starves. Within a kind the peer that was served
the fewest tokens is next. Long steps are cut into chunks, so a pass stays short and next tokens get in between; a job
without cache is cut between its rows only, because a row of it has to be seen whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from p2pllm.types import PeerId, WorkKind

INTERACTIVE_TOKENS_MAX = 8
"""A step with at most so many new tokens per row is somebody's next token (or a speculated few), not a prefill."""

PATIENCE_PASSES = {WorkKind.PREFILL: 4, WorkKind.FORWARD: 16, WorkKind.BACKWARD: 16}
"""After so many passes without it, a waiting kind rides along with the steps."""

WHOLE_ROWS = (WorkKind.FORWARD, WorkKind.BACKWARD)
"""Without a cache, a row is seen whole or not at all."""

CHUNK_TOKENS_MIN = 64
"""Smaller chunks would read all the weights for too few tokens."""


def kind_of_step(counts: tuple[int, ...]) -> WorkKind:
    """Whether a session's step is interactive or a prefill."""
    return WorkKind.STEP if max(counts) <= INTERACTIVE_TOKENS_MAX else WorkKind.PREFILL


def chunk_for(tokens_per_s: float, target_s: float, limit: int) -> int:
    """Prefill tokens per pass, so that a pass takes about ``target_s`` on this device (0 tokens/s: not known yet)."""
    if tokens_per_s <= 0:
        return limit
    return max(min(CHUNK_TOKENS_MIN, limit), min(limit, int(tokens_per_s * target_s)))


@dataclass(eq=False, slots=True)
class Job:
    """Work that waits for the device.

    Attributes:
        lane: jobs of one lane depend on one another, in order.
        counts: new tokens per row.
        taken: tokens that earlier passes have taken.
    """

    peer: PeerId
    lane: Hashable
    kind: WorkKind
    counts: tuple[int, ...]
    tokens: int = field(init=False)
    taken: int = field(init=False, default=0)
    order: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.tokens = sum(self.counts)


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens ``[start, stop)`` of a job, counted over its rows one after the other."""

    job: Job
    start: int
    stop: int

    @property
    def first(self) -> bool:
        return self.start == 0

    @property
    def last(self) -> bool:
        return self.stop == self.job.tokens


def row_parts(counts: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The rows that tokens ``[start, stop)`` touch: (row, first token within the row, how many)."""
    at = 0
    for row, count in enumerate(counts):
        begin, end = max(start, at), min(stop, at + count)
        if begin < end:
            yield row, begin - at, end - begin
        at += count


@dataclass(slots=True)
class Scheduler:
    """The line before one device.

    Attributes:
        batch_tokens: tokens of one pass.
        chunk_tokens: at most so many of them are prefill or forward; the engine adapts it to the device.
    """

    batch_tokens: int
    chunk_tokens: int
    _lanes: dict[Hashable, deque[Job]] = field(init=False, default_factory=dict)
    _served: dict[PeerId, int] = field(init=False, default_factory=dict)
    """Tokens that a peer was served, on a common scale: whoever comes back starts where the line is now."""
    _level: int = field(init=False, default=0)
    _skipped: dict[WorkKind, int] = field(init=False, default_factory=lambda: dict.fromkeys(PATIENCE_PASSES, 0))
    _count: int = field(init=False, default=0)
    waiting: int = field(init=False, default=0)
    """Jobs that are not wholly taken."""

    def add(self, job: Job) -> None:
        """Let ``job`` wait for its turn. Jobs without tokens are legal; they take a pass like any other."""
        self._count += 1
        job.order = self._count
        self._served[job.peer] = max(self._served.get(job.peer, 0), self._level)
        self._lanes.setdefault(job.lane, deque()).append(job)
        self.waiting += 1

    def discard(self, lane: Hashable) -> list[Job]:
        """Forget a lane; returns the jobs that were not wholly taken."""
        jobs = list(self._lanes.pop(lane, ()))
        self.waiting -= len(jobs)
        return jobs

    def next_batch(self) -> list[Slice]:
        """The next pass; empty when nothing waits."""
        heads: dict[WorkKind, list[Job]] = {}
        for jobs in self._lanes.values():
            heads.setdefault(jobs[0].kind, []).append(jobs[0])
        starving = [k for k, patience in PATIENCE_PASSES.items() if heads.get(k) and self._skipped[k] >= patience]
        kept = min(self.chunk_tokens, self.batch_tokens // 2) if starving else 0
        batch = self._take(heads.get(WorkKind.STEP, []), self.batch_tokens - kept)
        for kind in PATIENCE_PASSES:
            took = []
            if kind in starving or not batch:
                room = min(self.chunk_tokens, self.batch_tokens - sum(s.stop - s.start for s in batch))
                took = self._take(heads.get(kind, []), room) if room > 0 else []
            self._skipped[kind] = self._skipped[kind] + 1 if heads.get(kind) and not took else 0
            batch += took
        if not self.waiting:
            self._served.clear()
            self._level = 0
        return batch

    def _take(self, heads: list[Job], room: int) -> list[Slice]:
        """Fill ``room`` with jobs of one kind; the first one is always served, cut if it is longer than the room."""
        slices: list[Slice] = []
        line = [(self._served[job.peer], job.order, job) for job in heads]
        heapify(line)
        while line:
            served, order, job = heappop(line)
            if served < self._served[job.peer]:  # the same peer was served meanwhile: back into the line
                heappush(line, (self._served[job.peer], order, job))
                continue
            stop = self._cut(job, room)
            tokens = stop - job.taken
            cut_step = job.kind is WorkKind.STEP and stop < job.tokens
            if slices and (tokens > room or room <= 0 or cut_step):
                continue
            slices.append(Slice(job, job.taken, stop))
            self._level = max(self._level, served)
            self._served[job.peer] = served + max(1, tokens)
            room -= tokens
            job.taken = stop
            if stop == job.tokens:
                self._finish(job)
        return slices

    def _cut(self, job: Job, room: int) -> int:
        """Where a slice that begins at ``job.taken`` ends: within ``room``, but never nowhere."""
        if job.kind not in WHOLE_ROWS:
            return min(job.tokens, job.taken + max(room, 0))
        at, stop = 0, job.taken
        for count in job.counts:
            at += count
            if at > job.taken and (stop == job.taken or at <= job.taken + room):
                stop = at
        return stop

    def _finish(self, job: Job) -> None:
        jobs = self._lanes[job.lane]
        jobs.popleft()
        self.waiting -= 1
        if not jobs:
            del self._lanes[job.lane]
