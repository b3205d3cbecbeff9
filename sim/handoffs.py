"""Generations whose hand-offs fail with some probability: the production node, its baselines, and the paper's own.

A hand-off is a step's activations on their way to a stage, or the last stage's output on its way to the client. When it
fails, its stage's process is gone with its caches; others notice a moment later, and another spare comes up. That holds
for replays, too. Four stages with a spare each; a block of the toy stands for the blocks of a stage.

Invariants: a play follows from its job alone. Every text is compared with the undisturbed one.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import trio

from p2pllm.config import Config
from p2pllm.errors import RemoteProtocolError
from p2pllm.wire.frame import MessageReader
from p2pllm.wire.messages import Answer, Step
from sim.compute import SimCompute
from sim.cost import FailureSetup
from sim.run import run
from sim.swarm import SimClient, SimServer, SimSwarm, open_swarm
from sim.toy import ToyModel
from sim.trial import hushed
from sim.world import TappedStream

STAGES = 4
ONE_SHOT = FailureSetup(spans=(1,) * STAGES)
"""What we do: a replay is one prefill of the stage that was lost."""
PUBLISHED = FailureSetup.published((1,) * STAGES)
"""What the paper's cells fit: a replay goes through the stage token by token."""
PROMPT = (7,)

Replay = Literal["one shot", "published"]
SETUPS: dict[Replay, FailureSetup] = {"one shot": ONE_SHOT, "published": PUBLISHED}


@dataclass(frozen=True, slots=True)
class Job:
    """One generation to play."""

    replay: Replay
    tokens: int
    failure: float
    seed: int = 0

    def chance(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.tokens}/{self.failure}")


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it.

    Attributes:
        steps_per_s: after the first token.
        failures: of hand-offs.
        right: the tokens are the undisturbed ones.
    """

    steps_per_s: float
    failures: int
    right: bool
    trace: str


class HandOffs:
    """Lets hand-offs of a swarm fail, and kills their stages, or only counts."""

    def __init__(self, swarm: SimSwarm, setup: FailureSetup, failure: float, rng: random.Random, kill: bool) -> None:
        self.failures = 0
        self.seen: list[bool] = []
        """Per message, whether it was a hand-off; kept where nothing can fail."""
        self._swarm = swarm
        self._setup = setup
        self._failure = failure
        self._rng = rng
        self._kill = kill
        self._doomed: set[str] = set()
        swarm.world.tap = self._message

    def _message(self, stream: TappedStream, data: bytes) -> bytes:
        if not self._failure:
            self.seen.append(self._stage(*stream.ends, data) is not None)
        elif self._rng.random() < self._failure:
            victim = self._stage(*stream.ends, data)
            if victim is not None and victim.name not in self._doomed:
                self.failures += 1
                if self._kill:
                    self._doomed.add(victim.name)
                    self._lose(victim)
                    self._swarm.world.nursery.start_soon(self._replace, victim)
        return data

    def _stage(self, source: str, target: str, data: bytes) -> SimServer | None:
        """Whose hand-off this message is: a step to a server, or an answer of the last one; None: neither."""
        try:
            message = next(iter(MessageReader().feed(data)))[0]
        except (RemoteProtocolError, StopIteration):
            return None
        servers = self._swarm.servers
        if isinstance(message, Step):
            return servers[target]
        if isinstance(message, Answer) and source in servers and servers[source].span.end == STAGES:
            return servers[source]
        return None

    def _lose(self, victim: SimServer) -> None:
        """The process ends now, and the news of it travels for as long as noticing takes."""
        world = self._swarm.world
        for other in victim.network.connected():
            world.set_latency(victim.name, other.name, self._setup.noticed_s)
        world.kill(victim.name)

    async def _replace(self, victim: SimServer) -> None:
        """A new spare at once; later the victim's record is gone, too."""
        await self._swarm.add(f"{victim.name}'", victim.span)
        await trio.sleep(self._setup.noticed_s / 2)
        for other in self._swarm.world.hosts:
            self._swarm.world.set_latency(victim.name, other, self._setup.handoff_s)
        await trio.sleep(self._setup.noticed_s / 2)
        self._swarm.withdraw(victim)


def config_of(context: int) -> Config:
    """What users get, but a replay is one prefill, in one message and one pass, as the cost models want it."""
    base = Config()
    server = replace(
        base.server, cache_tokens=2 * context, prefill_chunk_tokens=context, batch_tokens_max=context,
        pass_target_s=60.0,
    )  # fmt: skip
    client = replace(base.client, prefill_chunk_tokens=context, activations="fp32", step_timeout_s=600.0)
    return replace(base, server=server, client=client)


_toys: dict[int, ToyModel] = {}
_undisturbed: dict[tuple[Replay, int], tuple[Played, list[int], list[bool]]] = {}


def toy(context: int) -> ToyModel:
    """One for each length in every process: its tables are large."""
    if context not in _toys:
        _toys[context] = ToyModel(STAGES, context)
    return _toys[context]


@asynccontextmanager
async def opened(setup: FailureSetup, tokens: int) -> AsyncIterator[tuple[SimSwarm, SimClient]]:
    """Four stages, a spare each, and a client."""
    context = tokens + 8
    spans = [(stage, stage + 1) for stage in range(STAGES)] * 2
    cost = setup.cost_model()
    opening = open_swarm(
        toy(context), spans, config_of(context), latency_s=setup.handoff_s, compute=lambda: SimCompute(cost)
    )
    async with opening as swarm, swarm.client() as client:
        yield swarm, client


def played(job: Job) -> Played:
    """A generation of the production node, in virtual time, and compared with the undisturbed one."""
    with hushed():
        key = job.replay, job.tokens
        if key not in _undisturbed:
            _undisturbed[key] = run(lambda: _generate(replace(job, failure=0.0, seed=0)))
        without, expected, handoffs = _undisturbed[key]
        rng = job.chance()
        if not any(rng.random() < job.failure and mattered for mattered in handoffs):
            return without  # none of its hand-offs would fail: it is the undisturbed run, message by message
        found, new, _ = run(lambda: _generate(job))
        return replace(found, right=new == expected)


async def _generate(job: Job) -> tuple[Played, list[int], list[bool]]:
    """How fast it was, its tokens, and which of its messages were hand-offs."""
    setup = SETUPS[job.replay]
    async with opened(setup, job.tokens) as (swarm, client):
        faults = HandOffs(swarm, setup, job.failure, job.chance(), kill=True)
        result = await client.model.generate([list(PROMPT)], max_new_tokens=job.tokens, ignore_eos=True)
        swarm.world.tap = None
        found = Played(result.steps_per_s, faults.failures, True, swarm.world.trace_hash())
        return found, list(result.new_ids[0]), faults.seen


# -- the baselines, on the same node ---------------------------------------------------------------------------------


def restarted(job: Job) -> Played:
    """Plain caching: whenever a hand-off fails, the generation is given up after that step, and begun anew."""
    with hushed():
        return run(lambda: _restarted(job))


async def _restarted(job: Job) -> Played:
    async with opened(ONE_SHOT, job.tokens) as (swarm, client):
        faults = HandOffs(swarm, ONE_SHOT, job.failure, job.chance(), kill=False)
        began, done = trio.current_time(), 0
        while done < job.tokens:
            before, done = faults.failures, 0
            stream = client.model.stream([list(PROMPT)], max_new_tokens=job.tokens, ignore_eos=True)
            async with stream:
                async for piece in stream:
                    done += len(piece.ids)
                    if faults.failures > before:
                        done = 0
                        break
        took_s = trio.current_time() - began
        swarm.world.tap = None
        return Played(job.tokens / took_s, faults.failures, True, swarm.world.trace_hash())


def cacheless(tokens: int, every: int = 1) -> Played:
    """Inference without caches: every token is a pass of the whole prefix; only each ``every``-th of them is played."""
    with hushed():
        return run(lambda: _cacheless(tokens, every))


async def _cacheless(tokens: int, every: int) -> Played:
    async with opened(ONE_SHOT, tokens) as (swarm, client):
        began = trio.current_time()
        lengths = range(every // 2 + 1, tokens + 1, every)
        for length in lengths:
            await client.model.forward(torch.ones(1, length, dtype=torch.long))
        return Played(len(lengths) / (trio.current_time() - began), 0, True, swarm.world.trace_hash())
