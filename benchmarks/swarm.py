"""A swarm of two servers on loopback against one process: steps, hop cost, prefill, forward.

A random Llama (hidden 512, 8 blocks, fp32), one compute thread for each process, exact mode off (its price beside).
Everything is measured in turns in one run, so that all of it meets the same machine. The bound of a step is the bytes
of the weights over the one-thread read bandwidth. A hop costs what passes between sending a step and its answer, less
the device's time; the bare hop carries the same messages around the same blocks over trio TCP (benchmarks/bare_hop.py).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trio

import p2pllm
from benchmarks.bare_hop import load_span
from benchmarks.blocks import Reader
from benchmarks.common import Shape, arguments, save, show, spread, write_checkpoint
from p2pllm.api import RemoteModel
from p2pllm.client.edge import Packed, pack, unpack
from p2pllm.config import ClientConfig
from p2pllm.local.compute import ThreadCompute, open_compute
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.model.ends import Ends
from p2pllm.model.exact import check_exact
from p2pllm.model.source import FolderSource
from p2pllm.model.span import Segment, SpanModel
from p2pllm.node.local_swarm import open_local_swarm
from p2pllm.types import Cost, PeerId, SessionId, Span, WorkKind
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Answer, Step

SHAPE = Shape()
SPANS = [(0, 4), (4, 8)]
CONTEXT = 64
CHUNK = ClientConfig().prefill_chunk_tokens
COST = Cost(WorkKind.CLIENT, tokens=1)


@dataclass
class Samples:
    """Seconds, by what they were spent on."""

    step: list[float] = field(default_factory=list)
    hop: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)


class BareChain:
    """The client's side of bare hops: one TCP connection per process, the same work on the same kind of thread."""

    def __init__(self, streams: list[trio.SocketStream], ends: Ends, compute: ThreadCompute) -> None:
        self._streams = streams
        self._readers = [MessageReader() for _ in streams]
        self._ends = ends
        self._compute = compute
        self._position = 0

    async def step(self, token: int, samples: Samples) -> torch.Tensor:
        """One token through the chain; logits [1, vocab]."""
        begun = time.perf_counter()
        packed, _ = await self._compute.run(lambda: pack(self._ends.embed([token]), "int8"), COST)
        for stream, reader in zip(self._streams, self._readers, strict=True):
            packed = await self._hop(stream, reader, packed, samples)
        logits, _ = await self._compute.run(lambda: self._ends.head(unpack(packed, torch.float32)), COST)
        samples.step.append(time.perf_counter() - begun)
        self._position += 1
        return logits

    async def _hop(self, stream: trio.SocketStream, reader: MessageReader, packed: Packed, samples: Samples) -> Packed:
        begun = time.perf_counter()
        step = Step(SessionId(bytes(16)), 0, self._position, (self._position,), (1,), packed.tensor)
        await stream.send_all(encode_message(step, packed.payload))
        while True:
            for answer, payload in reader.feed(await stream.receive_some(65536)):
                assert isinstance(answer, Answer)
                samples.hop.append(time.perf_counter() - begun - answer.compute_s)
                samples.compute.append(answer.compute_s)
                return Packed(answer.tensor, payload)


@asynccontextmanager
async def bare_chain(folder: Path, ends: Ends, compute: ThreadCompute) -> AsyncIterator[BareChain]:
    """Two bare processes, connected."""
    async with AsyncExitStack() as stack:
        streams = []
        for a, b in SPANS:
            port_file = folder / f"port-{a}"
            command = [sys.executable, "-m", "benchmarks.bare_hop", str(folder), str(a), str(b), str(port_file)]
            process = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL)
            stack.callback(process.kill)
            while not port_file.exists():  # noqa: ASYNC110 - another process makes the file
                await trio.sleep(0.05)
            stream = await trio.open_tcp_stream("127.0.0.1", int(port_file.read_text()))
            stream.setsockopt(6, 1, 1)  # TCP_NODELAY
            streams.append(await stack.enter_async_context(stream))
        yield BareChain(streams, ends, compute)


class Recorder:
    """Listens in on what a client notes of every answered step."""

    def __init__(self, model: RemoteModel, samples: Samples) -> None:
        peers = model._context.peers
        inner = peers.answered

        def answered(peer: PeerId, *, wall_s: float, compute_s: float, **more: Any) -> None:
            samples.hop.append(wall_s - compute_s)
            samples.compute.append(compute_s)
            inner(peer, wall_s=wall_s, compute_s=compute_s, **more)

        peers.answered = answered  # type: ignore[method-assign]


async def hops(model: RemoteModel, bare: BareChain, rounds: int, steps: int) -> tuple[Samples, Samples]:
    """Steps of the swarm and of the bare chain in turns."""
    ours, theirs = Samples(), Samples()
    token = torch.tensor([[1]])
    Recorder(model, ours)
    async with model.session(max_length=CONTEXT + (rounds + 1) * steps, rows=1) as session:
        for _ in range(CONTEXT):
            await session.step(token)
            await bare.step(1, Samples())
        for samples in (ours.step, ours.hop, ours.compute):
            samples.clear()
        for _ in range(rounds):
            for _ in range(steps):
                begun = time.perf_counter()
                await session.step(token)
                ours.step.append(time.perf_counter() - begun)
            for _ in range(steps):
                await bare.step(1, theirs)
    return ours, theirs


async def pushed_steps(model: RemoteModel, steps: int) -> list[float]:
    """Seconds of steps whose hidden states go straight from server to server."""
    token, times = torch.tensor([[1]]), []
    async with model.session(max_length=CONTEXT + steps, rows=1) as session:
        await session.step(token.expand(1, CONTEXT))
        for _ in range(steps):
            begun = time.perf_counter()
            await session.step(token)
            times.append(time.perf_counter() - begun)
    return times[len(times) // 8 :]


def alone(model: SpanModel, steps: int, reader: Reader) -> list[float]:
    """Wall seconds of single tokens through all blocks in this process."""
    pages = tuple(range(-(-(CONTEXT + steps) // 16)))
    arena = model.arena(len(pages) * 16)
    x = torch.randn(CONTEXT, SHAPE.hidden)
    model.run(x, [Segment(CONTEXT, 0, pages)], arena)
    times = []
    for position in range(CONTEXT, CONTEXT + steps):
        if position % 8 == 0:
            reader.sample()
        begun = time.perf_counter()
        model.run(x[:1], [Segment(1, position, pages)], arena)
        times.append(time.perf_counter() - begun)
    return times[steps // 8 :]


def alone_batches(model: SpanModel, ends: Ends) -> dict[str, float]:
    """Tokens per second of one process: a prefill of 1,024 tokens, and sequences of 64 x 128 to logits."""
    ids = torch.randint(SHAPE.vocab, (8192,))
    found = {f"prefill in chunks of {CHUNK}": CHUNK, "prefill in one pass": 1024}
    rates = {name: _prefill(model, ends, ids[:1024], chunk) for name, chunk in found.items()}
    begun = time.perf_counter()
    for first in range(0, 64, 4):  # passes of 512 tokens, as a server's are
        part = ends.embed(ids[first * 128 : (first + 4) * 128])
        ends.head(model.run(part, [Segment(128, 0, None)] * 4))
    return {**rates, "forward": 8192 / (time.perf_counter() - begun)}


def _prefill(model: SpanModel, ends: Ends, ids: torch.Tensor, chunk: int) -> float:
    arena = model.arena(len(ids))
    pages = tuple(range(arena.pages))
    begun = time.perf_counter()
    for first in range(0, len(ids), chunk):
        hidden = model.run(ends.embed(ids[first : first + chunk]), [Segment(chunk, first, pages)], arena)
    ends.head(hidden[-1:])
    return len(ids) / (time.perf_counter() - begun)


async def swarm_batches(model: RemoteModel) -> dict[str, float]:
    """The same through the servers."""
    ids = torch.randint(SHAPE.vocab, (64, 128))
    async with model.session(max_length=1024, rows=1) as session:
        begun = time.perf_counter()
        await session.step(ids.view(1, -1)[:, :1024], tail=1)
        prefill = 1024 / (time.perf_counter() - begun)
    begun = time.perf_counter()
    await model.forward(ids)
    forward = ids.numel() / (time.perf_counter() - begun)
    return {f"prefill in chunks of {CHUNK}": prefill, "prefill in one pass": prefill, "forward": forward}


def pieces(ends: Ends) -> dict[str, float]:
    """Microseconds of what both hops share: the codec and the frames of one token, on hot caches."""
    hidden = torch.randn(1, SHAPE.hidden)
    packed = pack(hidden, "int8")
    step = Step(SessionId(bytes(16)), 0, 0, (0,), (1,), packed.tensor)
    data = encode_message(step, packed.payload)

    def each(work: Any) -> float:
        times = []
        for _ in range(2000):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return 1e6 * statistics.median(times)

    return {
        "encode tensor": each(lambda: pack(hidden, "int8")),
        "decode tensor": each(lambda: unpack(packed, torch.float32)),
        "encode frame": each(lambda: encode_message(step, packed.payload)),
        "decode frame": each(lambda: MessageReader().feed(data)),
        "message bytes": float(len(data)),
    }


async def measure(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Everything, in turns."""
    checkpoint = Checkpoint(FolderSource(str(folder), DiskStorage()))
    ends = Ends.load(checkpoint.config, checkpoint.ends_tensors(torch.float32))
    whole, reader = load_span(str(folder), Span(0, SHAPE.blocks)), Reader()
    one: list[float] = []
    exact: list[float] = []
    batches: list[tuple[dict[str, float], dict[str, float]]] = []
    how: dict[str, Any] = {"config": "local", "threads": 1, "cache_dir": str(folder / "cache")}
    async with (
        open_compute(setup=lambda _: torch.set_num_threads(1)) as compute,
        open_local_swarm(str(folder), SPANS, flags=["--threads", "1"]) as swarm,
        p2pllm.connect(str(folder), bootstrap=swarm.bootstrap, push="off", **how) as relaying,
        p2pllm.connect(str(folder), bootstrap=swarm.bootstrap, push="auto", **how) as model,
        bare_chain(folder, ends, compute) as bare,
    ):
        ours, theirs = await hops(relaying, bare, rounds, steps)
        pushed = await pushed_steps(model, rounds * steps)
        await swarm_batches(model)  # warms up
        for _ in range(3):
            one += alone(whole, 48, reader)
            batches.append((await swarm_batches(model), alone_batches(whole, ends)))
    if check_exact(whole):
        exact = alone(whole, 48, Reader())
    return {
        "bound_s": whole.weight_bytes / reader.bandwidth,
        "bandwidth": reader.bandwidth,
        "one": spread(one),
        "one_exact": spread(exact) if exact else None,
        "swarm": {name: spread(values) for name, values in vars(ours).items()},
        "pushed": spread(pushed),
        "bare": {name: spread(values) for name, values in vars(theirs).items()},
        "batches": {
            name: {
                "swarm": statistics.median(s[name] for s, _ in batches),
                "one": statistics.median(o[name] for _, o in batches),
            }
            for name in batches[0][0]
        },
        "pieces_us": pieces(ends),
    }


def report(found: dict[str, Any]) -> None:
    """The tables."""
    bound, one, swarm, bare = found["bound_s"], found["one"], found["swarm"], found["bare"]
    rows = [
        {"what": "bound: weights / one-thread reads", "ms p50": 1e3 * bound, "steps/s": 1 / bound, "of bound": 1.0},
        {
            "what": "one process, no network",
            "ms p50": 1e3 * one["p50"],
            "steps/s": 1 / one["p50"],
            "of bound": bound / one["p50"],
        },
    ]
    if found["one_exact"]:
        slow = found["one_exact"]["p50"]
        rows.append(
            {"what": "one process, exact mode", "ms p50": 1e3 * slow, "steps/s": 1 / slow, "of bound": bound / slow}
        )
    for name, step in (
        ("swarm of 2 servers, relayed", swarm["step"]["p50"]),
        ("swarm of 2 servers, pushed", found["pushed"]["p50"]),
        ("2 bare processes, TCP, relayed", bare["step"]["p50"]),
    ):
        rows.append({"what": name, "ms p50": 1e3 * step, "steps/s": 1 / step, "of bound": bound / step})
    show(
        "Steps (limit: one process >= 0.35 of the bound)",
        rows,
        f"reads {found['bandwidth'] / 1e9:.1f} GB/s on one thread",
    )
    p = found["pieces_us"]
    rows = []
    for name, samples in (("libp2p", swarm), ("bare TCP", bare)):
        hop = 1e6 * samples["hop"]["p50"]
        rows.append(
            {
                "hop": name,
                "added us p50": hop,
                "p95": 1e6 * samples["hop"]["p95"],
                "compute us": 1e6 * samples["compute"]["p50"],
                "frames us (4 x)": 2 * (p["encode frame"] + p["decode frame"]),
                "wire, queues, wake-ups us": hop - 2 * (p["encode frame"] + p["decode frame"]),
            }
        )
    ratio = swarm["hop"]["p50"] / bare["hop"]["p50"]
    codec = f"tensor codec {p['encode tensor']:.0f} + {p['decode tensor']:.0f} us a side, inside compute"
    note = f"ratio {ratio:.2f} (limit 4); {codec}; {p['message bytes']:.0f} bytes a message"
    show("Added cost of a client-relayed hop", rows, note)
    rows = [
        {
            "what": f"{name}, tokens/s",
            "swarm": pair["swarm"],
            "one process": pair["one"],
            "ratio": pair["swarm"] / pair["one"],
        }
        for name, pair in found["batches"].items()
    ]
    show(
        "Prefill of 1,024 and forward of 64 x 128 (limit: ratio >= 1.5)",
        rows,
        "the swarm takes chunks; one process both ways",
    )


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each chain")
    parser.add_argument("--steps", type=int, default=25, help="steps of a turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="p2pllm-") as name:
        folder = write_checkpoint(Path(name) / "model", SHAPE)
        found = trio.run(measure, folder, args.rounds, args.steps)
    report(found)
    save(args.out, found)


if __name__ == "__main__":
    main()
