"""How fast a setup of the papers' tables goes in virtual time: the production client and servers, measured.

A job is a value, so that cells can be played in other processes. Steps are measured at a length: the caches are filled
to just below it, by the protocol, and a few single steps follow. Forwards are micro-batches, all under way at once,
each on streams of its own. Streams are open and have carried something before anything is measured, as they are kept
open in production.

Invariants: a job's outcome follows from the job alone. Nothing of the production code is replaced; what differs
between rows of a table are settings that users have, the network, and the cost model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import trio

from p2pllm.client.model import RemoteModel
from p2pllm.client.session import Session
from p2pllm.config import KIB, MIB, Config
from p2pllm.ports import Compute
from sim.calibrated import Fit, Setup
from sim.devices import attach, free
from sim.links import Access
from sim.matrix import read_matrix
from sim.paper import NEAR, Net
from sim.run import run
from sim.shapes import SHAPES, VOCAB, ShapeModel
from sim.swarm import SimSwarm, open_swarm

GIB = 1024 * MIB
SEQUENCE_TOKENS = 128
"""Of one sequence of a forward."""
MICRO_BATCH_TOKENS = 1024
CITIES = Path(__file__).parent / "data" / "ibm_cloud_2024.csv"
"""Round trips between data centres; see the file."""
HOME_S = 0.005
"""What an access adds to them, one way [assumed]."""
PATIENT_S = 1e6
"""Nobody gives up in these runs: what is measured is a network that works, however slow."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a swarm talks; the defaults are the papers'.

    Attributes:
        push: servers send to the next one; else everything goes by the client.
        activations: codec of hidden states.
        window_bytes: of every stream, fixed; None: the product's rule, which lets windows grow.
        chunk_tokens: prefills and sessions' forwards are cut into such steps; in_flight: so many at once.
        shared_steps: steps of several clients go through a server in one pass.
    """

    push: bool = False
    activations: str = "fp16"
    window_bytes: int | None = 256 * KIB
    chunk_tokens: int = MICRO_BATCH_TOKENS
    in_flight: int = 1
    shared_steps: bool = True

    def config(self) -> Config:
        """The product's settings for it; limits that no volunteer's machine would have are lifted."""
        base = Config()
        net = replace(base.net, send_timeout_s=PATIENT_S, dial_timeout_s=PATIENT_S, stream_timeout_s=PATIENT_S)
        server = replace(
            base.server,
            cache_tokens=64 * 1024,
            prefill_chunk_tokens=MICRO_BATCH_TOKENS,
            batch_tokens_max=MICRO_BATCH_TOKENS if self.shared_steps else 1,
            pass_target_s=PATIENT_S,
            answer_bytes_max=GIB,
            answers_total_bytes=64 * GIB,
            queue_bytes_max=64 * GIB,
            queue_bytes_per_peer_max=64 * GIB,
            idle_timeout_s=PATIENT_S,
            stream_idle_s=PATIENT_S,
        )
        client = replace(
            base.client,
            activations=self.activations,
            push="on" if self.push else "off",
            step_timeout_s=PATIENT_S,
            step_timeout_min_s=PATIENT_S,
            open_timeout_s=PATIENT_S,
            prefill_chunk_tokens=self.chunk_tokens,
            steps_in_flight=self.in_flight,
            forward_chunk_tokens=MICRO_BATCH_TOKENS,
            history_bytes_max=8 * GIB,
            idle_streams_max=64,
        )
        return replace(base, net=net, server=server, client=client)


PAPER = Protocol()
PAPER_FORWARD = Protocol(activations="int8")


@dataclass(frozen=True, slots=True)
class Rates:
    """What a job measured, in the job's order, and the hash of all that happened."""

    values: tuple[float, ...]
    trace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all jobs have in common."""

    setup: Setup
    fit: Fit
    protocol: Protocol = PAPER
    net: Net = NEAR
    seed: int = 0

    @property
    def ends_cost(self) -> bool:
        """Whether the client's own ends take time; in the fits of forwards that is in the passes already."""
        return isinstance(self, StepsJob | ClientsJob)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsJob(Job):
    """Steps/s of one sequence at each of ``lengths``, in each of ``nets``."""

    nets: tuple[Net, ...] = (NEAR,)
    lengths: tuple[int, ...] = (128,)
    steps: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardJob(Job):
    """Tokens/s of a batch of ``sequences``."""

    protocol: Protocol = PAPER_FORWARD
    sequences: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsJob(Job):
    """Steps/s of each of ``clients`` that generate at once."""

    clients: int = 8
    length: int = 128
    steps: int = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillJob(Job):
    """Seconds until the outputs of ``rows`` sequences of ``tokens`` tokens are there, through a session."""

    tokens: int = 2048
    rows: int = 1
    tail: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob(Job):
    """Tokens/s of a batch forward and, by another measurement, back."""

    sequences: int = 8
    tokens: int = 128


def play(job: Job) -> Rates:
    """Play a job in virtual time."""
    played: list[Rates] = []

    async def main() -> None:
        async with _opened(job) as swarm:
            values = await _MEASURES[type(job)](job, swarm)
            played.append(Rates(tuple(values), swarm.world.trace_hash()))

    run(main, job.seed)
    return played[0]


@asynccontextmanager
async def _opened(job: Job) -> AsyncGenerator[SimSwarm]:
    """The setup's servers, on its devices."""
    config = job.protocol.config()
    shape = ShapeModel(SHAPES[job.setup.shape], job.setup.quantization)
    async with open_swarm(shape, job.setup.spans, config, seed=job.seed, compute=_computes(job)) as swarm:
        swarm.world.links.window_bytes = job.protocol.window_bytes
        _connect(swarm, job.setup, job.net)
        yield swarm


def _computes(job: Job) -> Callable[[str], Compute]:
    """Devices of servers, which virtual ones share, and of clients."""
    setup = job.setup
    gpus = {f"s{server}": gpu for server, gpu in enumerate(setup.gpus)}
    models = {gpu: setup.cost_model(server, job.fit) for server, gpu in enumerate(setup.gpus)}
    return attach(gpus, models, job.fit.overhead_s, job.fit.client_model() if job.ends_cost else free)


def _connect(swarm: SimSwarm, setup: Setup, net: Net) -> None:
    """Give every host the link of a setting, from now on; hosts of regions keep their own."""
    world, ways = swarm.world, Ways(setup)
    names = list(world.hosts)
    for name in names:
        width = ways.bytes_per_s(name, net)
        world.set_access(name, Access(width, width))
        for other in names:
            if name < other:
                world.set_latency(name, other, ways.one_way_s(name, other, net))


class Ways:
    """How far hosts of a setup are from each other, and how wide their links are."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._matrix = read_matrix(CITIES) if setup.regions else None

    def bytes_per_s(self, name: str, net: Net) -> float:
        """Of a host's link."""
        widths, server = self._setup.mbit_per_s, self._server(name)
        return net.bytes_per_s if not widths or server < 0 else Net(widths[server], net.rtt_ms).bytes_per_s

    def one_way_s(self, a: str, b: str, net: Net) -> float:
        """Between two hosts."""
        if self._matrix is None:
            return net.one_way_s
        regions = self._setup.regions
        between_s = self._matrix.one_way_s(regions[self._server(a)], regions[self._server(b)])
        assert between_s is not None, "the matrix knows the regions of every setup"
        return between_s + 2 * HOME_S

    def _server(self, name: str) -> int:
        """Its number; -1: a client, whose region is the last one."""
        return int(name[1:]) if name[1:].isdigit() else -1


# -- what is measured ------------------------------------------------------------------------------------------------


async def _steps(job: StepsJob, swarm: SimSwarm) -> list[float]:
    """Length by length, and net by net: the caches are filled once, over the first net."""
    rates = []
    async with swarm.client() as client, client.model.session(max(job.lengths) + job.steps) as session:
        for length in job.lengths:
            for net in job.nets:
                _connect(swarm, job.setup, net)
                rates.append(await _steps_per_s(client.model, length, job.steps, session))
            _connect(swarm, job.setup, job.nets[0])
    return rates


async def _steps_per_s(model: RemoteModel, length: int, steps: int, session: Session | None = None) -> float:
    """Of steps around ``length``: the first one after the prefill is not counted."""
    prompt = [position % VOCAB for position in range(length - 1 - steps // 2)]
    generation = model.stream([prompt], max_new_tokens=steps + 2, ignore_eos=True, session=session)
    ends = [trio.current_time() async for _ in generation]
    return steps / (ends[-1] - ends[-1 - steps])


async def _forward(job: ForwardJob, swarm: SimSwarm) -> list[float]:
    """The whole batch at once, cut into micro-batches that each have streams of their own."""
    rows = max(1, MICRO_BATCH_TOKENS // SEQUENCE_TOKENS)
    batches = [min(rows, job.sequences - first) for first in range(0, job.sequences, rows)]

    async with swarm.client() as client:

        async def all_of(batches: list[int]) -> float:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for count in batches:
                    ids = torch.zeros(count, SEQUENCE_TOKENS, dtype=torch.long)
                    nursery.start_soon(client.model.forward, ids)
            return trio.current_time() - began

        _connect(swarm, job.setup, job.net)
        await all_of([1] * len(batches))  # every stream has carried a sequence before
        return [job.sequences * SEQUENCE_TOKENS / await all_of(batches)]


async def _clients(job: ClientsJob, swarm: SimSwarm) -> list[float]:
    """Everybody fills their caches, then all begin at once; what each one reaches while all of them generate."""
    ends: list[list[float]] = []
    ready, waiting = trio.Event(), job.clients

    async def one(name: str) -> None:
        nonlocal waiting
        async with swarm.client(name) as client:
            _connect(swarm, job.setup, job.net)
            prompt = [position % VOCAB for position in range(job.length - 1 - job.steps // 2)]
            generation = client.model.stream([prompt], max_new_tokens=job.steps, ignore_eos=True)
            await anext(generation)
            waiting -= 1
            if not waiting:
                ready.set()
            await ready.wait()
            ends.append([trio.current_time() async for _ in generation])

    async with trio.open_nursery() as nursery:
        for number in range(job.clients):
            nursery.start_soon(one, f"client{number}")
    first, last = max(mine[0] for mine in ends), min(mine[-1] for mine in ends)
    return sorted(_rate_within(mine, first, last) for mine in ends)


def _rate_within(ends: list[float], first: float, last: float) -> float:
    """Steps/s by the steps that ended in a window, from end to end."""
    inside = [end for end in ends if first <= end <= last]
    return (len(inside) - 1) / (inside[-1] - inside[0])


async def _prefill(job: PrefillJob, swarm: SimSwarm) -> list[float]:
    """Tokens/s through a fresh session of a client that is connected already."""
    ids = torch.zeros(job.rows, job.tokens, dtype=torch.long)
    async with swarm.client() as client:
        _connect(swarm, job.setup, job.net)
        async with client.model.session(job.tokens + 8) as session:
            await session.step(ids[:, :1])
            session.position = 0
            began = trio.current_time()
            await session.step(ids, tail=job.tail)
            return [job.rows * job.tokens / (trio.current_time() - began)]


async def _training(job: TrainingJob, swarm: SimSwarm) -> list[float]:
    """A batch as fine-tuning sends it: forward with its inputs kept, then gradients back, both warm."""
    tokens = job.sequences * job.tokens
    async with swarm.client() as client:
        _connect(swarm, job.setup, job.net)
        blocks, width = client.model.blocks, swarm.blocks.config.hidden_size
        for length in (1, job.tokens):
            hidden = torch.zeros(job.sequences, length, width, dtype=torch.float16)
            began = trio.current_time()
            passed = await blocks.run_forward(hidden, activations=job.protocol.activations)
            turned = trio.current_time()
            await blocks.run_backward(passed, hidden)
        return [tokens / (turned - began), tokens / (trio.current_time() - turned)]


_MEASURES: dict[type[Job], Any] = {
    StepsJob: _steps,
    ForwardJob: _forward,
    ClientsJob: _clients,
    PrefillJob: _prefill,
    TrainingJob: _training,
}
