"""Whole nodes in virtual time: they find each other as strangers do, and die, come back and leave as processes do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from p2pllm.config import Config, local
from p2pllm.errors import CoverageError, PeerLost, UserError
from p2pllm.types import ServerState, Span
from sim.network import SimWorld
from sim.nodes import SEQUENCE, SPEED, Nodes, NodeSpec, SimNode
from sim.run import run
from sim.swarm import MODEL
from sim.toy import ToyModel

TOY = ToyModel(4)
PROMPT = [3, 1, 4, 1, 5]
BASE = local()
CONFIG = replace(
    BASE,
    server=replace(BASE.server, cache_tokens=256, exact=True, drain_timeout_s=5.0),
    client=replace(BASE.client, activations="fp32", exact=True, patience_s=20.0),
)
HALVES = (Span(0, 2), Span(2, 4))


@asynccontextmanager
async def opened(*spans: Span, config: Config = CONFIG) -> AsyncIterator[Nodes]:
    """A bootstrap node, and servers ``s0``, ``s1``, ... that are up."""
    async with SimWorld(5, 0.02, config.net) as world:
        nodes = Nodes(world, TOY, config)
        await (await nodes.start("boot", NodeSpec("bootstrap"))).wait_up()
        for number, span in enumerate(spans):
            await (await nodes.start(f"s{number}", NodeSpec("server", span))).wait_up()
        yield nodes


async def client(nodes: Nodes, name: str = "client") -> SimNode:
    node = await nodes.start(name, NodeSpec("client"))
    await node.wait_up()
    return node


async def tokens(node: SimNode, count: int = 8) -> list[int]:
    assert node.model is not None
    return list((await node.model.generate([PROMPT], max_new_tokens=count)).new_ids[0])


def states(node: SimNode) -> dict[str, ServerState]:
    """What a node has heard of servers, by the names that they give themselves."""
    assert node.directory is not None
    return {ann.name: ann.state for ann in node.directory.view.announcements(MODEL)}


async def test_a_stranger_finds_the_servers_through_the_bootstrap_node_alone():
    async with opened(*HALVES) as nodes:
        nodes.world.partition(["late"])
        late = await client(nodes, "late")
        with pytest.raises(CoverageError):
            await tokens(late)
        assert states(late) == {}
        nodes.world.heal()
        assert await tokens(late) == TOY.greedy(PROMPT, 8)
        assert states(late) == {"s0": ServerState.ONLINE, "s1": ServerState.ONLINE}


async def test_once_in_nobody_needs_the_bootstrap_node():
    async with opened(*HALVES) as nodes:
        user = await client(nodes)
        assert await tokens(user) == TOY.greedy(PROMPT, 8)
        nodes.kill("boot")
        await trio.sleep(60)
        assert await tokens(user) == TOY.greedy(PROMPT, 8)


async def test_servers_choose_the_blocks_that_the_swarm_needs():
    async with opened() as nodes:
        for number in range(4):
            await (await nodes.start(f"s{number}", NodeSpec("server", num_blocks=2))).wait_up()
        assert nodes.coverage() == [2, 2, 2, 2]


async def test_a_killed_server_comes_back_with_its_disk_and_an_empty_memory():
    async with opened(*HALVES) as nodes:
        user, server = await client(nodes), nodes.by_name["s0"]
        assert user.model is not None
        assert server.server is not None
        assert server.server.serving is not None
        peer = server.peer
        with trio.fail_after(60):
            async with user.model.session(max_length=64) as session, trio.open_nursery() as nursery:
                await session.open(1)
                assert server.server.serving.sessions == 1
                nodes.kill("s0")
                disk = dict(server.disk.files)
                assert server.server is None
                assert nodes.coverage() == [0, 0, 1, 1]
                await trio.sleep(10)
                assert server.disk.files == disk, "the dead write nothing"
                assert set(disk) == {SEQUENCE, SPEED}
                nursery.start_soon(nodes.restart, "s0")
                assert await tokens(user) == TOY.greedy(PROMPT, 8)
                await server.wait_up()
                assert (server.lives, server.peer, server.disk.files[SPEED]) == (2, peer, disk[SPEED])
                assert int(server.disk.files[SEQUENCE]) > int(disk[SEQUENCE])


async def test_who_crashes_says_nothing_and_who_leaves_says_goodbye():
    async with opened(*HALVES, *HALVES) as nodes:
        user = await client(nodes)
        assert await tokens(user) == TOY.greedy(PROMPT, 8)
        nodes.kill("s0")
        nodes.by_name["s1"].leave()
        await trio.sleep(3)
        assert not nodes.by_name["s1"].alive
        heard = states(user)
        assert heard["s0"] is ServerState.ONLINE, "until its record ends"
        assert heard["s1"] is ServerState.OFFLINE
        await trio.sleep(2 * CONFIG.records.ttl_s)
        assert "s0" not in states(user)
        assert await tokens(user) == TOY.greedy(PROMPT, 8)


async def test_a_process_that_cannot_start_ends_with_its_reason():
    async with opened() as nodes:
        node = await nodes.start("s0", NodeSpec("server", Span(2, 6)))
        with pytest.raises(UserError, match="4 blocks"):
            await node.wait_up()
        assert not node.host.alive
        other = await nodes.start("s1", NodeSpec("server"))
        nodes.kill("s1")
        with pytest.raises(PeerLost, match="killed"):
            await other.wait_up()
        with pytest.raises(ValueError, match="runs already"):
            await nodes.start("boot", NodeSpec("bootstrap"))


async def test_a_server_can_be_made_to_compute_wrongly():
    async with opened(*HALVES) as nodes:
        user, liar = await client(nodes), nodes.by_name["s1"]
        liar.wrong = True
        assert await tokens(user) != TOY.greedy(PROMPT, 8)
        assert nodes.by_peer(liar.peer) is liar


def test_the_same_seed_gives_the_same_trace():
    async def play() -> str:
        async with opened(*HALVES, *HALVES) as nodes:
            user = await client(nodes)
            nodes.kill("s0")
            assert await tokens(user) == TOY.greedy(PROMPT, 8)
            await nodes.restart("s0")
            await trio.sleep(20)
            return nodes.world.trace_hash()

    assert run(play, 5) == run(play, 5)
