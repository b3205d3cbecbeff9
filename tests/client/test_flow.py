from __future__ import annotations

import pytest
import torch
import trio

from p2pllm.client.chunks import cut
from p2pllm.client.context import HopLost
from p2pllm.client.edge import Packed, pack
from p2pllm.client.flow import Flow, first_of
from p2pllm.client.route import Hop
from p2pllm.errors import PeerLost
from p2pllm.types import PeerId, Span
from tests.client.harness import CONFIG, open_swarm

WINDOW = CONFIG.client.steps_in_flight


class FakeHop:
    """Answers every step with its input, ``seconds`` after it came, one after the other."""

    def __init__(self, seconds: float, breaks_at: int | None = None) -> None:
        self.hop = Hop(PeerId(f"hop{seconds}"), Span(0, 1))
        self.seconds = seconds
        self.breaks_at = breaks_at
        self.waiting: list[Packed] = []
        self.steps: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
        self.most = 0
        self.arrived = trio.Event()

    async def send(self, positions, counts, packed, *, tail=-1, sources=()):
        await trio.sleep(0.001)
        self.steps.append((positions, counts, tail))
        self.waiting.append(packed)
        self.arrived.set()
        self.most = max(self.most, len(self.waiting))

    async def receive(self):
        await trio.sleep(self.seconds)
        while not self.waiting:
            self.arrived = trio.Event()
            await self.arrived.wait()
        if len(self.steps) - len(self.waiting) == self.breaks_at:
            raise PeerLost("gone")
        return self.waiting.pop(0)


async def flow(hops, tokens=40, chunk=4, tail=-1):
    async with open_swarm() as swarm:
        outputs = []

        async def source(piece):
            return pack(torch.full((piece.tokens, 4), float(piece.starts[0])), "fp32")

        async def sink(piece, packed):
            outputs.append((piece.starts[0], packed))

        try:
            await Flow(swarm.context(), hops, (7,)).run(cut((tokens,), chunk, tail), source, sink)
        except HopLost as lost:
            return lost
        return outputs


async def test_chunks_keep_their_order_and_the_window():
    hops = [FakeHop(0.01), FakeHop(0.1), FakeHop(0.02)]
    outputs = await flow(hops)
    assert [start for start, _ in outputs] == list(range(0, 40, 4))
    for hop in hops:
        assert [positions for positions, _, _ in hop.steps] == [(7 + start,) for start in range(0, 40, 4)]
        assert hop.most <= WINDOW
    assert hops[1].most == WINDOW
    assert trio.current_time() < 0.1 * 10 + 0.2


async def test_payloads_travel_unchanged_and_only_the_last_hop_trims():
    hops = [FakeHop(0.01), FakeHop(0.01)]
    outputs = await flow(hops, tokens=10, chunk=4, tail=1)
    assert [tail for _, _, tail in hops[0].steps] == [-1, -1, -1]
    assert [tail for _, _, tail in hops[1].steps] == [0, 0, 1]
    assert [bytes(packed.payload) for _, packed in outputs] == [
        bytes(pack(torch.full((count, 4), float(start)), "fp32").payload) for start, count in [(0, 2), (2, 4), (6, 4)]
    ]


@pytest.mark.parametrize("chunk", [4, 100])
async def test_the_first_failure_ends_the_flow(chunk):
    hops = [FakeHop(0.01), FakeHop(0.02, breaks_at=0), FakeHop(0.01)]
    lost = await flow(hops, chunk=chunk)
    assert isinstance(lost, HopLost)
    assert lost.hop is hops[1].hop
    assert "was lost: gone" in str(lost)


def test_first_of_finds_the_error_among_cancellations():
    error = ValueError("it")
    assert first_of(ExceptionGroup("", [ExceptionGroup("", [error]), KeyError()])) is error


async def test_first_of_leaves_cancellations_alone():
    caught = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep(1)
        except trio.Cancelled as exc:
            caught = exc
            raise
    group = BaseExceptionGroup("", [caught])
    assert first_of(group) is group
