"""One hop against a server that is scripted message by message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from p2pllm.client.edge import Packed
from p2pllm.client.hop import HopSession
from p2pllm.client.link import Links, PeerSilent
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop
from p2pllm.client.talk import REATTACHES_MAX
from p2pllm.config import Config
from p2pllm.errors import ClientFault, Overloaded, PeerLost, RemoteProtocolError, ServerFault, SessionGone
from p2pllm.types import ModelId, PeerId, SessionId, Span
from p2pllm.wire import SESSION
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import (
    Answer,
    Attach,
    Attached,
    Close,
    Closed,
    Fault,
    FaultKind,
    Open,
    Opened,
    Step,
    TensorHeader,
)  # fmt: skip
from sim.network import SimWorld

HIDDEN = 4
ID = SessionId(bytes(range(16)))
CONFIG = replace(Config(), client=replace(Config().client, step_timeout_s=5.0, reattach_timeout_s=3.0))
CLOSE_STREAM = object()


class Scripted:
    """Serves one session of one row; answers a step with its own input unless ``on_step`` says otherwise."""

    def __init__(self) -> None:
        self.on_step: Callable[[Step], object] = lambda step: None
        self.on_open: Callable[[Open], object] = lambda message: None
        self.on_attach: Callable[[Attach], object] = lambda message: None
        self.log: list[str] = []
        self.done: dict[int, bytes] = {}
        self.position = 0
        self.streams = 0
        self.delay_s = 0.0

    async def handle(self, stream) -> None:
        self.streams += 1
        reader = MessageReader()
        while data := await stream.receive_some():
            for message, payload in reader.feed(data):
                self.log.append(type(message).__name__)
                reply = self.reply(message, payload)
                await trio.sleep(self.delay_s)
                if reply is CLOSE_STREAM:
                    stream.abort()
                    return
                if reply is not None:
                    await stream.send_all(reply if isinstance(reply, bytes) else encode_message(reply))
        await stream.aclose()

    def reply(self, message, payload):
        match message:
            case Open():
                return self.on_open(message) or Opened(ID, 0, "class")
            case Attach():
                scripted = self.on_attach(message)
                attached = Attached(ID, 0, max(self.done, default=-1), (self.position,))
                return attached if scripted is None else scripted
            case Close():
                return Closed(ID)
            case Step():
                return self.step(message, bytes(payload))

    def step(self, step: Step, payload: bytes):
        scripted = self.on_step(step)
        if scripted is not None:
            return scripted
        if step.step not in self.done:
            self.position = step.positions[0] + step.counts[0]
            answer = Answer(ID, 0, step.step, (self.position,), step.tensor, 0.0, 0.01)
            self.done[step.step] = encode_message(answer, payload)
        return self.done[step.step]


@asynccontextmanager
async def hopping(config: Config = CONFIG):
    async with SimWorld(seed=1, latency_s=0.05) as world:
        server, client = world.host("server"), world.host("client")
        client.learn(server.me, server.addrs)
        script = Scripted()
        server.serve(SESSION, script.handle)
        links, peers = Links(client, config), Peers(config.client)
        open_ = Open(ID, 0, ModelId("ab" * 32), Span(2, 4), 1, 100, "fp32")
        hop = HopSession(links, peers, config, Hop(server.me, Span(2, 4)), open_, HIDDEN)
        yield world, script, hop, links, peers
        await hop.aclose()


def packed(tokens: int = 1, value: int = 0) -> Packed:
    payload = bytes([value]) + bytes(tokens * HIDDEN * 4 - 1)
    return Packed(TensorHeader("fp32", (tokens, HIDDEN), len(payload)), payload)


async def step(hop: HopSession, position: int, value: int = 0) -> Packed:
    await hop.send((position,), (1,), packed(value=value))
    return await hop.receive()


async def test_steps_come_back_in_order_and_tell_what_the_hop_costs():
    async with hopping() as (_, script, hop, _, peers):
        await hop.open()
        assert hop.numerics == "class"
        assert (await step(hop, 0, 7)).payload[0] == 7
        for i in range(1, 5):
            await hop.send((i,), (1,), packed(value=i))
        assert [(await hop.receive()).payload[0] for _ in range(4)] == [1, 2, 3, 4]
        assert peers.hop_s(hop.peer_id) == pytest.approx(0.09)
        assert peers.block_s(hop.peer_id) == pytest.approx(0.005)
        await hop.aclose()
        assert script.log == ["Open", *["Step"] * 5, "Close"]


async def test_a_long_step_tells_nothing_of_the_hop():
    async with hopping() as (_, _, hop, _, peers):
        await hop.open()
        await hop.send((0,), (20,), packed(20))
        await hop.receive()
        assert peers.hop_s(hop.peer_id) is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (FaultKind.CLIENT, ClientFault),
        (FaultKind.GONE, SessionGone),
        (FaultKind.INTERNAL, ServerFault),
    ],
)
async def test_faults_are_errors_by_blame(fault, error):
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: Fault(fault, "because", ID, 0, step.step)
        with pytest.raises(error, match="because"):
            await step(hop, 0)


async def test_opening_may_be_refused():
    async with hopping() as (_, script, hop, _, _):
        script.on_open = lambda message: Fault(FaultKind.BUSY, "full", ID, 0, -1, 7.0)
        with pytest.raises(Overloaded, match="full") as caught:
            await hop.open()
        assert caught.value.retry_after_s == 7.0


async def test_a_busy_server_gets_the_steps_again():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        refused = []

        def busy_twice(step):
            if step.step == 1 and len(refused) < 2:
                refused.append(step)
                return Fault(FaultKind.BUSY, "later", ID, 0, 1, 0.5)
            return b"" if step.step == 2 and len(refused) < 2 and not script.done.get(1) else None

        script.on_step = busy_twice
        for i in range(2):
            await hop.send((i,), (1,), packed(value=i))
        assert [(await hop.receive()).payload[0] for _ in range(2)] == [0, 1]
        assert trio.current_time() > 1.0
        assert hop.reattached == 0


IMPATIENT = replace(CONFIG, client=replace(CONFIG.client, patience_s=0.0))


async def test_a_server_that_stays_busy_is_given_up():
    async with hopping(IMPATIENT) as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: Fault(FaultKind.BUSY, "later", ID, 0, step.step, 2.0)
        began = trio.current_time()
        with pytest.raises(Overloaded):
            await step(hop, 0)
        assert trio.current_time() - began < CONFIG.client.step_timeout_s


async def test_a_busy_server_is_waited_for_as_long_as_we_have_patience():
    """It is there, and has the caches; going elsewhere would cost a replay, and add to the load."""
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        free_at = trio.current_time() + 4 * CONFIG.client.step_timeout_s
        busy = Fault(FaultKind.BUSY, "later", ID, 0, 0, 2.0)
        script.on_step = lambda step: busy if trio.current_time() < free_at else None
        await step(hop, 0)
        assert free_at < trio.current_time() < free_at + 3.0


async def test_a_server_that_answers_other_steps_is_at_work():
    async with hopping() as (world, script, hop, _, peers):
        await hop.open()
        for i in range(4):
            await step(hop, i)
        script.delay_s = 1.5 * CONFIG.client.step_timeout_min_s

        async def others() -> None:
            for _ in range(3):
                await trio.sleep(1.0)
                peers.took(hop.peer_id, 1.0, 0.1, trio.current_time())

        world.nursery.start_soon(others)
        await step(hop, 4)
        script.delay_s = 100.0  # the others have ended: from now on it is silent
        began = trio.current_time()
        with pytest.raises(PeerSilent):
            await step(hop, 5)
        assert trio.current_time() - began <= CONFIG.client.step_timeout_s


async def test_other_answers_do_not_excuse_a_lost_step_for_ever():
    async with hopping() as (_, script, hop, _, peers):
        await hop.open()
        for i in range(4):
            await step(hop, i)
        script.delay_s = 1000.0

        async def others() -> None:
            while True:
                await trio.sleep(1.0)
                peers.took(hop.peer_id, 1.0, 0.1, trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            began = trio.current_time()
            with pytest.raises(PeerSilent):
                await step(hop, 4)
            assert trio.current_time() - began == pytest.approx(CONFIG.client.step_timeout_s)
            nursery.cancel_scope.cancel()


def lies(step: Step) -> list[bytes]:
    payload = bytes(32)
    right = Answer(ID, 0, step.step, (1,), step.tensor)
    return [
        encode_message(replace(right, tensor=TensorHeader("fp32", (2, HIDDEN), 32)), payload),
        encode_message(replace(right, tensor=TensorHeader("fp16", (1, HIDDEN), 8)), payload[:8]),
        encode_message(replace(right, positions=(2,)), payload[:16]),
        encode_message(replace(right, step=9), payload[:16]),
        encode_message(replace(right, epoch=3), payload[:16]),
        encode_message(replace(right, session=SessionId(bytes(16))), payload[:16]),
        encode_message(Opened(ID, 0, "class")),
        encode_message(Close(ID)),
        encode_message(right, payload[:16])[:-1] + b"\0",
        b"HTTP/1.1 200 OK\r\n\r\n" * 9,
    ]


@pytest.mark.parametrize("lie", range(10))
async def test_lies_are_found(lie):
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: lies(step)[lie]
        with pytest.raises(RemoteProtocolError):
            await step(hop, 0)


async def test_silence_is_not_waited_for_beyond_the_deadline():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: b""
        began = trio.current_time()
        with pytest.raises(PeerSilent):
            await step(hop, 0)
        assert trio.current_time() - began == pytest.approx(5.0, abs=0.1)
        assert script.log.count("Attach") == 0


async def test_a_stream_that_breaks_with_many_steps_under_way():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        broken = []

        def break_once(step):
            if step.step == 2 and not broken:
                broken.append(step)
                return CLOSE_STREAM
            return None

        script.on_step = break_once
        for i in range(5):
            await hop.send((i,), (1,), packed(value=i))
        assert [(await hop.receive()).payload[0] for _ in range(5)] == [0, 1, 2, 3, 4]
        assert (await step(hop, 5, 9)).payload[0] == 9
        assert hop.reattached == 1
        assert script.streams == 2


async def test_a_stream_that_keeps_breaking_is_given_up():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: CLOSE_STREAM
        with pytest.raises(PeerLost):
            await step(hop, 0)
        assert script.log.count("Attach") == REATTACHES_MAX


async def test_a_session_that_is_gone_when_the_stream_is_back():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: CLOSE_STREAM
        script.on_attach = lambda message: Fault(FaultKind.GONE, "expired", ID, 0)
        with pytest.raises(SessionGone, match="expired"):
            await step(hop, 0)


async def test_attaching_has_a_deadline():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        script.on_step = lambda step: CLOSE_STREAM
        script.on_attach = lambda message: b""
        began = trio.current_time()
        with pytest.raises(PeerLost):
            await step(hop, 0)
        assert trio.current_time() - began == pytest.approx(3.0, abs=0.3)


async def test_closing_keeps_the_stream_for_the_next_session():
    async with hopping() as (_, script, hop, links, _):
        await hop.open()
        await step(hop, 0)
        await hop.aclose()
        link, reused = await links.take(hop.peer_id, SESSION)
        assert reused
        assert script.streams == 1
        await hop.aclose()  # once more gives nothing back that is not its own any more
        assert not link.dead
        other, reused = await links.take(hop.peer_id, SESSION)
        assert other is not link
        assert not reused


async def test_closing_after_a_cancelled_step_still_frees_the_cache():
    async with hopping() as (_, script, hop, links, _):
        await hop.open()
        script.on_step = lambda step: b""
        with trio.move_on_after(1.0):
            await step(hop, 0)
        await hop.aclose()
        assert script.log[-1] == "Close"
        _, reused = await links.take(hop.peer_id, SESSION)
        assert reused


async def test_closing_over_another_stream_when_the_first_one_is_dead():
    async with hopping() as (world, script, hop, _, _):
        await hop.open()
        world.set_bandwidth("client", 100.0)
        with trio.move_on_after(0.3):
            await hop.send((0,), (20,), packed(20))  # cut off in the middle of the message
        world.set_bandwidth("client", None)
        await hop.aclose()
        assert script.log[-1] == "Close"
        assert script.streams == 2


async def test_closing_a_dead_server_takes_no_time_and_raises_nothing():
    async with hopping() as (world, _, hop, _, _):
        await hop.open()
        world.kill("server")
        await trio.sleep(1.0)
        began = trio.current_time()
        await hop.aclose()
        assert trio.current_time() - began <= CONFIG.net.close_timeout_s


async def test_a_stale_kept_stream_is_replaced_at_opening():
    async with hopping() as (_, script, hop, links, peers):
        await hop.open()
        await hop.aclose()
        breaks = [CLOSE_STREAM]
        script.on_open = lambda message: breaks.pop() if breaks else None
        again = HopSession(links, peers, CONFIG, hop.hop, Open(ID, 0, ModelId("ab"), Span(2, 4), 1, 9, "fp32"), HIDDEN)
        await again.open()
        assert script.streams == 2
        breaks[:] = [CLOSE_STREAM, CLOSE_STREAM]
        await again.aclose()
        third = HopSession(links, peers, CONFIG, hop.hop, Open(ID, 0, ModelId("ab"), Span(2, 4), 1, 9, "fp32"), HIDDEN)
        with pytest.raises(PeerLost):
            await third.open()
        await third.aclose()


async def test_a_kept_stream_that_is_lost_to_silence_is_not_dialled_again():
    async with hopping() as (world, _, hop, links, peers):
        await hop.open()
        await hop.aclose()
        world.partition(["server"])
        again = HopSession(links, peers, CONFIG, hop.hop, Open(ID, 0, ModelId("ab"), Span(2, 4), 1, 9, "fp32"), HIDDEN)
        began, net = trio.current_time(), CONFIG.net
        with pytest.raises(PeerLost):
            await again.open()
        assert trio.current_time() - began <= net.heartbeat_interval_s + net.heartbeat_timeout_s + 0.1
        await again.aclose()


async def test_attempts_to_connect_are_short_at_first():
    async with hopping() as (world, _, hop, _, peers):
        world.partition(["server"])
        took = []
        for _ in range(4):
            began = trio.current_time()
            with pytest.raises(PeerLost):
                await hop.open()
            took.append(trio.current_time() - began)
            while peers.banned(hop.peer_id, trio.current_time()):  # noqa: ASYNC110 - what ends a ban is the clock
                await trio.sleep(0.5)
            peers.failed(hop.peer_id, trio.current_time())
        assert took == pytest.approx([5, 10, 20, 20], abs=0.01)  # up to what the network allows


async def test_nobody_home():
    async with hopping() as (_, _, _, links, peers):
        ghost = HopSession(
            links, peers, CONFIG, Hop(PeerId("12D3KooWghost"), Span(0, 1)),
            Open(ID, 0, ModelId("ab"), Span(0, 1), 1, 9, "fp32"), HIDDEN,
        )  # fmt: skip
        with pytest.raises(PeerLost):
            await ghost.open()
        await ghost.aclose()


async def test_a_silent_server_is_given_up_the_sooner_the_faster_it_was():
    async with hopping() as (world, _, hop, _, peers):
        await hop.open()
        for i in range(4):
            await step(hop, i)
        world.hang("server")
        began = trio.current_time()
        with pytest.raises(PeerSilent):
            await step(hop, 4)
        assert trio.current_time() - began == pytest.approx(CONFIG.client.step_timeout_min_s)
        peers.failed(hop.peer_id, trio.current_time())
        assert peers.step_timeout_s(hop.peer_id, 1) == CONFIG.client.step_timeout_s


async def test_the_first_step_of_a_silent_server_gets_all_the_time():
    async with hopping() as (world, _, hop, _, _):
        await hop.open()
        world.hang("server")
        began = trio.current_time()
        with pytest.raises(PeerSilent):
            await step(hop, 0)
        assert trio.current_time() - began == pytest.approx(CONFIG.client.step_timeout_s)


async def test_a_long_step_after_short_ones_gets_the_time_it_needs():
    async with hopping() as (_, script, hop, _, _):
        await hop.open()
        for i in range(4):
            await step(hop, i)
        script.delay_s = CONFIG.client.step_timeout_min_s + 1.0
        await hop.send((4,), (90,), packed(90))
        assert (await hop.receive()).tokens == 90
