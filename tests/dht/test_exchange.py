"""The record exchange against peers that lie, flood, stall and talk nonsense."""

from __future__ import annotations

import pytest
import trio

from p2pllm.config import Config, RecordConfig, WireLimits
from p2pllm.dht.exchange import OFFERS_BURST, PROTOCOL, Exchange
from p2pllm.dht.record import pack_entry, verify
from p2pllm.dht.view import SwarmView
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.types import ModelId, SessionId, Span
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.messages import DIGEST_BYTES, Closed, Fault, FaultKind, RecordsOffer, RecordsPage, RecordsRequest
from sim.network import EPOCH_S, SimWorld
from sim.ports import sim_ports
from tests.dht.swarm import MODEL, Node, announcement, bootstrap_node, peer, record, until

OTHER = ModelId("other")


def member(world, name, models=(MODEL,)):
    """A host with nothing but an exchange and its view."""
    ports = sim_ports(world, name)
    view = SwarmView(RecordConfig(), models, log_id=5, me=ports.network.me)
    news = []
    exchange = Exchange(ports, WireLimits(), view, lambda anns, source: news.extend((ann.peer, source) for ann in anns))
    ports.network.serve(PROTOCOL, exchange.handle)
    return ports.network, exchange, view, news


def pair(world):
    server, client = member(world, "server"), member(world, "client")
    client[0].learn(server[0].me, server[0].addrs)
    return server, client


def fill(view, names, at=0.0, **fields):
    for name in names:
        view.merge(record(name, at=at, **fields), trio.current_time(), EPOCH_S + trio.current_time())


async def talk(network, to, *messages):
    """Send messages by hand; what comes back until the other side closes."""
    stream = await network.open_stream(to.me, PROTOCOL)
    reader, answers = MessageReader(), []
    for message in messages:
        await stream.send_all(encode_message(message) if not isinstance(message, bytes) else message)
    try:
        with trio.move_on_after(5):
            while data := await stream.receive_some():
                answers += [message for message, _ in reader.feed(data)]
    except PeerLost:
        answers.append("reset")
    return answers


async def test_an_asker_gets_everything_once_and_then_only_news():
    async with SimWorld() as world:
        (server, _, have, _), (client, exchange, view, news) = pair(world)
        fill(have, [f"s{i}" for i in range(300)])
        await exchange.ask(server.me, [MODEL], ())
        assert len(view.servers(MODEL)) == 300
        assert len(news) == 300
        assert news[0] == (peer("s0"), server.me)
        assert view.reached(server.me)
        assert have.reached(client.me)
        await exchange.ask(server.me, [MODEL], ())
        assert len(news) == 300
        fill(have, ["s7"], at=1, span=Span(4, 8))
        fill(have, ["s8"], at=1, queue=3)
        await exchange.ask(server.me, [MODEL], ())
        assert news[300:] == [(peer("s7"), server.me)]
        assert view.get(MODEL, peer("s8")).queue == 3


async def test_what_others_told_us_is_not_repeated():
    async with SimWorld() as world:
        (server, _, have, _), (_, exchange, view, _) = pair(world)
        names = [f"s{i}" for i in range(20)]
        fill(have, names)
        fill(view, names[:15])
        sent = []
        world.tap = lambda stream, data: sent.append(len(data)) or data
        await exchange.ask(server.me, [MODEL], ())
        assert {ann.peer for ann in view.servers(MODEL)} == {peer(name) for name in names}
        size = len(record("s0"))
        assert 5 * size < sum(sent) < 6 * size + 20 * DIGEST_BYTES
        fill(have, names, at=1, queue=1)
        fill(view, names, at=1, queue=1)
        del sent[:]
        await exchange.ask(server.me, [MODEL], ())
        assert sum(sent) < size + 20 * DIGEST_BYTES


async def test_one_stream_is_kept_and_our_own_records_are_told_once():
    async with SimWorld() as world:
        (server, _, have, _), (_, exchange, view, _) = pair(world)
        opened, told = [], []
        inner = server._handlers[PROTOCOL]

        async def count(stream):
            opened.append(stream)
            await inner(stream)

        server.serve(PROTOCOL, count)
        world.tap = lambda stream, data: told.append(data.count(b"mine")) or data
        view.merge(record("client", model_name="mine"), 0.0, EPOCH_S)
        mine = (pack_entry(record("client", model_name="mine"), 0),)
        for _ in range(3):
            await exchange.ask(server.me, [MODEL], mine)
            await trio.sleep(60)
        assert (len(opened), sum(told)) == (1, 1)
        assert have.servers(MODEL)
        await trio.sleep(200)  # the other side has hung up
        await exchange.ask(server.me, [MODEL], mine)
        assert (len(opened), sum(told)) == (2, 2), "it may have been restarted"


async def test_who_hangs_in_a_kept_stream_is_left_in_time():
    async with SimWorld() as world:
        (server, _, _, _), (_, exchange, _, _) = pair(world)
        await exchange.ask(server.me, [MODEL], ())
        world.hang("server")
        begun = trio.current_time()
        with pytest.raises(PeerLost):
            await exchange.ask(server.me, [MODEL], ())
        assert trio.current_time() - begun < 11


async def test_ages_add_up_over_hops():
    async with SimWorld(latency_s=0) as world:
        (server, _, have, _), (_, exchange, view, _) = pair(world)
        fill(have, ["a"])
        await trio.sleep(100)
        await exchange.ask(server.me, [MODEL], ())
        assert view.servers(MODEL)
        await trio.sleep(79)
        view.expire(trio.current_time())
        assert view.servers(MODEL)
        await trio.sleep(1.5)
        view.expire(trio.current_time())
        assert not view.servers(MODEL)


async def test_addresses_are_learned_from_records():
    async with SimWorld() as world:
        server, _, _, _ = member(world, "server")
        client, exchange, _, _ = member(world, "client")
        bootstrap = Node(world, "third").serve()
        await trio.sleep(1)
        with pytest.raises(PeerLost):
            await client.open_stream(bootstrap.me, PROTOCOL)
        exchange.take(bootstrap.directory.record(MODEL), server.me)
        assert await client.open_stream(bootstrap.me, PROTOCOL)


@pytest.mark.parametrize(
    "entry",
    [
        pack_entry(record("a")[:-1] + b"\0", 0),  # forged
        pack_entry(record("a", model=OTHER), 0),  # foreign
        b"\0\0",
        pack_entry(bytes(8000), 0),
    ],
    ids=["forged", "foreign", "short", "junk"],
)
async def test_a_member_that_hands_on_what_it_may_not_is_caught(entry):
    async with SimWorld() as world:
        (server, _, _, _), (_, exchange, view, _) = pair(world)

        async def liar(stream):
            await stream.receive_some()
            await stream.send_all(encode_message(RecordsPage(1, 1, False, (pack_entry(record("good"), 0), entry))))
            await stream.receive_some()

        server.serve(PROTOCOL, liar)
        with pytest.raises(RemoteProtocolError):
            await exchange.ask(server.me, [MODEL], ())
        assert {ann.peer for ann in view.servers(MODEL)} <= {peer("good")}
        assert not view.reached(server.me)


@pytest.mark.parametrize(
    "answer",
    [encode_message(Closed(SessionId(bytes(16)))), b"\xff" * 100, encode_message(RecordsPage(1, 1, False, ())) * 2],
)
async def test_answers_that_are_none_are_protocol_errors(answer):
    async with SimWorld() as world:
        (server, _, _, _), (_, exchange, _, _) = pair(world)

        async def odd(stream):
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.receive_some()

        server.serve(PROTOCOL, odd)
        with pytest.raises(RemoteProtocolError):
            await exchange.ask(server.me, [MODEL], ())


async def test_a_member_that_never_stops_or_never_answers_is_left():
    async with SimWorld() as world:
        (server, _, _, _), (client, exchange, _, _) = pair(world)
        pages = 0

        async def endless(stream):
            nonlocal pages
            while await stream.receive_some():
                pages += 1
                await stream.send_all(encode_message(RecordsPage(1, pages, True, ())))

        server.serve(PROTOCOL, endless)
        await exchange.ask(server.me, [MODEL], ())
        assert pages <= 128

        async def mute(stream):
            await trio.sleep_forever()

        server.serve(PROTOCOL, mute)
        await client.close_peer(server.me)
        begun = trio.current_time()
        with pytest.raises(PeerLost, match="did not finish"):
            await exchange.ask(server.me, [MODEL], ())
        assert trio.current_time() - begun < 11
        server.serve(PROTOCOL, _hang_up)
        with pytest.raises(PeerLost, match="hung up"):
            await exchange.ask(server.me, [MODEL], ())


async def _hang_up(stream):
    await stream.receive_some()


async def test_offers_are_taken_in_and_forged_ones_end_the_talk():
    async with SimWorld() as world:
        (server, _, have, news), (client, _, _, _) = pair(world)
        good, forged = pack_entry(record("a"), 0), pack_entry(record("b")[:-1] + b"\0", 0)
        assert await talk(client, server, RecordsOffer((good, pack_entry(record("c", model=OTHER), 0)))) == []
        assert news == [(peer("a"), client.me)]
        assert await talk(client, server, RecordsOffer((forged, pack_entry(record("d"), 0)))) == ["reset"]
        assert {ann.peer for ann in have.servers(MODEL)} == {peer("a")}
        assert await talk(client, server, b"\x00\x01nonsense" * 10) == ["reset"]


async def test_other_messages_are_refused():
    async with SimWorld() as world:
        (server, _, _, _), (client, _, _, _) = pair(world)
        (answer,) = await talk(client, server, Closed(SessionId(bytes(16))))
        assert isinstance(answer, Fault)
        assert answer.kind is FaultKind.CLIENT


async def test_one_peer_cannot_ask_or_offer_without_end():
    async with SimWorld() as world:
        (server, _, have, _), (client, _, _, _) = pair(world)
        fill(have, ["a"])
        answers = await talk(client, server, *[RecordsRequest(MODEL)] * 400)
        assert isinstance(answers[-1], Fault)
        assert answers[-1].kind is FaultKind.BUSY
        assert answers[-1].retry_after_s > 0
        assert len(answers) < 200
        offers = [RecordsOffer((pack_entry(record(f"f{i}"), 0),)) for i in range(700)]
        answers = await talk(client, server, *offers)
        assert answers[-1].kind is FaultKind.BUSY
        assert len(have.servers(MODEL)) <= OFFERS_BURST + 100
        await trio.sleep(60)
        assert isinstance((await talk(client, server, RecordsRequest(MODEL)))[0], RecordsPage)


async def test_an_idle_stream_is_closed():
    async with SimWorld() as world:
        (server, _, _, _), (client, _, _, _) = pair(world)
        stream = await client.open_stream(server.me, PROTOCOL)
        begun = trio.current_time()
        assert await stream.receive_some() == b""
        assert 100 < trio.current_time() - begun < 130


async def test_every_member_refuses_forged_stale_oversized_and_foreign_records():
    """A swarm of directories, and one host that tells all of them everything bad at once."""
    async with SimWorld(3) as world:
        nodes = [bootstrap_node(world), *(Node(world, f"s{i}").serve() for i in range(5)), Node(world, "client")]
        await trio.sleep(30)
        evil = sim_ports(world, "evil").network
        good = nodes[1].directory.record(MODEL)
        now = trio.current_time()
        bad = {
            "forged": good[:-1] + bytes([good[-1] ^ 1]),
            "altered": good.replace(b"model-a", b"model-b"),
            "stale": record("stale", at=now - 3600),
            "future": record("future", at=now + 3600),
            "oversized": good + bytes(8100),
            "short": good[:20],
        }
        for node in nodes:
            evil.learn(node.me, node.ports.network.addrs)
            before = {ann.peer: ann for ann in node.view.servers(MODEL)}
            for name, data in bad.items():
                stream = await evil.open_stream(node.me, PROTOCOL)
                await stream.send_all(encode_message(RecordsOffer((pack_entry(data[:8000], 0),))))
                await stream.aclose()
                await trio.sleep(0.1)
                assert node.view.get(MODEL, peer(name)) is None
            assert {ann.peer for ann in node.view.servers(MODEL)} == set(before)
        await trio.sleep(60)
        assert all(len(node.view.servers(MODEL)) == 5 for node in nodes)
        foreign = record("foreign", at=trio.current_time(), model=ModelId("model-x"))
        stream = await evil.open_stream(nodes[1].me, PROTOCOL)
        await stream.send_all(encode_message(RecordsOffer((pack_entry(foreign, 0),))))
        await trio.sleep(60)
        assert all(node.view.models() == (MODEL,) for node in nodes[1:])


async def test_a_flood_of_minted_servers_drives_out_no_honest_one():
    config = Config(records=RecordConfig(peers_per_model_max=60))
    async with SimWorld(4) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}", config=config).serve() for i in range(6)]
        await trio.sleep(60)
        evil = sim_ports(world, "evil").network
        minted = 0
        for _ in range(10):
            for node in nodes:
                evil.learn(node.me, node.ports.network.addrs)
                stream = await evil.open_stream(node.me, PROTOCOL)
                names = [f"m{minted + i}" for i in range(40)]
                minted += 40
                entries = tuple(pack_entry(record(name, at=trio.current_time()), 0) for name in names)
                await stream.send_all(encode_message(RecordsOffer(entries)))
                await stream.aclose()
            await trio.sleep(20)
            for node in nodes:
                assert len(node.view.servers(MODEL)) <= 60
                assert {other.me for other in nodes} <= {ann.peer for ann in node.view.servers(MODEL)}
        late = Node(world, "late", config=config).serve()
        await until(lambda: "late" in nodes[0].sees(), nodes[0], 60)
        await until(lambda: {f"s{i}" for i in range(6)} <= late.sees(), late, 60)


async def test_records_of_servers_that_nobody_met_are_not_gossiped():
    async with SimWorld(5) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(3)]
        await trio.sleep(60)
        offered = []
        spy = sim_ports(world, "spy").network

        async def listen(stream):
            reader = MessageReader()
            while data := await stream.receive_some():
                for message, _ in reader.feed(data):
                    if isinstance(message, RecordsOffer):
                        offered.extend(verify(entry[4:]).peer for entry in message.records)
                    else:
                        await stream.send_all(encode_message(RecordsPage(9, 0, False, ())))

        spy.serve(PROTOCOL, listen)
        assert await spy.bootstrap()
        for node in nodes:
            spy.learn(node.me, node.ports.network.addrs)
            await spy.open_stream(node.me, PROTOCOL)
        evil = sim_ports(world, "evil").network
        evil.learn(nodes[0].me, nodes[0].ports.network.addrs)
        stream = await evil.open_stream(nodes[0].me, PROTOCOL)
        await stream.send_all(encode_message(RecordsOffer((pack_entry(record("ghost", at=60), 0),))))
        await trio.sleep(100)
        for node in nodes:
            node.serve(Span(4, 8))
        await trio.sleep(100)
        assert nodes[0].view.get(MODEL, peer("ghost")) is None or not nodes[0].view.reached(peer("ghost"))
        assert set(offered) <= {node.me for node in nodes}
        assert offered


async def test_a_member_that_forged_is_not_asked_again_soon():
    async with SimWorld(6) as world:
        boot = bootstrap_node(world)
        asked = []
        liar = sim_ports(world, "liar").network

        async def lie(stream):
            while await stream.receive_some():
                asked.append(stream.peer)
                bad = pack_entry(record("a")[:-1] + b"\0", 0)
                await stream.send_all(encode_message(RecordsPage(1, 1, False, (bad,))))

        liar.serve(PROTOCOL, lie)
        assert await liar.bootstrap()
        client = Node(world, "client")
        liar.learn(client.me, client.ports.network.addrs)
        await liar.open_stream(client.me, PROTOCOL)
        await trio.sleep(600)
        assert asked.count(client.me) <= 1
        assert not client.directory.lonely
        assert boot.view.servers(MODEL) == []


def test_announcements_of_the_helpers_are_valid():
    assert verify(record("x")).span == announcement().span
