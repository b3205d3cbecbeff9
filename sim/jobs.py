"""One job of a user: what was asked, what came, when, and whether that is what the model without a swarm gives.

Invariants: a job's answer is kept whole, so that it can be held against the expected one when the run is over. What
the job looked up behind the client's curtain (codec points, recoveries) changes nothing there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.client.session import Session
from p2pllm.types import PeerId
from sim.expected import Expected

JobKind = Literal["generate", "forward", "session"]
State = Literal["running", "done", "failed", "late", "cut"]
"""``failed``: by an error that the client raised; ``late``: given up; ``cut``: its client died."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked.

    Attributes:
        rows: token ids; of a session all that will be fed, the prompt first.
        new_tokens: to generate, or steps of a session.
    """

    kind: JobKind
    rows: tuple[tuple[int, ...], ...]
    prompt_tokens: int
    new_tokens: int
    pause_s: float = 0.0


class Logits:
    """All logits of a row, to the last bit, as a hash."""

    def __init__(self) -> None:
        self.tokens = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, logits: torch.Tensor) -> Logits:
        """What follows: [n, vocab]."""
        self.tokens += len(logits)
        self._hash.update(logits.float().contiguous().numpy().tobytes())
        return self

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@dataclass(eq=False)
class Job:
    """A job and what became of it.

    Attributes:
        first_s: when the first token, or the first answer, was there.
        tokens: what was generated so far, per row.
        logits: of forwards and sessions, per row: a running hash of all that came, and of how many tokens they are.
        steps: answers after the first one.
        codec, points: how and where the session rounded; points None: not known.
        servers: everybody who took part.
    """

    workload: str
    number: int
    ask: Ask
    client: str
    began_s: float
    state: State = "running"
    error: str = ""
    first_s: float | None = None
    ended_s: float | None = None
    tokens: list[list[int]] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)
    steps: int = 0
    paused_s: float = 0.0
    recoveries: int = 0
    codec: str = ""
    points: tuple[int, ...] | None = None
    servers: dict[PeerId, None] = field(default_factory=dict)
    over: trio.Event = field(default_factory=trio.Event)

    def __str__(self) -> str:
        return f"{self.workload}/{self.number}"

    def end(self, state: State, error: str = "") -> None:
        """It is over; the first word counts."""
        if self.state == "running":
            self.state, self.error, self.ended_s = state, error, trio.current_time()
            self.over.set()

    def answered(self) -> None:
        """An answer came."""
        if self.first_s is None:
            self.first_s = trio.current_time()
        else:
            self.steps += 1

    @property
    def tokens_done(self) -> int:
        """Tokens that came out: new ones of generations, those whose logits came otherwise."""
        return sum(map(len, self.tokens)) + sum(row.tokens for row in self.logits)

    @property
    def first_token_s(self) -> float | None:
        """Seconds to the first answer."""
        return None if self.first_s is None else self.first_s - self.began_s

    @property
    def steps_per_s(self) -> float | None:
        """Answers after the first one, by the time that they took, pauses aside."""
        if self.first_s is None or self.ended_s is None or not self.steps:
            return None
        took_s = self.ended_s - self.first_s - self.paused_s
        return self.steps / took_s if took_s > 0 else None


async def perform(job: Job, model: RemoteModel) -> None:
    """Do what is asked; raises as the client does."""
    job.codec = model._context.codec(None)
    match job.ask.kind:
        case "generate":
            await _generate(job, model)
        case "forward":
            await _forward(job, model)
        case _:
            await _step(job, model)


async def _generate(job: Job, model: RemoteModel) -> None:
    ask = job.ask
    job.tokens = [[] for _ in ask.rows]
    generation = model.stream([list(row) for row in ask.rows], max_new_tokens=ask.new_tokens, ignore_eos=True)
    seen = 0
    try:
        async with generation:
            async for piece in generation:
                job.tokens[piece.row] += piece.ids
                seen += 1
                if seen % len(ask.rows) == 0:
                    job.answered()
                _note(job, generation._session)
    finally:
        _note(job, generation._session)


async def _forward(job: Job, model: RemoteModel) -> None:
    answer = await model.forward(torch.tensor(job.ask.rows))
    job.logits = [Logits().add(row) for row in answer]
    job.answered()


async def _step(job: Job, model: RemoteModel) -> None:
    ask = job.ask
    ids = torch.tensor(ask.rows)
    job.logits = [Logits() for _ in ask.rows]
    async with model.session(max_length=ids.shape[1]) as session:
        try:
            for first, last in _steps(ask):
                for logits, row in zip(job.logits, await session.step(ids[:, first:last]), strict=True):
                    logits.add(row)
                job.answered()
                _note(job, session)
                if ask.pause_s and last < ids.shape[1]:
                    job.paused_s += ask.pause_s
                    await trio.sleep(ask.pause_s)
        finally:
            _note(job, session)


def _steps(ask: Ask) -> list[tuple[int, int]]:
    """The prompt, then token by token."""
    total = ask.prompt_tokens + ask.new_tokens
    return [(0, ask.prompt_tokens), *((at, at + 1) for at in range(ask.prompt_tokens, total))]


def _note(job: Job, session: Session) -> None:
    job.recoveries = session.recoveries
    job.servers.update(dict.fromkeys(hop.peer_id for hop in session.route))
    if session._live is not None:
        job.points = session._live.chain.terms.codec_points


def right(job: Job, expected: Expected) -> bool | None:
    """Whether all that came is what the model gives; None: nothing came, or nobody can tell."""
    if not job.tokens_done or not (expected.lossless(job.codec) or job.points is not None):
        return None
    points = job.points or ()
    for row, tokens in zip(job.ask.rows, job.tokens, strict=False):
        if expected.greedy(row, len(tokens), job.codec, points) != tokens:
            return False
    for row, logits in zip(job.ask.rows, job.logits, strict=False):
        whole = Logits().add(expected.logits(row[: logits.tokens], job.codec, points)) if logits.tokens else Logits()
        if whole.hexdigest() != logits.hexdigest():
            return False
    return True
