from __future__ import annotations

import pytest
import torch
import trio

from p2pllm.client.chunks import cut
from p2pllm.client.context import HopLost
from p2pllm.client.edge import Packed, pack
from p2pllm.client.flow import Flow, first_of
from p2pllm.client.legs import Leg
from p2pllm.client.past import Tokens, entries_of
from p2pllm.client.replay import History
from p2pllm.client.route import Hop
from p2pllm.errors import PeerLost
from p2pllm.types import PeerId, Span
from sim.storage import MemoryStorage
from tests.client.harness import CONFIG, open_swarm

WINDOW = CONFIG.client.steps_in_flight


class FakeHop:
    """Answers every step with its input, ``seconds`` after it came, one after the other."""

    def __init__(self, number: int, seconds: float, breaks_at: int | None = None) -> None:
        self.hop = Hop(PeerId(f"hop{number}"), Span(number, number + 1))
        self.span = self.hop.span
        self.seconds = seconds
        self.breaks_at = breaks_at
        self.waiting: list[Packed] = []
        self.steps: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
        self.most = 0
        self.abandoned = self.unsettled = False
        self.arrived = trio.Event()

    async def send(self, positions, counts, packed, *, tail=-1, sources=(), acked=None):
        await trio.sleep(0.001)
        self.steps.append((positions, counts, tail))
        self.waiting.append(packed)
        self.arrived.set()
        self.most = max(self.most, len(self.waiting))

    async def receive(self, *, mend=True):
        await trio.sleep(self.seconds)
        while not self.waiting:
            self.arrived = trio.Event()
            await self.arrived.wait()
        if len(self.steps) - len(self.waiting) == self.breaks_at:
            raise PeerLost("gone")
        return self.waiting.pop(0)

    def abandon(self):
        self.abandoned = True

    async def revive(self):
        await trio.sleep(0.001)


class Mender:
    """Replaces a broken leg by ``spares``, which hold whatever is asked for."""

    def __init__(self, legs: list[Leg], spares: list[Leg]) -> None:
        self.legs = legs
        self.spares = spares

    async def mend(self, leg, cause, rows):
        await trio.sleep(0.05)
        if not self.spares:
            raise HopLost(leg.place, cause)
        new, self.spares = self.spares, []
        for spare in new:
            spare.rows = rows
        at = self.legs.index(leg)
        self.legs[at : at + 1] = new
        return new

    async def prepare(self, leg, rows):
        raise AssertionError("they hold everything")

    def answered(self, leg):
        raise AssertionError("nobody was accused")


async def flow(hops, tokens=40, chunk=4, tail=-1, spares=()):
    async with open_swarm() as swarm:
        outputs = []
        rows = (Tokens(None, 0, 0, 7),)
        legs = [Leg(hop, rows) for hop in hops]
        history = History(MemoryStorage(), 4, 1, 1 << 20)

        async def source(piece):
            return pack(torch.full((piece.tokens, 4), float(piece.starts[0])), "fp32")

        async def sink(piece, packed):
            outputs.append((piece.starts[0], packed))

        mender = Mender(legs, [Leg(hop, rows) for hop in spares])
        entries = entries_of(cut((tokens,), chunk, tail), rows, (), number=0, token=7)
        try:
            await Flow(swarm.context(), legs, hops[-1].span.end, history, mender).run(entries, source, sink)
        except HopLost as lost:
            assert all(hop.abandoned for hop in hops)
            return lost
        assert all(history.knows(leg.span.start, entry) for leg in legs for entry in entries) or spares
        return outputs


async def test_chunks_keep_their_order_and_the_window():
    hops = [FakeHop(0, 0.01), FakeHop(1, 0.1), FakeHop(2, 0.02)]
    outputs = await flow(hops)
    assert [start for start, _ in outputs] == list(range(0, 40, 4))
    for hop in hops:
        assert [positions for positions, _, _ in hop.steps] == [(7 + start,) for start in range(0, 40, 4)]
        assert hop.most <= WINDOW
    assert hops[1].most == WINDOW
    assert trio.current_time() < 0.1 * 10 + 0.2


async def test_payloads_travel_unchanged_and_only_the_last_hop_trims():
    hops = [FakeHop(0, 0.01), FakeHop(1, 0.01)]
    outputs = await flow(hops, tokens=10, chunk=4, tail=1)
    assert [tail for _, _, tail in hops[0].steps] == [-1, -1, -1]
    assert [tail for _, _, tail in hops[1].steps] == [0, 0, 1]
    assert [bytes(packed.payload) for _, packed in outputs] == [
        bytes(pack(torch.full((count, 4), float(start)), "fp32").payload) for start, count in [(0, 2), (2, 4), (6, 4)]
    ]


@pytest.mark.parametrize("chunk", [4, 100])
async def test_what_cannot_be_mended_ends_the_flow(chunk):
    hops = [FakeHop(0, 0.01), FakeHop(1, 0.02, breaks_at=0), FakeHop(2, 0.01)]
    lost = await flow(hops, chunk=chunk)
    assert isinstance(lost, HopLost)
    assert lost.hop is hops[1].hop
    assert "was lost: gone" in str(lost)


@pytest.mark.parametrize("spares", [1, 2, 3])
@pytest.mark.parametrize("breaks_at", range(10))
@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_leg_is_mended_where_it_is_and_nothing_is_sent_twice_elsewhere(lost, breaks_at, spares):
    hops = [FakeHop(n, 0.01, breaks_at if n == lost else None) for n in range(3)]
    fresh = [FakeHop(lost, 0.01 * n) for n in range(spares)]
    outputs = await flow(hops, spares=fresh)
    assert [start for start, _ in outputs] == list(range(0, 40, 4))
    for number, hop in enumerate(hops):
        if number != lost:
            assert len(hop.steps) == 10
    assert [positions for positions, _, _ in fresh[0].steps] == [(7 + 4 * i,) for i in range(breaks_at, 10)]


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
