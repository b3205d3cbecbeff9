from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from p2pllm.client.link import Links, PeerSilent
from p2pllm.config import Config
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.types import ModelId
from p2pllm.wire import INFO
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import Info, InfoRequest
from sim.network import SimWorld

MODEL = ModelId("ab" * 32)


async def echo(stream):
    """Answer every InfoRequest; the record is as long as the nonce says."""
    reader = MessageReader()
    while data := await stream.receive_some():
        for message, _ in reader.feed(data):
            await stream.send_all(encode_message(Info(message.nonce, bytes(message.nonce))))
    await stream.aclose()


@asynccontextmanager
async def world(handler=echo, config: Config | None = None):
    async with SimWorld(seed=1, latency_s=0.05) as sim:
        server, client = sim.host("server"), sim.host("client")
        server.serve(INFO, handler)
        client.learn(server.me, server.addrs)
        yield sim, server, Links(client, config or Config())


async def ask(link, nonce: int) -> Info:
    await link.send(InfoRequest(nonce, MODEL))
    message, _ = await link.receive(5.0)
    return message


async def test_messages_go_and_come():
    async with world() as (_, server, links):
        link, reused = await links.take(server.me, INFO)
        assert not reused
        assert link.peer == server.me
        for nonce in (1, 2, 300):
            assert await ask(link, nonce) == Info(nonce, bytes(nonce))


async def test_a_link_given_back_saves_the_dialling():
    async with world() as (_, server, links):
        link, _ = await links.take(server.me, INFO)
        await ask(link, 1)
        links.give(INFO, link)
        began = trio.current_time()
        again, reused = await links.take(server.me, INFO)
        assert (again, reused, trio.current_time()) == (link, True, began)
        other, reused = await links.take(server.me, INFO)
        assert other is not link
        assert not reused
        links.give(INFO, again)
        fresh, reused = await links.take(server.me, INFO, fresh=True)
        assert fresh is not link
        assert not reused
        await links.aclose()
        assert link.dead


async def test_only_so_many_idle_links_are_kept_and_no_dead_one():
    few = replace(Config(), client=replace(Config().client, idle_streams_max=2))
    async with world(config=few) as (_, server, links):
        taken = [(await links.take(server.me, INFO))[0] for _ in range(4)]
        taken[0].abort()
        for link in taken:
            links.give(INFO, link)
        assert [link.dead for link in taken] == [True, False, False, True]


async def test_silence_ends_at_the_deadline():
    async def mute(stream):
        await trio.sleep_forever()

    async with world(mute) as (_, server, links):
        link, _ = await links.take(server.me, INFO)
        began = trio.current_time()
        await link.send(InfoRequest(1, MODEL))
        with pytest.raises(PeerSilent, match="no answer within"):
            await link.receive(3.0)
        assert trio.current_time() - began == pytest.approx(3.0)
        assert link.dead


async def test_an_end_of_file_is_a_loss():
    async def leave(stream):
        await stream.receive_some()
        await stream.aclose()

    async with world(leave) as (_, server, links):
        link, _ = await links.take(server.me, INFO)
        await link.send(InfoRequest(1, MODEL))
        with pytest.raises(PeerLost, match="closed the stream"):
            await link.receive(3.0)


async def test_half_a_message_and_rubbish_are_the_peers_fault():
    async def half(stream):
        await stream.receive_some()
        await stream.send_all(encode_message(Info(1, b"record"))[:-3])
        await stream.aclose()

    async def rubbish(stream):
        await stream.receive_some()
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")

    for handler in (half, rubbish):
        async with world(handler) as (_, server, links):
            link, _ = await links.take(server.me, INFO)
            await link.send(InfoRequest(1, MODEL))
            with pytest.raises(RemoteProtocolError):
                await link.receive(3.0)
            assert link.dead


async def test_a_cancelled_send_kills_the_link():
    async def deaf(stream):
        await trio.sleep_forever()

    async with world(deaf) as (sim, server, links):
        sim.set_bandwidth("client", 10.0)
        link, _ = await links.take(server.me, INFO)
        with trio.move_on_after(0.5):
            await link.send(InfoRequest(1, MODEL))
        assert link.dead
        with pytest.raises(PeerLost):
            await link.send(InfoRequest(2, MODEL))


async def test_nobody_home():
    async with world() as (sim, server, links):
        sim.kill("server")
        with pytest.raises(PeerLost):
            await links.take(server.me, INFO)


async def test_whoever_is_silent_is_dialled_no_longer_than_asked():
    async with world() as (sim, server, links):
        sim.partition(["server"])
        began = trio.current_time()
        with pytest.raises(PeerLost):
            await links.take(server.me, INFO, connect_s=1.5)
        assert trio.current_time() - began == pytest.approx(1.5)


async def test_a_wait_is_as_long_as_it_is_prolonged():
    async def mute(stream):
        await trio.sleep_forever()

    async with world(mute) as (_, server, links):
        link, _ = await links.take(server.me, INFO)
        more = [0.5, 0.25]
        began = trio.current_time()
        with pytest.raises(PeerSilent, match=r"within 1\.8 s"):
            await link.receive(1.0, lambda: more.pop(0) if more else 0.0)
        assert trio.current_time() - began == pytest.approx(1.75)
