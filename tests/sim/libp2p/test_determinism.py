"""Same seed, same trace: libp2p's hosts, its DHT, crashes and partitions, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pllm.dht.record import Announcement, record_key, sign_announcement
from p2pllm.errors import PeerLost
from p2pllm.types import ModelId, Numerics, ServerState, Span
from sim.failover import Case, play
from sim.faults import FaultAt, Mishap
from sim.libp2p.host import Libp2pHost
from sim.libp2p.world import Libp2pWorld
from sim.links import Access
from sim.run import run

ROOT = Path(__file__).parent.parent.parent.parent
MODEL = ModelId("determinism")
HOSTS = 5


async def announce(host: Libp2pHost, sequence: int) -> None:
    now_ms = int(host.world.wall_time(host.name) * 1000)
    ann = Announcement(MODEL, Span(0, 2), 2, ServerState.ONLINE, Numerics("float32", "none", "k", "i", False))
    stamped = replace(ann, peer=host.me, sequence=sequence, issued_ms=now_ms, ttl_ms=60_000)
    await host.put(record_key(MODEL, host.me), sign_announcement(stamped, host.sign))
    await host.provide(f"/p2pllm/{MODEL}")


async def echo(stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def live(host: Libp2pHost) -> None:
    """Meet others through the DHT, and talk to them: all hosts at the same moments."""
    world, rng = host.world, host.world.rng(host.name, "life")
    host.serve("/echo", echo)
    for sequence in range(1, 4):
        with trio.move_on_after(10):
            try:
                await host.bootstrap()
                await announce(host, sequence)
                found = await host.find(f"/p2pllm/{MODEL}")
                world.note("found", host.name, "", " ".join(found).encode())
                other = rng.choice(found or [host.me])
                world.note("got", host.name, "", await host.get(record_key(MODEL, other)) or b"")
                stream = await host.open_stream(other, "/echo")
                await stream.send_all(rng.randbytes(rng.randrange(1, 50_000)))
                await stream.receive_some()
                stream.abort()
            except PeerLost as lost:
                world.note("lost", host.name, "", str(lost).encode())
        await trio.sleep(1)


def swarm(seed: int) -> str:
    async def main() -> str:
        async with Libp2pWorld(seed, 0.02) as world:
            world.links.set_default(jitter_s=0.01, loss=0.01)
            for number in range(HOSTS):
                world.set_access(f"h{number}", Access(up_bytes_per_s=1e6, down_bytes_per_s=4e6, queue_s=0.5))
                host = await world.start(f"h{number}")
                host.spawn(live, host)
            await trio.sleep(2)
            world.kill("h3")
            world.hang("h4")
            await trio.sleep(3)
            world.partition(["h1", "h2"])
            (await world.start("h3")).spawn(live, world.hosts["h3"])
            await trio.sleep(6)
            world.heal()
            world.resume("h4")
            await trio.sleep(15)
            return world.trace_hash()

    return run(main, seed)


def generation(seed: int) -> str:
    outcome = play(Case(faults=(FaultAt(Mishap.KILL, 20),), seed=seed, new_tokens=6, stack="libp2p"))
    return f"{outcome.trace} {outcome.tokens} {outcome.took_s:.9f}"


@pytest.mark.parametrize("played", [swarm, generation])
def test_same_seed_same_trace_other_seed_another(played):
    assert played(7) == played(7) != played(8)


@pytest.mark.real_clock
def test_the_trace_is_the_same_in_another_process_with_another_hash_seed():
    code = "import tests.sim.libp2p.test_determinism as t; print(t.swarm(7)); print(t.generation(7))"
    for hash_seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert done.stdout.splitlines() == [swarm(7), generation(7)]
