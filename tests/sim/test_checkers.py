"""Checkers find what is wrong, name it, and find nothing where all is well."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from p2pllm.config import Config
from sim.checkers import Watch, accounts, difference, leaks, left_on_disk
from sim.storage import MemoryStorage
from sim.swarm import open_swarm
from sim.toy import ToyModel
from sim.trial import living

BASE = Config()
CONFIG = replace(
    BASE,
    server=replace(BASE.server, cache_tokens=256),
    client=replace(BASE.client, activations="fp32", exact=True),
)
TOY = ToyModel(2)


@pytest.mark.parametrize(
    ("got", "done", "found"),
    [
        ([5, 6, 7], True, []),
        ([5, 6], False, []),
        ([5, 9], False, ["job: token 1 is 9, undisturbed it is 6"]),
        ([5, 6], True, ["job: only 2 of 3 tokens came, and nobody said why"]),
        ([5, 6, 7, 8], True, ["job: 4 tokens, undisturbed there are 3"]),
    ],
)
def test_tokens_are_compared(got, done, found):
    assert difference("job", [5, 6, 7], got, done) == found


async def test_a_server_in_use_holds_something_and_an_idle_one_nothing():
    async with open_swarm(TOY, [(0, 2)], CONFIG) as swarm, swarm.client() as client:
        assert accounts(living(swarm)) == leaks(living(swarm)) == []
        async with client.model.session(32) as session:
            await client.model.generate([[1, 2, 3]], max_new_tokens=2, session=session)
            assert leaks(living(swarm)) == [
                "s0: 1 sessions are open, and nobody uses it",
                "s0: 32 tokens of its cache are not free, and nobody uses it",
            ]
        await trio.sleep(1)
        assert leaks(living(swarm)) == []


async def test_lost_pages_are_found_once():
    async with open_swarm(TOY, [(0, 2), (0, 2)], CONFIG) as swarm:
        watch = Watch(lambda: living(swarm))
        watch.look()
        assert watch.found == []
        swarm.servers["s1"].serving.room.cache._free.clear()
        watch.look()
        watch.look()
        assert watch.found == ["s1: the cache's accounts are wrong: pages lost or owned twice"]
        swarm.world.kill("s1")
        assert accounts(living(swarm)) == []


def test_forgotten_files_are_found():
    disk = MemoryStorage()
    scratch = disk.scratch()
    assert left_on_disk({"client": disk}) == ["client: 1 temporary files are left"]
    scratch.close()
    assert left_on_disk({"client": disk}) == []
