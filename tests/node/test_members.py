"""p2pllm.node.members: what is remembered survives a restart; what makes no sense is ignored."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.node.members import MEMBERS_MAX, MembersFile, parse_members
from p2pllm.types import PeerId
from sim.storage import MemoryStorage


async def test_members_survive_a_restart() -> None:
    """Saved, the best first, and read again by the next process; older ones stay behind newer ones."""
    storage = MemoryStorage()
    first = MembersFile(storage, "cache/members.json")
    await first.load()
    assert first.current == []
    await first.save([(PeerId("A"), ("/ip4/127.0.0.1/tcp/1",))])
    await first.save([(PeerId("B"), ("/ip4/127.0.0.1/tcp/2/p2p/B",))])
    second = MembersFile(storage, "cache/members.json")
    await second.load()
    assert [peer for peer, _ in second.current] == ["B", "A"]
    assert second.addresses() == ("/ip4/127.0.0.1/tcp/2/p2p/B", "/ip4/127.0.0.1/tcp/1/p2p/A")


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{}", b"[1, null]", b'[{"peer": 1}]', b'[{"peer": "A", "addrs": [3]}]']
)
def test_nonsense_is_no_members(data: bytes) -> None:
    """A damaged file costs nothing but its contents."""
    assert parse_members(data) == []


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    """Whatever the file holds, there is a list."""
    assert isinstance(parse_members(data), list)


def test_too_much_is_cut() -> None:
    """The file cannot grow without bound."""
    data = json.dumps([{"peer": f"P{i}", "addrs": ["/x"] * 100} for i in range(1000)]).encode()
    members = parse_members(data)
    assert len(members) == MEMBERS_MAX
    assert all(len(addrs) <= 8 for _, addrs in members)
