"""Steps and tokens by the clock: the figures themselves, and that they are those of the chain."""

from __future__ import annotations

import pytest

from p2pllm.config import Config
from sim.compute import SimCompute, flat_cost
from sim.measuring import Generated, Load, Pace, Timed, generate, time_steps
from sim.swarm import open_swarm
from sim.toy import ToyModel

SPANS = ((0, 2), (2, 4))


def test_the_middle_and_what_lies_around_it():
    timed = Timed((1.0, 2.0, 3.0, 4.0, 5.0), ("0:2",))
    assert timed.median_s == 3.0
    assert timed.spread == pytest.approx(0.5)  # quartiles at 1.5 and 4.5
    assert Timed((1.0,), ()).spread == 0.0


def test_a_pause_is_what_the_longest_wait_has_beyond_the_usual():
    assert Generated((1, 2, 3, 4), (0.0, 1.0, 2.0, 5.0), 1, ()).pause_s == pytest.approx(2.0)


async def test_steps_take_latencies_and_passes():
    """Two hops, relayed: four ways, two passes of servers and two of the client; nothing else passes time."""
    async with (
        open_swarm(ToyModel(4), SPANS, _relayed(), latency_s=0.1, compute=lambda: SimCompute(flat_cost(0.01))) as swarm,
        swarm.client() as client,
    ):
        timed = await time_steps(client.model, Load(3, "fp32"), Pace(position=4, warmup=2, steps=5))
    assert len(timed.step_s) == 5
    assert timed.step_s == pytest.approx((0.44,) * 5)
    assert timed.spread == pytest.approx(0.0, abs=1e-9)
    assert timed.chain == ("0:2", "2:4")


async def test_whoever_listens_hears_of_every_token_and_of_who_serves():
    heard = []
    async with open_swarm(ToyModel(4), SPANS, _relayed()) as swarm, swarm.client() as client:
        done = await generate(client.model, (1, 2, 3), 6, lambda count, peers: heard.append((count, peers)))
        servers = tuple(server.peer for server in swarm.servers.values())
    assert [count for count, _ in heard] == [1, 2, 3, 4, 5, 6]
    assert {peers for _, peers in heard} == {servers}
    assert len(done.tokens) == len(done.times_s) == 6
    assert done.recoveries == 0
    assert done.pause_s == pytest.approx(0.0, abs=1e-9)


def _relayed() -> Config:
    from dataclasses import replace

    config = Config()
    return replace(config, client=replace(config.client, push="off"))
