"""Directories of a whole swarm, in virtual time."""

from __future__ import annotations

import pytest
import trio

from p2pllm.config import Config, local
from p2pllm.dht.record import record_key, verify
from p2pllm.types import ModelId, PeerId, ServerState, Span
from sim.network import SimWorld
from sim.storage import MemoryStorage
from tests.dht.swarm import MODEL, Node, announcement, bootstrap_node, peer, until

OTHER = ModelId("model-b")


async def test_a_client_finds_the_servers_within_a_second():
    async with SimWorld(1) as world:
        bootstrap_node(world)
        Node(world, "s1").serve(Span(0, 4), name="first", cache_tokens_free=77)
        Node(world, "s2").serve(Span(4, 8))
        await trio.sleep(20)
        client = Node(world, "client")
        assert await until(lambda: client.sees() == {"s1", "s2"}, client, 5) < 1
        ann = client.view.get(MODEL, world.hosts["s1"].me)
        assert (ann.span, ann.name, ann.cache_tokens_free) == (Span(0, 4), "first", 77)
        assert ann.addrs == world.hosts["s1"].addrs
        assert client.view.gaps(MODEL, 8) == ()
        assert client.view.coverage(MODEL, 8) == [1] * 8
        await trio.sleep(1)
        assert not client.directory.lonely
        stream = await client.ports.network.open_stream(ann.peer, "/p2pllm/1/records")
        stream.abort()


async def test_servers_that_start_together_find_each_other_and_changes_spread():
    async with SimWorld(2) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(12)]
        for node in nodes:
            await until(lambda node=node: len(node.sees()) == 12, node, 60)
        assert trio.current_time() < 60
        nodes[3].serve(Span(4, 8))
        for node in nodes:
            await until(lambda n=node: n.view.get(MODEL, nodes[3].me).span == Span(4, 8), node, 60)


async def test_a_crashed_server_runs_out_everywhere_and_does_not_come_back():
    async with SimWorld(3) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(6)]
        await trio.sleep(60)
        world.kill("s5")
        killed = trio.current_time()
        for node in nodes[:5]:
            await until(lambda n=node: "s5" not in n.sees(), node, 400)
        assert trio.current_time() - killed < 180 + 60
        assert all(len(node.sees()) == 5 for node in nodes[:5])
        late = Node(world, "late")
        for _ in range(60):
            await trio.sleep(5)
            assert all("s5" not in node.sees() for node in (*nodes[:5], late))
        assert len(late.sees()) == 5


async def test_leaving_on_purpose_is_known_within_seconds():
    async with SimWorld(4) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(5)]
        client = Node(world, "client")
        await trio.sleep(60)
        await nodes[0].directory.withdraw()
        world.kill("s0")
        left = trio.current_time()
        for node in (*nodes[1:], client):
            await until(lambda n=node: "s0" not in n.sees(), node, 30)
        assert trio.current_time() - left < 15
        assert client.view.get(MODEL, nodes[0].me).state is ServerState.OFFLINE


async def test_clocks_that_are_wrong_by_minutes_do_no_harm():
    async with SimWorld(5) as world:
        world.skew("s1", 540)
        world.skew("s2", -540)
        world.skew("client", -400)
        world.skew("s4", 7200)  # hours: it borrows the others' time
        bootstrap_node(world)
        servers = [Node(world, f"s{i}").serve() for i in range(5)]
        client = Node(world, "client")
        for node in (*servers, client):
            await until(lambda n=node: len(n.sees()) == 5, node, 200)
        for _ in range(60):
            await trio.sleep(10)
            assert len(client.sees()) == 5
            assert all(len(node.sees()) == 5 for node in servers)


async def test_a_reader_whose_clock_is_wrong_by_an_hour_sees_the_swarm():
    async with SimWorld(6) as world:
        world.skew("client", -3600)
        bootstrap_node(world)
        for i in range(5):
            Node(world, f"s{i}").serve()
        await trio.sleep(60)
        client = Node(world, "client")
        await until(lambda: len(client.sees()) == 5, client, 60)


async def test_the_loss_of_every_bootstrap_node_is_survived():
    async with SimWorld(7) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(4)]
        await trio.sleep(60)
        remembered = nodes[0].directory.members()
        assert {peer for peer, _ in remembered} >= {node.me for node in nodes[1:]}
        world.kill("boot")
        await trio.sleep(300)
        assert all(len(node.sees()) == 4 for node in nodes)
        late = Node(world, "late", members=remembered).serve()
        assert await until(lambda: len(late.sees()) == 5, late, 30) < 30
        await until(lambda: "late" in nodes[0].sees(), nodes[0], 60)


async def test_a_partition_heals_and_the_halves_find_each_other_again():
    async with SimWorld(8) as world:
        boot = bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(6)]
        await trio.sleep(60)
        world.partition(["s0", "s1"])
        await trio.sleep(400)
        assert nodes[0].sees() == nodes[1].sees() == {"s0", "s1"}
        assert nodes[5].sees() == {"s2", "s3", "s4", "s5"}
        world.heal()
        for node in (*nodes, boot):
            await until(lambda n=node: len(n.sees()) == 6, node, 180)


async def test_a_node_that_was_cut_off_alone_notices_and_comes_back():
    async with SimWorld(9) as world:
        bootstrap_node(world)
        nodes = [Node(world, f"s{i}").serve() for i in range(3)]
        await trio.sleep(30)
        world.partition(["s0"])
        await trio.sleep(600)
        assert nodes[0].directory.lonely
        assert nodes[0].sees() == {"s0"}
        world.heal()
        healed = trio.current_time()
        await until(lambda: len(nodes[0].sees()) == 3, nodes[0], 120)
        await until(lambda: len(nodes[2].sees()) == 3, nodes[2], 120)
        assert trio.current_time() - healed < 120
        await trio.sleep(30)
        assert not nodes[0].directory.lonely


async def test_models_are_not_mixed_and_bootstrap_nodes_know_all():
    async with SimWorld(10) as world:
        boot = bootstrap_node(world)
        a, b = Node(world, "a").serve(), Node(world, "b", (OTHER,)).serve(model=OTHER)
        both = Node(world, "both", (MODEL, OTHER))
        await trio.sleep(60)
        assert a.sees() == {"a"}
        assert a.view.models() == (MODEL,)
        assert b.sees(OTHER) == {"b"}
        assert both.sees() | both.sees(OTHER) == {"a", "b"}
        assert set(boot.view.models()) == {MODEL, OTHER}


async def test_a_server_that_lost_its_file_and_its_clock_is_still_the_newest():
    async with SimWorld(11) as world:
        bootstrap_node(world)
        Node(world, "s0").serve()
        Node(world, "s1").serve(name="before")
        await trio.sleep(60)
        world.kill("s1")
        world.skew("s1", -500)
        again = Node(world, "s1").serve(name="after")
        client = Node(world, "client")
        await until(lambda: client.sees() == {"s0", "s1"}, client, 60)
        await until(lambda: client.view.get(MODEL, again.me).name == "after", client, 60)


async def test_sequence_numbers_are_kept_on_disk():
    storage = MemoryStorage()
    before = 0
    async with SimWorld(12) as world:
        for round_number in range(3):
            world.skew("s", -1000 * round_number)
            node = Node(world, "s", storage=storage, state_path="state/sequence").serve()
            await trio.sleep(1)
            sequence = verify(node.directory.record(MODEL)).sequence
            assert sequence > before
            before = sequence
            assert int(storage.files["state/sequence"]) == sequence
            world.kill("s")


async def test_a_disk_that_is_full_or_holds_nonsense_does_not_mute_a_server():
    async with SimWorld(13) as world:
        storage = MemoryStorage({"sequence": b"not a number"}, quota_bytes=12)
        bootstrap_node(world)
        node = Node(world, "s", storage=storage, state_path="sequence").serve()
        await trio.sleep(5)
        assert node.sees() == {"s"}
        assert verify(node.directory.record(MODEL)).peer == node.me


async def test_announcing_nonsense_is_told_at_once():
    async with SimWorld(14) as world:
        node = Node(world, "s")
        with pytest.raises(ValueError, match="cannot announce"):
            node.serve(name="x" * 1000)
        assert node.directory.record(MODEL) == b""


async def test_changes_go_out_at_once_and_mere_load_with_the_next_record():
    async with SimWorld(20) as world:
        bootstrap_node(world)
        node = Node(world, "s").serve()
        await trio.sleep(5)
        first = verify(node.directory.record(MODEL))
        node.serve(cache_tokens_free=5, queue=1)
        await trio.sleep(5)
        assert verify(node.directory.record(MODEL)) == first
        await trio.sleep(90)
        later = verify(node.directory.record(MODEL))
        assert (later.cache_tokens_free, later.queue) == (5, 1)
        node.serve(state=ServerState.DRAINING)
        await trio.sleep(1)
        assert verify(node.directory.record(MODEL)).state is ServerState.DRAINING


async def test_one_that_serves_nothing_leaves_without_a_word():
    async with SimWorld(21) as world:
        bootstrap_node(world)
        client = Node(world, "client")
        await trio.sleep(5)
        begun = trio.current_time()
        await client.directory.withdraw()
        assert trio.current_time() == begun


async def test_the_record_lies_in_the_dht_too():
    async with SimWorld(15) as world:
        boot = bootstrap_node(world)
        node = Node(world, "s").serve()
        await trio.sleep(5)
        value = await boot.ports.network.get(record_key(MODEL, node.me))
        assert verify(value).span == Span(0, 4)
        assert await boot.ports.network.find(f"/p2pllm/{MODEL}") == (node.me,)


async def test_refresh_asks_around_now():
    async with SimWorld(16) as world:
        bootstrap_node(world)
        Node(world, "s").serve()
        client = Node(world, "client")
        await trio.sleep(30)
        begun = trio.current_time()
        with trio.fail_after(5):
            await client.directory.refresh()
        assert trio.current_time() - begun < 2


async def test_local_preset_converges_within_seconds():
    async with SimWorld(17, latency_s=0.0005) as world:
        Node(world, "boot", None, config=local())
        nodes = [Node(world, f"s{i}", config=local()).serve() for i in range(3)]
        for node in nodes:
            await until(lambda n=node: len(n.sees()) == 3, node, 5)
        world.kill("s2")
        await until(lambda: nodes[0].sees() == {"s0", "s1"}, nodes[0], 30)


async def test_a_node_alone_in_the_world_keeps_trying_quietly():
    async with SimWorld(18) as world:
        node = Node(world, "alone").serve()
        await trio.sleep(600)
        assert node.directory.lonely
        assert node.sees() == {"alone"}
        assert node.directory.members() == []


async def test_members_are_fed_at_the_start_even_if_they_are_gone():
    async with SimWorld(19) as world:
        bootstrap_node(world)
        Node(world, "s").serve()
        await trio.sleep(20)
        ghost = (PeerId(str(peer("ghost"))), [f"/ip4/10.9.9.9/tcp/1/p2p/{peer('ghost')}"])
        client = Node(world, "client", members=[ghost])
        await until(lambda: client.sees() == {"s"}, client, 30)


def test_config_defaults_are_those_of_the_design():
    records = Config().records
    assert records.ttl_s <= 300
    assert records.announce_interval_s * 2 < records.ttl_s
    assert announcement().num_blocks == 8


async def test_new_addresses_are_told_at_once():
    async with SimWorld(22) as world:
        bootstrap_node(world)
        node, other = Node(world, "s").serve(), Node(world, "other").serve()
        await trio.sleep(30)
        host = world.hosts["s"]
        host.address = f"/ip4/10.9.9.9/tcp/4001/p2p/{host.me}"
        await until(lambda: other.view.get(MODEL, node.me).addrs == (host.address,), other, 30)
