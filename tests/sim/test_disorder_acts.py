"""Every fault does to a swarm what its name says, for as long as it says, however faults overlap."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import trio

from p2pllm.config import Config
from p2pllm.dht.view import Outcome
from p2pllm.errors import StorageError, UserError
from sim.disorder import Event, schedule_of
from sim.disorder_acts import Disorder, moments
from sim.disorder_patients import SwarmPatients
from sim.run import run
from sim.swarm import MODEL, open_swarm
from sim.toy import ToyModel

TOY = ToyModel(2)
BASE = Config()
CONFIG = replace(
    BASE,
    server=replace(BASE.server, cache_tokens=256),
    client=replace(BASE.client, activations="fp32", exact=True),
)
PROMPT = [3, 1, 4]


def played(check, *faults):
    """Let ``check`` look at a swarm of three replicas in which a schedule is played."""

    async def main():
        async with open_swarm(TOY, [(0, 2)] * 3, CONFIG) as swarm, swarm.client() as client:
            disorder = Disorder(SwarmPatients(swarm))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disorder.play, schedule_of(faults))
                await check(swarm, client, disorder)
                nursery.cancel_scope.cancel()

    run(main)


def test_moments_of_a_flapping_link():
    flap = Event.parse("flap@10=s0+5*2")
    assert [(at, begins) for at, _, begins in moments(flap)] == [(10, True), (12, False), (14, True), (15, False)]
    endless = moments(Event.parse("flap@1=s0*0.5"))
    assert [at for at, _, _ in itertools.islice(endless, 5)] == [1, 1.5, 2, 2.5, 3]
    assert [begins for _, _, begins in moments(Event.parse("crash@1=s0"))] == [True]
    assert [begins for _, _, begins in moments(Event.parse("crash@1=s0+2"))] == [True, False]


def test_crashed_hosts_come_back_and_restarted_ones_at_once():
    async def check(swarm, client, disorder):
        first = swarm.servers["s0"]
        await trio.sleep(1.5)
        assert not first.network.alive
        assert swarm.servers["s1"].network.alive
        await trio.sleep(2)
        assert swarm.servers["s0"] is not first
        assert swarm.servers["s0"].network.alive
        assert swarm.servers["s0"].peer == first.peer
        second = swarm.servers["s1"]
        await trio.sleep(1)
        assert not second.network.alive
        assert swarm.servers["s1"].network.alive

    played(check, "crash@1=s0+2", "crash@1.2=s0", "restart@4=s1")


def test_silence_lasts_as_long_as_any_of_its_causes():
    async def check(swarm, client, disorder):
        cut = []
        for _ in range(8):
            await trio.sleep(1)
            cut.append(swarm.world.cut("client", "s0"))
        assert cut == [False, True, True, True, True, False, True, False]

    played(check, "hang@1.5=s0+2", "hang@2.5=s0+3", "flap@6.5=s0+1*3")


def test_slow_hosts_are_as_slow_as_all_causes_together():
    async def check(swarm, client, disorder):
        compute = swarm.servers["s0"].serving.engine._compute
        seen = []
        for _ in range(5):
            seen.append(compute.slower)
            await trio.sleep(1)
        assert seen == [1, 2, 6, 3, 1]
        assert swarm.servers["s1"].serving.engine._compute.slower == 1

    played(check, "slow@0.5=s0+2*2", "slow@1.5=s0+2*3")


def test_a_slow_machine_stays_slow_when_its_process_starts_again():
    async def check(swarm, client, disorder):
        await trio.sleep(3)
        assert swarm.servers["s0"].serving.engine._compute.slower == 4
        await disorder.heal()
        assert swarm.servers["s0"].serving.engine._compute.slower == 1

    played(check, "slow@0.5=s0", "crash@1=s0+1")


def test_bad_links_lose_and_delay_on_top_of_what_they_were():
    async def check(swarm, client, disorder):
        world = swarm.world
        before = world.links.access("s0")
        base = world.latency("client", "s0")
        await trio.sleep(1)
        assert world.latency("client", "s0") == pytest.approx(base + 0.5)
        assert world.links.loss("client", "s0") == pytest.approx(0.1)
        await trio.sleep(1)
        assert world.latency("client", "s0") == pytest.approx(base + 0.7)
        assert world.links.loss("client", "s0") == pytest.approx(0.19)
        await disorder.heal()
        assert world.links.access("s0") == before

    played(check, "lag@0.5=s0*0.5", "flaky@0.5=s0*0.1", "lag@1.5=s0*0.2", "flaky@1.5=s0*0.1")


def test_corrupted_messages_are_noticed_and_the_text_is_right():
    async def check(swarm, client, disorder):
        heard = []
        swarm.world.tap = lambda stream, data: heard.append(data) or data
        await trio.sleep(1)
        result = await client.model.generate([PROMPT], max_new_tokens=30)
        assert list(result.new_ids[0]) == TOY.greedy(PROMPT, 30)
        assert result.recoveries
        assert heard  # whoever listened before still does
        await disorder.heal()
        assert swarm.world.tap([], b"x") == b"x"

    played(check, "corrupt@0.5=client*0.1")


def test_wrong_servers_give_wrong_tokens_until_they_are_healed():
    async def check(swarm, client, disorder):
        await trio.sleep(1)
        wrong = await client.model.generate([PROMPT], max_new_tokens=4)
        assert list(wrong.new_ids[0]) != TOY.greedy(PROMPT, 4)
        await disorder.heal()
        right = await client.model.generate([PROMPT], max_new_tokens=4)
        assert list(right.new_ids[0]) == TOY.greedy(PROMPT, 4)

    played(check, "wrong@0.5=s0", "wrong@0.5=s1", "wrong@0.5=s2")


def test_stale_records_are_offered_and_refused():
    async def check(swarm, client, disorder):
        server, view, offered = swarm.servers["s0"], client.directory.view, []
        merge = view.merge

        def listen(record, *args, **options):
            offered.append((record, merge(record, *args, **options)))
            return offered[-1][1]

        view.merge = listen
        await trio.sleep(0.5)
        swarm.withdraw(server)
        version = view.version
        await trio.sleep(1)
        assert offered[-1] == (server.record, Outcome.KNOWN)
        assert view.version == version
        assert server.peer in {ann.peer for ann in view.announcements(MODEL)}
        assert server.peer not in {ann.peer for ann in view.servers(MODEL)}

    played(check, "stale@1=s0")


def test_a_full_disk_refuses_what_is_written_only():
    async def check(swarm, client, disorder):
        disk = client.model._context.ports.storage
        disk.write("a", b"1")
        await trio.sleep(1)
        with pytest.raises(StorageError, match="disk full"):
            disk.write("b", b"1")
        assert disk.read("a", 0, 1) == b"1"
        await trio.sleep(2)
        disk.write("b", b"1")

    played(check, "disk_full@0.5=client+2")


def test_clocks_jump_and_jump_back():
    async def check(swarm, client, disorder):
        off = []
        for _ in range(4):
            off.append(swarm.world.wall_time("s0") - swarm.world.wall_time("s1"))
            await trio.sleep(1)
        assert off == pytest.approx([0, 3600, 3540, -60])

    played(check, "clock_jump@0.5=s0+2*3600", "clock_jump@1.5=s0*-60")


def test_partitions_follow_each_other_and_healing_ends_them():
    async def check(swarm, client, disorder):
        world = swarm.world
        await trio.sleep(1)
        assert [world.cut("client", name) for name in ("s0", "s1", "s2")] == [True, True, False]
        assert world.cut("s0", "s1")
        await trio.sleep(1)
        assert [world.cut("client", name) for name in ("s0", "s1", "s2")] == [False, False, True]
        await disorder.heal(["s0"])
        assert not world.cut("client", "s2")

    played(check, "partition@0.5=s0|s1+1", "partition@1.2=s2")


def test_healing_a_core_leaves_the_others_as_they_are():
    async def check(swarm, client, disorder):
        await trio.sleep(1)
        await disorder.heal(["s0", "client"])
        assert swarm.servers["s0"].network.alive
        assert not swarm.servers["s1"].network.alive
        assert swarm.world.cut("client", "s2")
        await disorder.heal()
        assert swarm.servers["s1"].network.alive
        assert not swarm.world.cut("client", "s2")

    played(check, "crash@0.5=s0", "crash@0.5=s1", "hang@0.5=s2")


async def test_clients_are_not_started_again():
    async with open_swarm(TOY, [(0, 2)], CONFIG) as swarm, swarm.client():
        with pytest.raises(UserError, match="'client' is a client"):
            await Disorder(SwarmPatients(swarm)).begin(Event.parse("restart@0=client"))
