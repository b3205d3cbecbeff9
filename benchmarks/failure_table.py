"""The paper's failure table: plain caching with restarts, cache-less inference, and ours, in virtual time.

Part of ``benchmarks.failover``. The baselines are formulas (``sim.cost``), the first of them also played. Ours is the
production client and production servers in the simulator: four stages with a spare each, hand-offs of a millisecond. A
hand-off fails with a given probability: its stage's process is gone with its caches, which others notice 0.5 s later,
and another spare comes up. That holds for replays, too.

Every generation's tokens are compared with those of the toy model in one piece.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import trio

from benchmarks.common import show
from p2pllm.config import Config
from p2pllm.errors import RemoteProtocolError
from p2pllm.wire.frame import MessageReader
from p2pllm.wire.messages import Answer, Step
from sim.compute import SimCompute
from sim.cost import PAPER_FAILURES, FailureSetup
from sim.run import run
from sim.stream import SimStream
from sim.swarm import SimServer, SimSwarm, open_swarm
from sim.toy import ToyModel

STAGES = 4
SETUP = FailureSetup(spans=(1,) * STAGES)
"""One block of the toy stands for the blocks of one stage."""
LENGTHS = (128, 1024)
RATES = (0.0, 1e-4, 1e-3, 1e-2)
PROMPT = (7,)
CONTEXT = max(LENGTHS) + 8
KEPT_GOALS = {(128, 1e-3): 0.95, (1024, 1e-3): 0.92}
TRIALS = 200
"""Of restarts, where they are played; fewer where they take long."""
TRIAL_STEPS_MAX = 200_000
PLAYED_STEPS_MAX = 700_000


@dataclass(frozen=True, slots=True)
class Run:
    """One generation.

    Attributes:
        steps_per_s: after the first token.
        failures: of hand-offs.
        right: the tokens are those of the model in one piece.
    """

    steps_per_s: float
    failures: int
    right: bool


Runs = dict[tuple[int, float], list[Run]]
"""By tokens and failure rate."""


class HandOffs:
    """Lets hand-offs of a swarm fail."""

    def __init__(self, swarm: SimSwarm, failure: float, rng: random.Random) -> None:
        self.failures = 0
        self.seen: list[bool] = []
        """Per message, whether it was a hand-off; kept where nothing can fail."""
        self._swarm = swarm
        self._failure = failure
        self._rng = rng
        self._doomed: set[str] = set()
        swarm.world.tap = self._message

    def _message(self, stream: SimStream, data: bytes) -> bytes:
        if not self._failure:
            self.seen.append(self._stage(*stream.ends, data) is not None)
        elif self._rng.random() < self._failure:
            victim = self._stage(*stream.ends, data)
            if victim is not None and victim.name not in self._doomed:
                self.failures += 1
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
            world.set_latency(victim.name, other.name, SETUP.noticed_s)
        world.kill(victim.name)

    async def _replace(self, victim: SimServer) -> None:
        """A new spare at once; later the victim's record is gone, too."""
        await self._swarm.add(f"{victim.name}'", victim.span)
        await trio.sleep(SETUP.noticed_s / 2)
        for other in self._swarm.world.hosts:
            self._swarm.world.set_latency(victim.name, other, SETUP.handoff_s)
        await trio.sleep(SETUP.noticed_s / 2)
        self._swarm.withdraw(victim)


def config() -> Config:
    """What users get, but a replay is one prefill, in one message and one pass, as the cost model wants it."""
    base = Config()
    server = replace(
        base.server,
        cache_tokens=2 * CONTEXT,
        prefill_chunk_tokens=CONTEXT,
        batch_tokens_max=CONTEXT,
        pass_target_s=60.0,
    )
    return replace(base, server=server, client=replace(base.client, prefill_chunk_tokens=CONTEXT, activations="fp32"))


_toys: list[ToyModel] = []
_undisturbed: dict[int, tuple[Run, list[int], list[bool]]] = {}


def toy() -> ToyModel:
    """One per process."""
    if not _toys:
        _toys.append(ToyModel(STAGES, CONTEXT))
    return _toys[0]


async def generate(tokens: int, failure: float, seed: int) -> tuple[Run, list[int], list[bool]]:
    """One generation of ours: how fast, its tokens, and which of its messages were hand-offs."""
    spans = [(stage, stage + 1) for stage in range(STAGES)] * 2
    opening = open_swarm(
        toy(), spans, config(), latency_s=SETUP.handoff_s, compute=lambda: SimCompute(SETUP.cost_model())
    )
    async with opening as swarm, swarm.client() as client:
        faults = HandOffs(swarm, failure, chance(tokens, failure, seed))
        result = await client.model.generate([list(PROMPT)], max_new_tokens=tokens, ignore_eos=True)
        swarm.world.tap = None
        return Run(result.steps_per_s, faults.failures, True), list(result.new_ids[0]), faults.seen


def chance(tokens: int, failure: float, seed: int) -> random.Random:
    return random.Random(f"{seed}/{tokens}/{failure}")


def played(tokens: int, failure: float, seed: int) -> Run:
    """The same, in virtual time, and compared with the undisturbed one."""
    for name in ("p2pllm", "sim"):  # failures are expected here
        logging.getLogger(name).setLevel(logging.ERROR)
    if tokens not in _undisturbed:
        _undisturbed[tokens] = run(lambda: generate(tokens, 0.0, 0))
    without, expected, handoffs = _undisturbed[tokens]
    rng = chance(tokens, failure, seed)
    if not any(rng.random() < failure and mattered for mattered in handoffs):
        return without  # none of its hand-offs would fail: it is the undisturbed run, message by message
    outcome, new, _ = run(lambda: generate(tokens, failure, seed))
    return replace(outcome, right=new == expected)


def ours(seeds: int) -> Runs:
    """All cells, by tokens and failure rate; a single run where nothing fails, as it is the same every time."""
    cells = [(tokens, rate) for tokens in LENGTHS for rate in RATES]
    jobs = [(*cell, seed) for cell in cells for seed in range(seeds if cell[1] else 1)]
    jobs.sort(key=lambda job: (-job[0], -job[1]))  # the longest first, so that no process ends up alone with them
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(played, *zip(*jobs, strict=True), chunksize=1))
    return {cell: [found for job, found in zip(jobs, runs, strict=True) if job[:2] == cell] for cell in cells}


def measure(seeds: int) -> dict[str, Any]:
    """The whole table, and what it has to show."""
    runs = ours(seeds)
    results: dict[str, Any] = {"seeds": seeds, "rows": [], "played": [], "kept": []}
    for tokens in LENGTHS:
        for name, paper in PAPER_FAILURES.items():
            row: dict[str, Any] = {"tokens": tokens, "algorithm": name}
            for failure in RATES:
                row[f"{failure:g}"] = cell(rate_of(name, tokens, failure, runs), *paper[tokens, failure])
            results["rows"].append(row)
        results["kept"] += [kept(runs, tokens, failure) for failure in RATES]
    trials = [trial(tokens, failure) for tokens in LENGTHS for failure in RATES[1:]]
    results["played"] = [row for row in trials if row]
    wrong = sum(not found.right for group in runs.values() for found in group)
    if wrong:
        raise SystemExit(f"{wrong} generations gave other tokens than the undisturbed one")
    return results


def rate_of(name: str, tokens: int, failure: float, runs: Runs) -> float:
    """Steps/s of an algorithm; 0: not done within an hour."""
    if name == "caching with restarts":
        return SETUP.restart_rate(tokens, failure)
    return SETUP.cacheless_rate(tokens) if name == "cache-less" else mean_rate(runs[tokens, failure])


def mean_rate(runs: Sequence[Run]) -> float:
    return statistics.mean(found.steps_per_s for found in runs)


def cell(rate: float, paper: float | None, source: str) -> str:
    """Steps/s, and the paper's: [S] seen, [R] recalled."""
    return f"{rate:.3g} | {'-' if paper is None else f'{paper:g}'} {source}" if rate else f"- | {paper or '-'} {source}"


def kept(runs: Runs, tokens: int, failure: float) -> dict[str, Any]:
    """How much of its speed without failures ours keeps."""
    group, without = runs[tokens, failure], mean_rate(runs[tokens, 0.0])
    rates = [found.steps_per_s for found in group]
    error = statistics.stdev(rates) / len(rates) ** 0.5 if len(rates) > 1 else 0.0
    failures, expected = sum(found.failures for found in group), SETUP.handoffs * failure * tokens
    lost_s = sum(tokens / rate - tokens / without for rate in rates) / failures if failures else 0.0
    return {
        "tokens": tokens,
        "failure rate": failure,
        "steps/s": mean_rate(group),
        "standard error": error,
        "failures per run": failures / len(group),
        "expected": expected,
        "s per failure": lost_s,
        "kept": mean_rate(group) / without,
        "at as many as expected": 1 / (1 + expected * lost_s * without / tokens),
        "goal": KEPT_GOALS.get((tokens, failure), ""),
        "ideal": SETUP.replay_rate(tokens, failure) / SETUP.replay_rate(tokens, 0.0),
        "of plain caching at 0": mean_rate(group) / SETUP.restart_rate(tokens, 0.0),
    }


def trial(tokens: int, failure: float) -> dict[str, Any] | None:
    """Restarts, played, beside their formula; None where that takes for ever."""
    expected = SETUP.restart_steps(tokens, failure)
    if expected > TRIAL_STEPS_MAX:
        return None
    rng = random.Random(f"{tokens}/{failure}")
    count = max(20, min(TRIALS, int(PLAYED_STEPS_MAX / expected)))
    steps = [SETUP.restart_trial(tokens, failure, rng) for _ in range(count)]
    return {
        "tokens": tokens,
        "failure rate": failure,
        "steps by formula": expected,
        "played": statistics.mean(steps),
        "standard error": statistics.stdev(steps) / count**0.5,
        "runs": count,
    }


def report(results: dict[str, Any]) -> None:
    """Print it."""
    note = (
        f"steps/s | the paper's ([S] seen, [R] recalled); columns: failure rate per hand-off; {results['seeds']} runs"
    )
    show("Failures: BLOOM-7.1B on four GTX 1080 Ti, by cost model, in virtual time", results["rows"], note)
    show(
        "Fault-tolerant, in detail",
        results["kept"],
        "kept: of its own speed without failures; ideal: 0.5 s and one replay per failure",
    )
    show("Restarts, played", results["played"])
