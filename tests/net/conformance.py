"""What every arm of ``ports.Network`` must do: one body for each promise, run against all arms.

An arm gives connected networks, and says how to break them; each body gets the arm and asserts. A body waits on
nothing without the deadline that its runner sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Protocol

import pytest
import trio

from p2pllm.dht.keys import peer_id_of, signature_holds
from p2pllm.dht.record import Announcement, record_key, sign_announcement, verify
from p2pllm.errors import P2PLLMError, PeerLost
from p2pllm.ports import Network, Stream
from p2pllm.types import ModelId, Numerics, PeerEvent, PeerId, Priority, ServerState, Span

DEADLINE_S = 60.0
ECHO = "/test/echo"
HOLD = "/test/hold"
MODEL = ModelId("conformance")


class Arm(Protocol):
    """What a test module provides for its kind of network."""

    pause_s: float
    """A pause that a naive stack punishes: more than 5 s on yamux."""
    loss_s: float
    """Within so long a peer that vanished is noticed."""

    def networks(self, count: int) -> AbstractAsyncContextManager[Sequence[Network]]:
        """Running networks that have bootstrapped through the first of them and know each other's addresses."""
        ...

    async def crash(self, network: Network) -> None:
        """Make it vanish, as a killed process does."""
        ...

    def wall_time(self) -> float: ...


Body = Callable[[Arm], Awaitable[None]]
BODIES: list[Body] = []


def body(function: Body) -> Body:
    BODIES.append(function)
    return function


all_bodies = pytest.mark.parametrize("promise", BODIES, ids=lambda function: function.__name__)


async def check(promise: Body, arm: Arm) -> None:
    """Run one body within its deadline."""
    with trio.fail_after(DEADLINE_S):
        await promise(arm)


# -- helpers ------------------------------------------------------------------------------------------------------


async def echo_handler(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.aclose()


async def read_exactly(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, "the stream ended early"
        data += piece
    return bytes(data)


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def echoed(stream: Stream, data: bytes) -> None:
    await stream.send_all(data)
    assert await read_exactly(stream, len(data)) == data


async def works(client: Network, server: Network) -> None:
    """The connection between two networks carries a stream."""
    stream = await client.open_stream(server.me, ECHO)
    await echoed(stream, b"still works")
    await stream.aclose()


@asynccontextmanager
async def echo_pair(arm: Arm):
    """A client, and a server that speaks ECHO."""
    async with arm.networks(2) as (server, client):
        server.serve(ECHO, echo_handler)
        yield server, client


class Held:
    """A protocol whose server side is handed to the test."""

    def __init__(self, server: Network, protocol: str = HOLD) -> None:
        self._send, self._receive = trio.open_memory_channel[Stream](100)
        self._over = trio.Event()
        server.serve(protocol, self._handle)

    async def _handle(self, stream: Stream) -> None:
        await self._send.send(stream)
        await self._over.wait()

    async def stream(self) -> Stream:
        return await self._receive.receive()

    def release(self) -> None:
        self._over.set()


def noise(size: int) -> bytes:
    """Bytes that do not compress and do not repeat."""
    return hashlib.shake_128(str(size).encode()).digest(size)


# -- identity and paths -------------------------------------------------------------------------------------------


@body
async def says_who_it_is(arm: Arm) -> None:
    async with arm.networks(2) as (a, b):
        assert a.me != b.me
        assert a.addrs
        for addr in a.addrs:
            assert addr.endswith(f"/p2p/{a.me}")
            assert "/0.0.0.0/" not in addr
        assert signature_holds(a.me, b"data", a.sign(b"data"))
        assert not signature_holds(b.me, b"data", a.sign(b"data"))


@body
async def both_ends_know_the_peer_and_the_path(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        held = Held(server)
        stream = await client.open_stream(server.me, HOLD)
        await stream.send_all(b"x")
        far = await held.stream()
        assert (stream.peer, far.peer) == (server.me, client.me)
        path = client.path(server.me)
        assert path is not None
        assert path.direct
        assert path.address.startswith("/")
        assert server.path(client.me) is not None
        stranger = peer_id_of(bytes(32))
        assert client.path(stranger) is None
        held.release()


# -- streams ------------------------------------------------------------------------------------------------------


@body
async def echoes(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        stream = await client.open_stream(server.me, ECHO)
        for data in (b"x", b"hello", noise(1000), noise(100_000)):
            await echoed(stream, data)
        await stream.aclose()


@body
async def takes_every_kind_of_buffer_even_an_empty_one(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        stream = await client.open_stream(server.me, ECHO)
        await stream.send_all(b"")
        await stream.send_all(bytearray(b"ab"))
        await stream.send_all(memoryview(b"xcdx")[1:3])
        assert await read_exactly(stream, 4) == b"abcd"
        await stream.aclose()


@body
async def reads_at_most_what_was_asked_for(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        stream = await client.open_stream(server.me, ECHO)
        await stream.send_all(b"abcdef")
        assert await stream.receive_some(1) == b"a"
        rest = b""
        while len(rest) < 5:
            piece = await stream.receive_some(2)
            assert 1 <= len(piece) <= 2
            rest += piece
        assert rest == b"bcdef"
        await stream.aclose()


@body
async def keeps_the_order_of_many_small_writes(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        held = Held(server)
        stream = await client.open_stream(server.me, HOLD)
        pieces = [b"%d," % i for i in range(2000)]
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for piece in pieces:
                    await stream.send_all(piece)
                await stream.aclose()

            nursery.start_soon(send)
            far = await held.stream()
            assert await read_all(far) == b"".join(pieces)
        held.release()


@body
async def carries_much_in_both_directions_at_once(arm: Arm) -> None:
    up, down = noise(6_000_000), noise(5_000_000)
    async with arm.networks(2) as (server, client):
        held = Held(server)
        near = await client.open_stream(server.me, HOLD)
        await near.send_all(up[:1])
        far = await held.stream()
        results: dict[str, bytes] = {}

        async def receive(name: str, stream: Stream, size: int) -> None:
            results[name] = await read_exactly(stream, size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, "up", far, len(up))
            nursery.start_soon(receive, "down", near, len(down))
            nursery.start_soon(near.send_all, up[1:], Priority.BULK)
            nursery.start_soon(far.send_all, down, Priority.BULK)
        assert results == {"up": up, "down": down}
        held.release()


@body
async def many_streams_at_once(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):

        async def one(number: int) -> None:
            stream = await client.open_stream(server.me, ECHO)
            for _ in range(5):
                await echoed(stream, noise(500 + number))
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)


@body
async def a_closed_side_is_read_to_its_end(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        held = Held(server)
        stream = await client.open_stream(server.me, HOLD)
        data = noise(200_000)
        await stream.send_all(data)
        await stream.aclose()
        far = await held.stream()
        assert await read_all(far) == data
        assert await far.receive_some() == b""
        await far.aclose()
        await far.aclose()
        with pytest.raises(P2PLLMError):
            await stream.send_all(b"after the end")
        held.release()
        await works_after_echo(client, server)


async def works_after_echo(client: Network, server: Network) -> None:
    server.serve(ECHO, echo_handler)
    await works(client, server)


@body
async def an_aborted_stream_is_lost_at_both_ends_and_only_it(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        held = Held(server)
        near = await client.open_stream(server.me, HOLD)
        await near.send_all(b"x")
        far = await held.stream()
        assert await far.receive_some() == b"x"
        near.abort()
        near.abort()
        with pytest.raises(PeerLost):
            await far.receive_some()
        with pytest.raises(PeerLost):
            await near.send_all(b"y")
        with pytest.raises(PeerLost):
            await near.receive_some()
        with pytest.raises(PeerLost):
            await far.send_all(noise(1000))
        far.abort()
        held.release()
        await works_after_echo(client, server)


@body
async def abort_after_close_is_harmless(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        stream = await client.open_stream(server.me, ECHO)
        await echoed(stream, b"x")
        await stream.aclose()
        stream.abort()
        await works(client, server)


# -- cancellation and slow readers --------------------------------------------------------------------------------


@body
async def a_cancelled_receive_loses_nothing(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        stream = await client.open_stream(server.me, ECHO)
        for _ in range(5):
            with trio.move_on_after(0.02) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
        await echoed(stream, b"all of it")
        await stream.aclose()


@body
async def a_cancelled_send_kills_its_stream_and_nothing_else(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        held = Held(server)
        server.serve(ECHO, echo_handler)
        other = await client.open_stream(server.me, ECHO)
        stuck = await client.open_stream(server.me, HOLD)
        with trio.move_on_after(0.5) as scope:
            await stuck.send_all(bytes(64_000_000), Priority.BULK)
        assert scope.cancelled_caught
        far = await held.stream()
        with pytest.raises(PeerLost):
            await read_all(far)
        with pytest.raises(PeerLost):
            await stuck.send_all(b"x")
        await echoed(other, noise(50_000))
        held.release()
        await works(client, server)


@body
async def a_reader_that_pauses_is_waited_for_and_blocks_nobody(arm: Arm) -> None:
    data = noise(8_000_000)
    async with arm.networks(2) as (server, client):
        held = Held(server)
        server.serve(ECHO, echo_handler)
        near = await client.open_stream(server.me, HOLD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, data, Priority.BULK)
            far = await held.stream()
            begun = trio.current_time()
            while trio.current_time() - begun < arm.pause_s:
                with trio.fail_after(5):
                    await works(client, server)
                await trio.sleep(arm.pause_s / 5)
            assert await read_exactly(far, len(data)) == data
        held.release()


@body
async def steps_overtake_bulk(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        server.serve(ECHO, echo_handler)
        server.serve("/test/sink", _sink)
        step = await client.open_stream(server.me, ECHO)
        await echoed(step, b"warm")
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                bulk = await client.open_stream(server.me, "/test/sink")
                while True:
                    await bulk.send_all(bytes(1_000_000), Priority.BULK)

            for _ in range(3):
                nursery.start_soon(flood)
            await trio.sleep(0.3)
            times = []
            for _ in range(20):
                begun = trio.current_time()
                await echoed(step, noise(600))
                times.append(trio.current_time() - begun)
                await trio.sleep(0.01)
            assert sorted(times)[len(times) // 2] < 0.25
            nursery.cancel_scope.cancel()
        await works(client, server)


async def _sink(stream: Stream) -> None:
    while await stream.receive_some():
        pass


# -- handlers -----------------------------------------------------------------------------------------------------


@body
async def a_handlers_exception_ends_its_stream_and_nothing_else(arm: Arm) -> None:
    async def broken(stream: Stream) -> None:
        await stream.receive_some()
        raise ValueError("a handler's own bug")

    async with echo_pair(arm) as (server, client):
        server.serve("/test/broken", broken)
        other = await client.open_stream(server.me, ECHO)
        for _ in range(3):
            stream = await client.open_stream(server.me, "/test/broken")
            await stream.send_all(b"x")
            with pytest.raises(PeerLost):
                await read_all(stream)
            stream.abort()
        await echoed(other, b"alive")
        await works(client, server)


@body
async def a_handler_that_returns_closes_its_side(arm: Arm) -> None:
    async def short(stream: Stream) -> None:
        await stream.send_all(b"bye")

    async with arm.networks(2) as (server, client):
        server.serve("/test/short", short)
        stream = await client.open_stream(server.me, "/test/short")
        assert await read_all(stream) == b"bye"
        await stream.aclose()


@body
async def an_unknown_protocol_is_refused(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        for _ in range(2):
            with pytest.raises(PeerLost):
                await client.open_stream(server.me, "/test/nobody-speaks-this")
        await works(client, server)


# -- connections --------------------------------------------------------------------------------------------------


@body
async def a_peer_without_a_known_address_is_lost(arm: Arm) -> None:
    async with arm.networks(1) as (alone,):
        with pytest.raises(PeerLost):
            await alone.open_stream(peer_id_of(bytes(32)), ECHO, timeout_s=3)


@body
async def an_address_that_leads_to_somebody_else_is_refused(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        impostor = peer_id_of(bytes(31) + b"\x01")
        client.learn(impostor, [addr.replace(server.me, impostor) for addr in server.addrs])
        with pytest.raises(PeerLost):
            await client.open_stream(impostor, ECHO, timeout_s=5)
        await works(client, server)


@body
async def one_good_address_among_dead_ones_is_enough_and_a_failed_dial_is_soon_forgotten(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        await client.close_peer(server.me)
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{server.me}"
        client.learn(server.me, [dead])
        with pytest.raises(PeerLost):
            await client.open_stream(server.me, ECHO, timeout_s=5)
        client.learn(server.me, [dead, *server.addrs])
        await works(client, server)


@body
async def a_closed_peer_is_lost_and_can_be_dialled_again_at_once(arm: Arm) -> None:
    async with echo_pair(arm) as (server, client):
        stream = await client.open_stream(server.me, ECHO)
        await echoed(stream, b"x")
        await client.close_peer(server.me)
        with pytest.raises(PeerLost):
            await stream.receive_some()
        assert client.path(server.me) is None
        await works(client, server)


@body
async def both_may_dial_at_once(arm: Arm) -> None:
    async with arm.networks(2) as (a, b):
        for network in (a, b):
            network.serve(ECHO, echo_handler)
        await a.close_peer(b.me)
        await trio.sleep(0.2)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(works, a, b)
                nursery.start_soon(works, b, a)
        await works(a, b)


@body
async def arrivals_and_departures_are_told(arm: Arm) -> None:
    async with arm.networks(2) as (server, client):
        server.serve(ECHO, echo_handler)
        async with client.peer_events() as mine, server.peer_events() as theirs:
            await client.close_peer(server.me)
            await _event(mine, PeerEvent(server.me, False))
            await _event(theirs, PeerEvent(client.me, False))
            await works(client, server)
            await _event(mine, PeerEvent(server.me, True))
            await _event(theirs, PeerEvent(client.me, True))


async def _event(events, wanted: PeerEvent) -> None:
    async for event in events:
        if event == wanted:
            return


@body
async def a_crash_is_noticed_by_whoever_waits(arm: Arm) -> None:
    async with arm.networks(3) as (_, server, client):
        held = Held(server)
        stream = await client.open_stream(server.me, HOLD)
        await stream.send_all(b"x")
        await held.stream()
        async with client.peer_events() as events:
            await arm.crash(server)
            with trio.fail_after(arm.loss_s), pytest.raises(PeerLost):
                await read_all(stream)
            with trio.fail_after(arm.loss_s):
                await _event(events, PeerEvent(server.me, False))
            with pytest.raises(PeerLost):
                await client.open_stream(server.me, HOLD, timeout_s=5)


# -- the DHT ------------------------------------------------------------------------------------------------------


def record_of(arm: Arm, network: Network, sequence: int, peer: PeerId | None = None) -> bytes:
    now_ms = int(arm.wall_time() * 1000)
    ann = Announcement(MODEL, Span(0, 2), 2, ServerState.ONLINE, Numerics("float32", "none", "k", "i", False))
    stamped = replace(ann, peer=peer or network.me, sequence=sequence, issued_ms=now_ms, ttl_ms=60_000)
    return sign_announcement(stamped, network.sign)


@body
async def records_are_put_and_the_newest_is_got(arm: Arm) -> None:
    async with arm.networks(4) as (_, author, reader, other):
        key = record_key(MODEL, author.me)
        assert await reader.get(key) is None
        for sequence in (1, 2, 3):
            record = record_of(arm, author, sequence)
            await author.put(key, record)
            for network in (reader, other):
                got = await network.get(key)
                assert got is not None
                assert verify(got).sequence == sequence, "a stale copy"


@body
async def forged_records_are_not_stored(arm: Arm) -> None:
    async with arm.networks(4) as (_, author, forger, reader):
        key = record_key(MODEL, author.me)
        await author.put(key, record_of(arm, author, 5))
        by_the_wrong_key = record_of(arm, forger, 9, author.me)
        under_the_wrong_key = record_of(arm, forger, 9)
        for value in (by_the_wrong_key, under_the_wrong_key, b"junk", bytes(50_000), record_of(arm, author, 4)):
            with pytest.raises(P2PLLMError):
                await forger.put(key, value)
            got = await reader.get(key)
            assert got is not None
            assert verify(got).sequence == 5
        for odd in ("/p2pllm/x", "/other/x/y", "nonsense"):
            with pytest.raises(P2PLLMError):
                await forger.put(odd, record_of(arm, forger, 1))


@body
async def providers_are_found_without_repeats_and_their_addresses_learned(arm: Arm) -> None:
    key = f"/p2pllm/{MODEL}"
    async with arm.networks(4) as (first, one, two, reader):
        assert await reader.find(key) == ()
        for network in (one, two):
            network.serve(ECHO, echo_handler)
            await network.provide(key)
            await network.provide(key)
        assert sorted(await reader.find(key)) == sorted((one.me, two.me))
        assert await one.find(key) == (two.me,)
        assert len(await first.find(key, 1)) == 1
        for network in (one, two):
            await works(reader, network)


@body
async def alone_there_is_no_dht(arm: Arm) -> None:
    async with arm.networks(1) as (alone,):
        assert await alone.bootstrap() == 0
        with pytest.raises(PeerLost):
            await alone.put(record_key(MODEL, alone.me), record_of(arm, alone, 1))


@body
async def bootstrap_may_be_repeated(arm: Arm) -> None:
    async with arm.networks(3) as (first, second, third):
        for network in (second, third):
            assert await network.bootstrap() >= 1
        await second.close_peer(first.me)
        assert await second.bootstrap() >= 1
        assert second.path(first.me) is not None
