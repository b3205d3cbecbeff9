"""The twin of a swarm of processes: whole nodes, told what computing takes, on either stack."""

from __future__ import annotations

import pytest

from sim.compute import flat_cost
from sim.measuring import Load, Pace, Timed, time_steps
from sim.run import run
from sim.toy import ToyModel
from sim.virtual import VirtualSpec, open_virtual

SERVERS = {"s0": (0, 2), "s1": (2, 4)}
STACKS = ("ports", "libp2p")


def play(stack: str, push: str, mbit: float | None = None, seed: int = 0) -> tuple[Timed, str]:
    spec = VirtualSpec(stack, SERVERS, flat_cost(0.002), 20.0, mbit, 1.0, push, seed)

    async def main() -> tuple[Timed, str]:
        async with open_virtual(ToyModel(4), spec) as swarm:
            timed = await time_steps(swarm.model, Load(2, "fp32"), Pace(position=4, warmup=2, steps=3))
            return timed, swarm.world.trace_hash()

    return run(main, seed)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("push", "ways"), [("off", 4), ("on", 3)])
def test_steps_take_ways_messages_and_passes(stack: str, push: str, ways: int) -> None:
    """Each way is the latency and what a message costs its ends; four passes of 2 ms."""
    timed, _ = play(stack, push)
    assert timed.chain == ("0:2", "2:4")
    assert timed.median_s == pytest.approx(ways * 0.021 + 4 * 0.002, rel=1e-6)


@pytest.mark.parametrize("stack", STACKS)
def test_narrow_links_take_longer(stack: str) -> None:
    """The toy's messages are small, but not nothing."""
    assert play(stack, "off", 0.1)[0].median_s > play(stack, "off")[0].median_s + 0.01


@pytest.mark.parametrize("stack", STACKS)
def test_the_same_seed_is_the_same_trace(stack: str) -> None:
    assert play(stack, "on", seed=3)[1] == play(stack, "on", seed=3)[1]
