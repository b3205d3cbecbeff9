"""Whole nodes and bare swarms are the same to disorder."""

from __future__ import annotations

from dataclasses import replace

import trio

from p2pllm.config import local
from p2pllm.types import Span
from sim.disorder import Event, schedule_of
from sim.disorder_acts import Disorder
from sim.disorder_patients import NodePatients, SwarmPatients
from sim.network import SimWorld
from sim.nodes import Nodes, NodeSpec
from sim.run import run
from sim.swarm import open_swarm
from sim.toy import ToyModel

TOY = ToyModel(2)
BASE = local()
CONFIG = replace(
    BASE,
    server=replace(BASE.server, cache_tokens=256, exact=True),
    client=replace(BASE.client, activations="fp32", exact=True, patience_s=20.0),
)
PROMPT = [3, 1, 4]


async def opened(world: SimWorld) -> Nodes:
    nodes = Nodes(world, TOY, CONFIG)
    await (await nodes.start("boot", NodeSpec("bootstrap"))).wait_up()
    for name in ("s0", "s1"):
        await (await nodes.start(name, NodeSpec("server", Span(0, 2), throughput=100.0))).wait_up()
    await (await nodes.start("client", NodeSpec("client"))).wait_up()
    return nodes


async def tokens(nodes: Nodes) -> list[int]:
    model = nodes.by_name["client"].model
    assert model is not None
    return list((await model.generate([PROMPT], max_new_tokens=5)).new_ids[0])


def test_things_happen_to_whole_nodes():
    async def main():
        async with SimWorld(5, 0.02, CONFIG.net) as world:
            nodes = await opened(world)
            patients = NodePatients(nodes)
            assert patients.names() == ("s0", "s1", "client", "boot")
            disorder = Disorder(patients)
            for text in ("wrong@0=s0", "wrong@0=s1", "slow@0=s0*3", "disk_full@0=s1", "stale@0=s0"):
                await disorder.begin(Event.parse(text))
            assert patients.compute("s0").slower == 3
            assert await tokens(nodes) != TOY.greedy(PROMPT, 5)
            await disorder.heal()
            assert patients.compute("s0").slower == 1
            assert await tokens(nodes) == TOY.greedy(PROMPT, 5)

    run(main)


def test_a_whole_swarm_is_lost_and_joins_again():
    async def main():
        async with SimWorld(5, 0.02, CONFIG.net) as world:
            nodes = await opened(world)
            disorder = Disorder(NodePatients(nodes))
            await disorder.play(schedule_of(["crash@1=s0 crash@1=s1 crash@2=boot"]), trio.current_time())
            assert nodes.coverage() == [0, 0]
            assert set(disorder._patients.views()) == {"client"}
            await disorder.heal()
            for name in ("s0", "s1"):
                await nodes.by_name[name].wait_up()
            assert nodes.coverage() == [2, 2]
            assert await tokens(nodes) == TOY.greedy(PROMPT, 5)

    run(main)


async def test_a_bare_swarm_names_servers_and_clients():
    async with open_swarm(TOY, [(0, 2)], CONFIG) as swarm, swarm.client():
        patients = SwarmPatients(swarm)
        assert patients.names() == ("s0", "client")
        assert set(patients.views()) == {"client"}
        assert patients.disk("s0") is None
        assert patients.disk("client") is not None
        assert patients.compute("client") is not patients.compute("s0")
        patients.lie("client", True)  # clients serve nothing: no harm
