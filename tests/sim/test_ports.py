"""The bundle of simulated ports: seeded, separate per host."""

from __future__ import annotations

import pytest
import trio

from p2pllm.errors import StorageError
from sim.network import SimWorld
from sim.ports import sim_ports


async def test_every_host_has_ports_of_its_own_and_all_follow_from_the_seed():
    async with SimWorld(5) as world, SimWorld(5) as same:
        a, b, again = sim_ports(world, "a"), sim_ports(world, "b"), sim_ports(same, "a")
        token, number = a.token_bytes(16), a.rng.random()
        assert (token, number) == (again.token_bytes(16), again.rng.random())
        assert (token, number) != (b.token_bytes(16), b.rng.random())
        world.skew("b", 9)
        assert b.wall_time() == pytest.approx(a.wall_time() + 9)
        await a.storage.run(lambda: a.storage.write("x", b"mine"))
        assert a.storage.read("x", 0, 4) == b"mine"
        with pytest.raises(StorageError):
            b.storage.size("x")
        await trio.lowlevel.checkpoint()
