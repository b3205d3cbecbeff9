"""Same seed, same trace: in this process, and in another one with another hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from p2pllm.errors import PeerLost
from sim.network import SimWorld
from sim.ports import sim_ports
from sim.run import run
from tests.dht.swarm import Node, bootstrap_node

ROOT = Path(__file__).parent.parent.parent


def busy_world(seed: int) -> str:
    """Hosts that chat, time out and die: many tasks become runnable at the same instant."""

    async def main() -> str:
        async with SimWorld(seed) as world:
            names = [f"h{i}" for i in range(6)]
            ports = [sim_ports(world, name) for name in names]

            async def echo(stream):
                while data := await stream.receive_some():
                    await stream.send_all(data)

            async def chat(one):
                await one.network.bootstrap()
                for _ in range(10):
                    other = one.rng.choice(ports).network
                    one.network.learn(other.me, other.addrs)
                    with trio.move_on_after(one.rng.random()):
                        try:
                            stream = await one.network.open_stream(other.me, "/echo")
                            await stream.send_all(one.token_bytes(one.rng.randrange(1, 50_000)))
                            await stream.receive_some()
                        except PeerLost:
                            await trio.sleep(0.1)

            async with trio.open_nursery() as nursery:
                for one in ports:
                    one.network.serve("/echo", echo)
                    nursery.start_soon(chat, one)
                await trio.sleep(1.5)
                world.kill("h3")
            return world.trace_hash()

    return run(main, seed)


def swarm_of_directories(seed: int) -> str:
    """Production code with gossip, DHT, crashes and partitions."""

    async def main() -> str:
        async with SimWorld(seed) as world:
            bootstrap_node(world)
            nodes = [Node(world, f"s{i}").serve() for i in range(6)]
            await trio.sleep(40)
            world.kill("s1")
            world.partition(["s2", "s3"])
            await trio.sleep(60)
            world.heal()
            await nodes[4].directory.withdraw()
            await trio.sleep(60)
            return world.trace_hash()

    return run(main, seed)


@pytest.mark.parametrize("swarm", [busy_world, swarm_of_directories])
def test_same_seed_same_trace_other_seed_another(swarm):
    assert swarm(7) == swarm(7)
    assert swarm(7) != swarm(8)


def test_the_trace_is_the_same_in_another_process_with_another_hash_seed():
    code = "import tests.sim.test_run as t; print(t.busy_world(7), t.swarm_of_directories(7))"
    for hash_seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.split() == [busy_world(7), swarm_of_directories(7)]


def test_trios_switch_is_put_back():
    import trio._core._run as trio_run

    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    run(trio.lowlevel.checkpoint)
    assert before == (trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate())
