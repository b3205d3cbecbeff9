"""Who is there and who is not, found out before users do."""

from __future__ import annotations

import pytest
import trio

from p2pllm.client.vitals import QUIET_S, Vitals
from p2pllm.types import Span
from sim.compute import SimCompute, flat_cost
from sim.network import SimWorld
from sim.ports import sim_ports
from tests.client.test_pings import CONFIG, Swarm, swarm
from tests.client.test_planner import server

NOTICED_S = QUIET_S + CONFIG.step_timeout_min_s


def vitals_of(some: Swarm) -> Vitals:
    ports = sim_ports(some.world, "client", network=some.network, compute=SimCompute(flat_cost(0.001)))
    return Vitals(CONFIG, ports, some.peers, some.planner, some.view, server("x", 0, 8).model, Span(0, 8))


async def test_silence_is_noticed_before_heartbeats_do():
    async with SimWorld(seed=3) as world:
        some = Swarm(world)
        peer = some.add("a", 0, 8, 0.05)
        vitals = vitals_of(some)
        await vitals.measure([peer], 5.0)
        with trio.move_on_after(60.0) as patience:
            await vitals.wait_silence(peer)
        assert patience.cancelled_caught  # as long as it answers we wait
        world.partition(["a"])
        began = trio.current_time()
        await vitals.wait_silence(peer)
        assert trio.current_time() - began == pytest.approx(NOTICED_S)


async def test_where_one_falls_silent_others_are_looked_at():
    async with SimWorld(seed=3) as world:
        some = Swarm(world)
        gone = [some.add("a", 0, 8, 0.01), some.add("b", 0, 8, 0.01)]
        here = some.add("c", 0, 8, 0.1)
        vitals = vitals_of(some)
        await vitals.measure([*gone, here], 5.0)
        world.partition(["a", "b"])
        await vitals.wait_silence(gone[0])
        assert not some.peers.banned(here, trio.current_time())
        assert some.peers.banned(gone[1], trio.current_time())


async def test_who_is_gone_is_not_chosen_again_until_it_is_back():
    """Whatever its ban, which for a first failure is shorter than it takes to find out."""
    async with swarm() as some:
        best, other = some.add("best", 0, 8, 0.005), some.add("other", 0, 8, 0.1)
        await trio.sleep(20)
        some.world.partition(["best"])
        some.peers.failed(best, trio.current_time())
        for _ in range(100):
            assert some.chosen() == [other]
            await trio.sleep(1)
        some.world.heal()
        healed = trio.current_time()
        await some.until(best)
        assert trio.current_time() - healed < 10.0
        assert some.peers.doubted(best) is False
