"""p2pllm.net.network on p2pllm.net.host, p2pllm.net.dialer and p2pllm.net.peers: whole nodes, in virtual time."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from p2pllm.config import NetConfig
from p2pllm.errors import PeerLost, UserError
from p2pllm.net import open_network
from p2pllm.ports import Network, Stream
from p2pllm.types import PeerEvent, Priority, Reachability
from tests.net.memory import WALL, MemoryNet, address, identity, networks


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def test_two_nodes_meet_and_talk() -> None:
    async with networks(MemoryNet(latency_s=0.02), 2) as (a, b):
        port: Network = b  # the port's type holds
        a.serve("/p2pllm/1/echo", echo)
        assert await port.bootstrap() == 1
        stream = await port.open_stream(a.me, "/p2pllm/1/echo")
        assert stream.peer == a.me
        await stream.send_all(b"hello", Priority.BULK)
        assert await stream.receive_some() == b"hello"
        await stream.aclose()
        path = port.path(a.me)
        assert path is not None
        assert path.direct
        assert path.rtt_s == pytest.approx(0.04, abs=0.01)
        assert port.reachability() is Reachability.UNKNOWN
        assert b.reached() == a.addrs
        assert len(port.sign(b"x")) == 64


async def test_a_stream_costs_one_round_trip_on_a_live_connection() -> None:
    async with networks(MemoryNet(latency_s=0.05), 2) as (a, b):
        a.serve("/p2pllm/1/echo", echo)
        await b.bootstrap()
        started = trio.current_time()
        await b.open_stream(a.me, "/p2pllm/1/echo")
        assert trio.current_time() - started == pytest.approx(0.1, abs=0.01)


async def test_a_protocol_that_nobody_serves_is_peer_lost_and_the_connection_lives() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        await b.bootstrap()
        with pytest.raises(PeerLost, match="does not speak"):
            await b.open_stream(a.me, "/p2pllm/1/nothing")
        assert b.path(a.me) is not None


async def test_a_node_does_not_dial_itself() -> None:
    async with networks(MemoryNet(), 1) as (a,):
        with pytest.raises(PeerLost, match="itself"):
            await a.open_stream(a.me, "/x")
        assert await a.bootstrap() == 0


async def test_a_peer_without_address_or_answer_is_peer_lost_in_time() -> None:
    net = MemoryNet()
    net.silent_addresses.add("10.0.0.77")
    async with networks(net, 1, NetConfig(dial_timeout_s=4.0)) as (a,):
        stranger = identity(77).peer_id
        with pytest.raises(PeerLost, match="no address is known"):
            await a.open_stream(stranger, "/x")
        a.learn(stranger, [address(77)])
        started = trio.current_time()
        with pytest.raises(PeerLost, match="no answer within 4 s"):
            await a.open_stream(stranger, "/x")
        assert trio.current_time() - started == pytest.approx(4.0, abs=0.1)
        with pytest.raises(PeerLost, match=r"within 1 s"):
            await a.open_stream(stranger, "/x", timeout_s=1.0)
        a.learn(stranger, [address(78), "/ip4/0.0.0.0/tcp/1", "nonsense", "/ip4/10.0.0.9/udp/1/quic-v1"])
        with pytest.raises(PeerLost, match="nobody listens"):
            await a.open_stream(stranger, "/x")
        assert ("0.0.0.0", 1) not in net.dialled


async def test_somebody_else_at_the_address_is_not_the_peer() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        b.learn(identity(77).peer_id, [address(1)])
        with pytest.raises(PeerLost, match="cannot reach"):
            await b.open_stream(identity(77).peer_id, "/x")
        b.learn(a.me, [address(1)])
        with pytest.raises(PeerLost, match="does not speak"):
            await b.open_stream(a.me, "/x")


async def test_callers_share_a_dial_and_one_cancelled_caller_does_not_end_it() -> None:
    net = MemoryNet(latency_s=0.1)
    async with networks(net, 2) as (a, b):
        a.serve("/e", echo)
        b.learn(a.me, a.addrs)
        opened: list[Stream] = []

        async def ask() -> None:
            opened.append(await b.open_stream(a.me, "/e"))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                await ask()
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert len(opened) == 2
        assert len(net.dialled) == 1


async def test_arrivals_and_departures_are_told_once() -> None:
    async with networks(MemoryNet(), 2) as (a, b), a.peer_events() as events:
        await b.bootstrap()
        assert await anext(events) == PeerEvent(b.me, connected=True)
        await a.close_peer(b.me)
        assert await anext(events) == PeerEvent(b.me, connected=False)
        await trio.testing.wait_all_tasks_blocked()
        assert a.path(b.me) is None
        assert b.path(a.me) is None


async def test_a_lost_peer_is_dialled_again() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        a.serve("/e", echo)
        await b.bootstrap()
        await a.close_peer(b.me)
        stream = await b.open_stream(a.me, "/e")
        await stream.send_all(b"again")
        assert await stream.receive_some() == b"again"


async def test_a_silent_peer_is_lost_within_interval_and_timeout() -> None:
    net = MemoryNet()
    async with networks(net, 2, NetConfig(heartbeat_interval_s=1.0, heartbeat_timeout_s=2.0)) as (a, b):
        a.serve("/e", echo)
        await b.bootstrap()
        stream = await b.open_stream(a.me, "/e")
        await trio.sleep(30)
        for wire in net.wires:
            wire.silent = True
        started = trio.current_time()
        with pytest.raises(PeerLost, match="silent"):
            await stream.receive_some()
        assert trio.current_time() - started < 3.2
        assert b.path(a.me) is None


async def test_bootstrap_counts_who_answers_and_does_not_wait_for_the_dead() -> None:
    net = MemoryNet(latency_s=0.02)
    net.silent_addresses.add("10.0.0.200")
    dead = f"{address(200)}/p2p/{identity(200).peer_id}"
    async with networks(net, 3) as (a, b, c):
        assert await b.bootstrap() == 1
        assert await c.bootstrap() == 1
        async with open_network(
            NetConfig(),
            identity=identity(9),
            wall_time=lambda: WALL,
            listen=[address(9)],
            bootstrap=[dead, *a.addrs],
            remembered=lambda: b.addrs,
            transport=net.transport(),
        ) as late:
            started = trio.current_time()
            assert await late.bootstrap() == 2
            assert trio.current_time() - started < 2.0
            assert {a.me, b.me, c.me} <= set(late._peers.connected), "the lookup has found the third"


async def test_members_survive_the_loss_of_the_bootstrap_node() -> None:
    net = MemoryNet()
    async with networks(net, 3) as (a, b, c):
        await b.bootstrap()
        await c.bootstrap()
        del net.listeners[("10.0.0.1", 4001)]
        b.serve("/e", echo)
        await b.close_peer(a.me)
        await c.close_peer(a.me)
        stream = await c.open_stream(b.me, "/e")
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"


async def test_what_the_block_raises_leaves_as_it_was() -> None:
    with pytest.raises(UserError, match="mine"):
        async with networks(MemoryNet(), 1):
            raise UserError("mine")


@pytest.mark.parametrize(
    ("listen", "bootstrap", "why"),
    [
        ("/dns4/example.org/tcp/1", "", "not a listen address"),
        ("4001", "", "not a listen address"),
        (address(1), "/ip4/10.0.0.1/tcp/4001", "not a bootstrap address"),
        (address(1), "hello", "not a bootstrap address"),
    ],
)
async def test_wrong_addresses_are_the_users_mistake(listen: str, bootstrap: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        async with open_network(
            NetConfig(),
            identity=identity(1),
            wall_time=lambda: WALL,
            listen=[listen],
            bootstrap=[bootstrap] if bootstrap else [],
            transport=MemoryNet().transport(),
        ):
            pass


async def test_a_handler_that_returns_closes_its_stream_politely(caplog: pytest.LogCaptureFixture) -> None:
    async def greet(stream: Stream) -> None:
        await stream.send_all(b"bye")

    async def fail(stream: Stream) -> None:
        raise ValueError("a bug")

    with caplog.at_level(logging.ERROR):
        async with networks(MemoryNet(), 2) as (a, b):
            a.serve("/greet", greet)
            a.serve("/fail", fail)
            await b.bootstrap()
            stream = await b.open_stream(a.me, "/greet")
            assert await stream.receive_some() == b"bye"
            assert await stream.receive_some() == b""
            stream = await b.open_stream(a.me, "/fail")
            with pytest.raises(PeerLost):
                await stream.receive_some()
            assert b.path(a.me) is not None
    assert "/fail" in caplog.text
