"""The blocks of a swarm as something to differentiate: the numbers of one process, whoever answers and whoever dies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import trio

from p2pllm.client.blocks import Blocks, Forwarded
from p2pllm.client.context import Context, HopLost
from p2pllm.errors import UserError
from p2pllm.model.span import Segment
from p2pllm.types import Span
from tests.client.harness import CONFIG, Swarm, open_swarm

CUTS = replace(CONFIG, client=replace(CONFIG.client, forward_chunk_tokens=20))
BATCH, LENGTH, WIDTH = 9, 10, 32


def blocks_of(context: Context) -> Blocks:
    return Blocks(context, context.whole)


def noise(seed: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(BATCH, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def alone(swarm: Swarm, hidden: torch.Tensor, gradient: torch.Tensor, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient at the inputs by one process, in the parts that the client cuts."""
    out, back = [], []
    for x, g in zip(hidden.split(2), gradient.split(2), strict=True):
        segments = [Segment(x.shape[1])] * len(x)
        out.append(swarm.reference.blocks.run(x.flatten(0, 1), segments, span=span).view(x.shape))
        back.append(
            swarm.reference.blocks.backward(x.flatten(0, 1), g.flatten(0, 1), segments, span=span).view(x.shape)
        )
    return torch.cat(out), torch.cat(back)


async def both_ways(blocks: Blocks, between: Callable[[], None] | None = None) -> tuple[Forwarded, torch.Tensor]:
    forwarded = await blocks.run_forward(noise(1))
    if between is not None:
        between()
    return forwarded, await blocks.run_backward(forwarded, noise(2))


@pytest.mark.parametrize("spans", [[(0, 6)], [(0, 2), (2, 5), (5, 6)]])
async def test_outputs_and_gradients_are_those_of_one_process(spans: list[tuple[int, int]]):
    async with open_swarm(*spans, config=CUTS) as swarm:
        blocks = blocks_of(swarm.context())
        forwarded, gradient = await both_ways(blocks)
        out, back = alone(swarm, noise(1), noise(2), Span(0, 6))
        assert torch.equal(forwarded.output, out)
        assert torch.equal(await blocks.run(noise(1)), out)
        assert torch.equal(gradient, back)


async def test_it_is_the_derivative():
    """A small step along the gradient changes a function of the outputs by what the gradient says."""
    async with open_swarm((0, 3), (3, 6), config=CUTS) as swarm:
        blocks = blocks_of(swarm.context())
        _, gradient = await both_ways(blocks)
        along = noise(3) * 1e-3
        higher, lower = await blocks.run(noise(1) + along), await blocks.run(noise(1) - along)
        change = ((higher - lower).double() * noise(2).double()).sum().item() / 2
        assert change == pytest.approx((gradient.double() * along.double()).sum().item(), rel=1e-2)


async def test_some_of_the_blocks():
    async with open_swarm((0, 4), (4, 6), config=CUTS) as swarm:
        some = blocks_of(swarm.context())[1:5]
        assert (some.span, len(some), some[2].span) == (Span(1, 5), 4, Span(3, 4))
        forwarded, gradient = await both_ways(some)
        out, back = alone(swarm, noise(1), noise(2), Span(1, 5))
        assert torch.equal(forwarded.output, out)
        assert torch.equal(gradient, back)


async def test_a_server_that_dies_between_the_ways_is_replaced():
    async with open_swarm((0, 3), (3, 6), (3, 6), (0, 3), config=CUTS) as swarm:
        _, expected = await both_ways(blocks_of(swarm.context()))
        used = swarm.context()

        def kill() -> None:
            for name in ("s0", "s2"):
                swarm.world.kill(name)

        _, gradient = await both_ways(blocks_of(used), kill)
        assert torch.equal(gradient, expected)


async def test_several_servers_stand_in_for_one():
    """Nobody else holds what the dead one held: its blocks go forward again through two, then back."""
    async with open_swarm((0, 6), (0, 2), (2, 4), (4, 6), config=CUTS) as swarm:
        context = swarm.context()
        blocks = blocks_of(context)
        forwarded = await blocks.run_forward(noise(1))
        names = {way.hop.peer_id for ways in forwarded._passed.values() for way in ways}
        assert names == {swarm.members[0].peer}
        expected = await blocks.run_backward(forwarded, noise(2))
        swarm.world.kill("s0")
        assert torch.equal(await blocks.run_backward(forwarded, noise(2)), expected)
        assert context.peers.banned(swarm.members[0].peer, trio.current_time())


async def test_one_that_dies_on_the_way_back_costs_its_blocks_only():
    async with open_swarm((0, 3), (3, 6), (3, 6), (0, 3), config=CUTS) as swarm:
        _, expected = await both_ways(blocks_of(swarm.context()))
        blocks = blocks_of(swarm.context())
        forwarded = await blocks.run_forward(noise(1))
        used = {way.hop.peer_id for ways in forwarded._passed.values() for way in ways}
        victim = next(member for member in swarm.members if member.peer in used)

        async def kill() -> None:
            await trio.sleep(0.1)
            swarm.world.kill(f"s{swarm.members.index(victim)}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            gradient = await blocks.run_backward(forwarded, noise(2))
        assert torch.equal(gradient, expected)


async def test_blocks_that_nobody_else_holds_are_named():
    impatient = replace(CUTS, client=replace(CUTS.client, patience_s=4.0))
    async with open_swarm((0, 3), (3, 6), config=impatient) as swarm:
        blocks = blocks_of(swarm.context())
        forwarded = await blocks.run_forward(noise(1))
        swarm.world.kill("s0")
        with pytest.raises(HopLost, match="blocks 0-2"):
            await blocks.run_backward(forwarded, noise(2))


async def test_short_gradients_travel_in_fewer_bytes():
    async with open_swarm((0, 3), (3, 6), config=CUTS) as swarm:
        blocks = blocks_of(swarm.context())
        forwarded, expected = await both_ways(blocks)
        for codec, error in (("bf16", 0.03), ("int8", 0.05)):
            found = await blocks.run_backward(forwarded, noise(2), gradients=codec)
            assert 0 < (found - expected).norm() < error * expected.norm()


async def test_mistakes_are_told_before_anything_is_sent():
    async with open_swarm((0, 6), config=CUTS) as swarm:
        blocks = blocks_of(swarm.context())
        forwarded = await blocks.run_forward(noise(1))
        for hidden in (noise(1)[0], noise(1)[:, :, :31], noise(1)[:0], noise(1).long()):
            with pytest.raises(UserError):
                await blocks.run(hidden)
        with pytest.raises(UserError, match="at most"):
            await blocks.run(noise(1, 1025))
        with pytest.raises(UserError, match="a gradient of shape"):
            await blocks.run_backward(forwarded, noise(2)[:3])
        with pytest.raises(UserError, match="int4"):
            await blocks.run(noise(1), activations="int4")
        with pytest.raises(UserError, match="consecutive"):
            blocks[4:2]
        with pytest.raises(UserError, match="consecutive"):
            blocks[::2]
