"""A server's life in a simulated swarm: it joins where it is needed, serves, and leaves with a word."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import trio

from p2pllm.config import Config, ServerConfig, local
from p2pllm.dht.record import Announcement, verify
from p2pllm.dht.service import Directory
from p2pllm.errors import CheckpointError, StorageError, UserError
from p2pllm.local.storage import DiskStorage
from p2pllm.server.service import Plan, Server
from p2pllm.server.weights import CheckpointWeights
from p2pllm.types import ServerState, Span
from p2pllm.wire import INFO, SESSION
from p2pllm.wire.messages import Answer, Close, Fault, FaultKind, Info, InfoRequest, Opened
from sim.network import SimWorld
from sim.ports import sim_ports
from sim.storage import MemoryStorage
from tests.server.support import BLOCKS, MODEL, Caller, alone, config, sid, tokens, weights


class Weights:
    """The random model as a checkpoint."""

    config = config()

    def __init__(self, fail: Exception | None = None) -> None:
        self.fail = fail

    def span_tensors(
        self, span: Span, dtype: torch.dtype | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Callable[[str], torch.Tensor]:
        def get(name: str) -> torch.Tensor:
            if self.fail is not None:
                raise self.fail
            if progress is not None:
                progress(1, 2)
            return weights(name).to(dtype)

        return get


SETTINGS = replace(local(), server=ServerConfig(cache_tokens=256, exact=True, drain_timeout_s=5.0))


@dataclass
class Swarm:
    world: SimWorld
    nursery: trio.Nursery
    directory: Directory
    """Somebody's view."""
    storage: MemoryStorage

    def server(self, host: str, /, settings: Config = SETTINGS, fail: Exception | None = None, **plan: Any) -> Server:
        ports = sim_ports(self.world, host, storage=self.storage)
        directory = Directory(ports, settings, [MODEL])
        self.nursery.start_soon(directory.run)
        weights = CheckpointWeights(Weights(fail))
        return Server(ports, settings, directory, weights, Plan(MODEL, **plan))

    async def start(self, host: str, /, **plan: Any) -> Server:
        server = self.server(host, **plan)
        span = await self.nursery.start(server.run)
        assert span == server.span
        return server

    async def seen(self, name: str, *states: ServerState) -> Announcement:
        """What the swarm hears of a server, once it is in one of ``states``."""
        with trio.fail_after(30):
            while True:
                for ann in self.directory.view.announcements(MODEL):
                    if ann.peer == self.world.hosts[name].me and ann.state in states:
                        return ann
                await self.directory.wait_changed()


@asynccontextmanager
async def swarm() -> AsyncIterator[Swarm]:
    async with SimWorld() as world, trio.open_nursery() as nursery:
        directory = Directory(sim_ports(world, "first"), SETTINGS)
        nursery.start_soon(directory.run)
        yield Swarm(world, nursery, directory, MemoryStorage())
        nursery.cancel_scope.cancel()


async def test_serves_announces_and_leaves():
    async with swarm() as some:
        server = await some.start("server", span=Span(0, BLOCKS), name="mine")
        ann = await some.seen("server", ServerState.ONLINE)
        assert (ann.span, ann.num_blocks, ann.name, ann.cache_tokens_free) == (Span(0, 4), 4, "mine", 256)
        assert ann.numerics.exact
        assert ann.throughput.inference > 0
        assert ann.throughput.forward > 0
        client = some.world.host("client")
        info = await (await Caller.dial(client, some.world.hosts["server"], INFO)).ask(InfoRequest(1, MODEL))
        assert isinstance(info, Info)
        assert verify(info.record).state is ServerState.ONLINE
        caller = await Caller.dial(client, some.world.hosts["server"], SESSION)
        assert await caller.open() == Opened(sid(1), 0, ann.numerics.tag())
        assert torch.equal(await caller.output(1, 0, (0,), tokens(5)), alone(tokens(5)))
        server.stop()
        await some.seen("server", ServerState.DRAINING)
        assert isinstance(await caller.step(1, 1, (5,), tokens(1)), Answer), "sessions go on while it drains"
        assert isinstance(await caller.open(2), Fault)
        await caller.ask(Close(sid(1)))
        await some.seen("server", ServerState.OFFLINE)


async def test_draining_does_not_wait_for_ever():
    async with swarm() as some:
        server = await some.start("server", span=Span(0, BLOCKS))
        caller = await Caller.dial(some.world.host("client"), some.world.hosts["server"], SESSION)
        await caller.open()
        begun = trio.current_time()
        server.stop()
        last, _ = await caller.next()
        assert isinstance(last, Fault)
        assert last.kind is FaultKind.GONE
        await some.seen("server", ServerState.OFFLINE)
        assert trio.current_time() - begun < 12


async def test_live_traffic_corrects_the_announced_speed():
    async with swarm() as some:
        server = await some.start("server", span=Span(0, BLOCKS))
        first = await some.seen("server", ServerState.ONLINE)
        assert server.serving is not None
        server.serving.engine.step_s = 1 / (BLOCKS * 7.0)
        with trio.fail_after(30):
            while (await some.seen("server", ServerState.ONLINE)).throughput == first.throughput:
                await some.directory.wait_changed()
        assert (await some.seen("server", ServerState.ONLINE)).throughput.inference == pytest.approx(7.0)


async def test_joiners_take_the_weakest_blocks():
    async with swarm() as some:
        for name in ("a", "b", "c"):
            await some.start(name, num_blocks=2, throughput=10.0)
            await some.seen(name, ServerState.ONLINE)
        await some.start("d", span=Span(2, 4), throughput=100.0)
        await some.seen("d", ServerState.ONLINE)
        await some.start("e", num_blocks=2, throughput=10.0)
        spans = [(await some.seen(name, ServerState.ONLINE)).span for name in "abcde"]
        assert spans == [Span(0, 2), Span(2, 4), Span(0, 2), Span(2, 4), Span(0, 2)]


async def test_as_many_blocks_as_fit():
    async with swarm() as some:
        block, token = 4 * (32 * 8 * 12 + 3 * 32 * 64 + 64), 4 * 2 * 2 * 8
        server = await some.start("server", memory_bytes=3 * (block + 256 * token))
        assert server.span == Span(0, 3)
        with pytest.raises(UserError, match="fits"):
            await some.server("small", memory_bytes=block).run()


async def test_cancelling_says_goodbye_too():
    async with swarm() as some:
        server = some.server("server", span=Span(0, 1))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                await some.seen("server", ServerState.ONLINE)
                scope.cancel()
        await some.seen("server", ServerState.OFFLINE)


async def test_a_broken_checkpoint_is_one_clear_error_and_no_ghost():
    async with swarm() as some:
        server = some.server("server", fail=CheckpointError("tensor x is missing"), span=Span(0, 1))
        with pytest.raises(CheckpointError, match="tensor x"):
            await server.run()
        await some.seen("server", ServerState.OFFLINE)
        with pytest.raises(UserError, match="4 blocks"):
            await some.server("other", span=Span(3, 5)).run()


async def test_stopping_while_it_loads():
    async with swarm() as some:
        server = some.server("server", span=Span(0, BLOCKS))
        server.stop()
        with trio.fail_after(20):
            await server.run()
        await some.seen("server", ServerState.OFFLINE)
        with pytest.raises(StorageError, match="disk"):
            await some.server("other", fail=StorageError("disk gone"), span=Span(0, 1)).run()


@pytest.mark.real_clock
async def test_cancelling_does_not_wait_for_the_rest_of_a_download():
    class Slow(Weights):
        read = 0

        def span_tensors(self, span: Span, dtype: Any = None, progress: Any = None) -> Callable[[str], torch.Tensor]:
            get = super().span_tensors(span, dtype, progress)

            def slowly(name: str) -> torch.Tensor:
                self.read += 1
                time.sleep(0.2)
                return get(name)

            return slowly

    async with swarm() as some:
        ports = replace(sim_ports(some.world, "server"), storage=DiskStorage())
        slow = Slow()
        server = Server(ports, SETTINGS, some.directory, CheckpointWeights(slow), Plan(MODEL, span=Span(0, BLOCKS)))
        with trio.move_on_after(0.5) as patience:
            await server.run()
        assert patience.cancelled_caught
        assert slow.read < 9, "a block alone has nine tensors"


async def test_the_measured_speed_is_remembered():
    async with swarm() as some:
        first = await some.start("a", span=Span(0, 2), throughput_path="speed.json")
        await some.start("b", span=Span(0, 4), throughput_path="speed.json")
        a, b = [await some.seen(name, ServerState.ONLINE) for name in "ab"]
        assert a.throughput.inference == pytest.approx(2 * b.throughput.inference), "per block, and b has twice as many"
        assert first.serving is not None
        assert first.serving.engine.passes == 0


async def test_the_way_to_the_next_hop_is_announced():
    async with swarm() as some:
        await some.start("front", span=Span(0, 2))
        await some.start("back", span=Span(2, BLOCKS))
        some.world.set_latency("front", "back", 0.03)
        last = some.world.hosts["back"].me
        with trio.fail_after(120):
            while not (await some.seen("front", ServerState.ONLINE)).pings:
                await some.directory.wait_changed()
        pings = (await some.seen("front", ServerState.ONLINE)).pings
        assert [peer for peer, _ in pings] == [last]
        assert pings[0][1] == pytest.approx(0.06)
        assert (await some.seen("back", ServerState.ONLINE)).pings == ()
