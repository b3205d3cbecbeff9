"""What it takes to lose servers: recovery time, replay throughput, the paper's failure table, the history's size.

Recovery: a client and servers of real blocks (hidden 512, 4 blocks per hop, fp32, int8 activations) in the simulator;
links have a one-way delay of 5 ms, compute takes as much virtual time as its passes took of one processor here. With
two failures both servers of a chain of two are killed at the same moment. Replay is compared with a plain prefill of
as many tokens through as many blocks, in the same chunks.

Pushes: a chain of three toy servers, 50 ms between all parties, in virtual time; pushed, a step takes one delay more
than there are hops, relayed two for each hop.

The failure table is explained in sim/experiments/failure_table.py (``python -m sim run failure-table`` plays it, too),
the history's size in benchmarks/history.py.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import trio

from benchmarks import history
from benchmarks.common import Shape, arguments, save, show, write_checkpoint
from p2pllm.client.failover import Failover
from p2pllm.client.legs import Leg
from p2pllm.client.past import Rows
from p2pllm.client.session import Session
from p2pllm.config import Config
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.config import ModelConfig
from p2pllm.model.ends import Ends
from p2pllm.model.source import FolderSource
from p2pllm.model.span import SpanModel
from p2pllm.types import Cost, Numerics, Span
from sim.compute import SimCompute
from sim.experiments import failure_table
from sim.kinds import Run
from sim.run import run
from sim.show import console
from sim.show import show as show_outcome
from sim.swarm import SimClient, SimSwarm, open_swarm
from sim.toy import ToyModel

T = TypeVar("T")

HOP_BLOCKS = 4
LATENCY_S = 0.005
CONTEXTS = (64, 256, 1024, 4096)
WARM_STEPS = 3
REPLAY_GOAL = 0.9
PUSH_HOPS = 3
PUSH_DELAY_S = 0.05
PUSH_PASS_S = 0.01
PUSH_GOAL = 0.95
REPEATED_TOKENS = 4096
"""Shorter contexts are measured so often that they make up as many tokens, at most five times."""


class Measured(SimCompute):
    """Passes take as much virtual time as they took of a processor."""

    def __init__(self) -> None:
        super().__init__(lambda cost, device: self._took_s)
        self._took_s = 0.0

    async def run(self, work: Callable[[], T], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[T, float]:
        """See ``ports.Compute.run``."""

        def timed() -> T:
            began = time.thread_time()
            result = work()
            self._took_s = time.thread_time() - began
            return result

        return await super().run(timed, cost, devices)


class RealBlocks:
    """The first blocks of a random checkpoint; see ``sim.swarm.Blocks``."""

    numerics = Numerics("float32", "none", "torch", "any", exact=False)

    def __init__(self, folder: Path, blocks: int) -> None:
        self._checkpoint = Checkpoint(FolderSource(str(folder), DiskStorage()))
        self._config = replace(self._checkpoint.config, num_blocks=blocks)
        self._spans: dict[Span, SpanModel] = {}

    @property
    def config(self) -> ModelConfig:
        return self._config

    def span(self, span: Span) -> SpanModel:
        """See ``sim.swarm.Blocks``."""
        if span not in self._spans:
            tensors = self._checkpoint.span_tensors(span, torch.float32)
            self._spans[span] = SpanModel.load(self._config, span, tensors, exact=False)
        return self._spans[span]

    def ends(self) -> Ends:
        return Ends.load(self._config, self._checkpoint.ends_tensors(torch.float32))


def config(context: int) -> Config:
    """What users get, with caches that fit."""
    base = Config()
    return replace(base, server=replace(base.server, cache_tokens=2 * context + 64))


@asynccontextmanager
async def swarm_of(blocks: RealBlocks, hops: int, context: int) -> AsyncIterator[tuple[SimSwarm, SimClient]]:
    """A chain of ``hops``, each with a spare."""
    spans = [(hop * HOP_BLOCKS, (hop + 1) * HOP_BLOCKS) for hop in range(hops)] * 2
    opening = open_swarm(blocks, spans, config(context), latency_s=LATENCY_S, compute=Measured)
    async with opening as swarm, swarm.client() as client:
        yield swarm, client


async def prefill(blocks: RealBlocks, hops: int, context: int) -> float:
    """Virtual seconds of a plain prefill."""
    async with (
        swarm_of(blocks, hops, context) as (_, client),
        client.model.session(context + WARM_STEPS + 1) as session,
    ):
        await session.open(1)
        began = trio.current_time()
        await session.step(ids(context), tail=0)
        return trio.current_time() - began


async def lose(blocks: RealBlocks, hops: int, failures: int, context: int) -> dict[str, float]:
    """Prefill, some steps, the failure, one more step; virtual seconds of what came of it."""
    async with swarm_of(blocks, hops, context) as (swarm, client), client.model.session(context) as session:
        await session.step(ids(context - WARM_STEPS - 1), tail=1)
        step_s = min([await timed_step(session) for _ in range(WARM_STEPS)])
        for hop in session.route[-failures:]:
            server = swarm.by_peer(hop.peer_id)
            assert server is not None
            swarm.world.kill(server.name)
        replays = Replays()
        try:
            gap_s = await timed_step(session)
        finally:
            replays.stop()
        assert session.recoveries == failures
        return {"step_s": step_s, "recovery_s": gap_s - step_s, "replay_s": replays.seconds, "replayed": replays.tokens}


class Replays:
    """Listens in on replays, which may overlap."""

    def __init__(self) -> None:
        self.tokens = 0
        self._began_s = math.inf
        self._ended_s = 0.0
        self._inner = inner = Failover.replay

        async def replay(failover: Failover, legs: Sequence[Leg], rows: Rows) -> int:
            began = trio.current_time()
            tokens = await inner(failover, legs, rows)
            if tokens:
                self._began_s = min(self._began_s, began)
                self._ended_s = trio.current_time()
                self.tokens += tokens
            return tokens

        setattr(Failover, "replay", replay)  # noqa: B010 - mypy knows that it is a method

    @property
    def seconds(self) -> float:
        """From the beginning of the first to the end of the last."""
        return self._ended_s - self._began_s

    def stop(self) -> None:
        setattr(Failover, "replay", self._inner)  # noqa: B010


def ids(tokens: int) -> torch.Tensor:
    return (torch.arange(tokens) * 7 % 1000)[None]


async def timed_step(session: Session) -> float:
    """Virtual seconds of one token."""
    began = trio.current_time()
    await session.step(ids(1))
    return trio.current_time() - began


def recovery(folder: Path, contexts: Sequence[int]) -> list[dict[str, Any]]:
    """Recovery and replay by context and number of failures."""
    rows = []
    models = {hops: RealBlocks(folder, hops * HOP_BLOCKS) for hops in (1, 2)}
    run(lambda: prefill(models[2], 2, 64))  # the first pass of a process is a slow one
    for context in contexts:
        for failures in (1, 2):
            # In turns, and the best of each: another program's work on this machine says nothing about ours.
            tries = range(max(1, min(5, REPEATED_TOKENS // context)))
            both = [
                (
                    run(lambda: prefill(models[failures], failures, context)),  # noqa: B023 - runs here
                    run(lambda: lose(models[2], 2, failures, context)),  # noqa: B023
                )
                for _ in tries
            ]
            plain_s = min(plain for plain, _ in both)
            lost = min((lost for _, lost in both), key=lambda lost: lost["replay_s"])
            replayed = lost["replayed"] / failures / lost["replay_s"]
            rows.append(
                {
                    "context": context,
                    "failures": failures,
                    "step ms": 1000 * lost["step_s"],
                    "recovery ms": 1000 * lost["recovery_s"],
                    "replay ms": 1000 * lost["replay_s"],
                    "plain prefill ms": 1000 * plain_s,
                    "replay tokens/s": replayed,
                    "of plain prefill": replayed / (context / plain_s),
                }
            )
    return rows


async def steps_per_s(push: str) -> float:
    """Of a chain of ``PUSH_HOPS``, pushed or relayed."""
    base = Config()
    settings = replace(base, client=replace(base.client, push=push, activations="fp32"))
    spans = [(hop, hop + 1) for hop in range(PUSH_HOPS)]
    opening = open_swarm(ToyModel(PUSH_HOPS), spans, settings, latency_s=PUSH_DELAY_S, pass_s=PUSH_PASS_S)
    async with opening as swarm, swarm.client() as client:
        result = await client.model.generate([[1, 2, 3]], max_new_tokens=100, ignore_eos=True)
        return result.steps_per_s


def pushes() -> list[dict[str, Any]]:
    """Push against relay, beside the sum of the delays and of what is computed on the way."""
    rows = []
    for name, push, delays in (("pushed", "on", PUSH_HOPS + 1), ("relayed", "off", 2 * PUSH_HOPS)):
        expected_s = delays * PUSH_DELAY_S + (PUSH_HOPS + 1) * PUSH_PASS_S  # the client's ends are a pass, too
        rate = run(lambda: steps_per_s(push))  # noqa: B023 - runs here
        rows.append(
            {
                "hops": name,
                "one-way delays": delays,
                "steps/s": rate,
                "by sum": 1 / expected_s,
                "of sum": rate * expected_s,
            }
        )
    return rows


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="runs per cell of the failure table (default: 20)")
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--only", choices=("recovery", "pushes", "table", "history"), help="a part of it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("p2pllm", "sim"):  # failures are expected here
        logging.getLogger(name).setLevel(logging.ERROR)
    results: dict[str, Any] = {"benchmark": "failover"}
    if args.only in (None, "history"):
        results["history"] = history.measure()
        history.report(results["history"])
    if args.only in (None, "recovery"):
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), Shape())
            settings = Path(folder) / "config.json"
            settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_position_embeddings": 8192}))
            results["recovery"] = recovery(Path(folder), args.contexts)
        note = f"goal: replay at least {REPLAY_GOAL:.0%} of a plain prefill; a reset is noticed after {LATENCY_S} s"
        show("Recovery from killed servers", results["recovery"], note)
    if args.only in (None, "pushes"):
        results["pushes"] = pushes()
        show(
            "Pushed and relayed hops, 50 ms between all parties", results["pushes"], f"goal: {PUSH_GOAL:.0%} of the sum"
        )
    if args.only in (None, "table"):
        outcome = failure_table.KIND.play(failure_table.Params(seeds=args.seeds), Run())
        show_outcome("The paper's failure table", outcome, console())
        results["table"] = {"seeds": args.seeds, "rows": list(outcome.results), "ok": outcome.ok}
    save(args.out, results)


if __name__ == "__main__":
    main()
