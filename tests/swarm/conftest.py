"""One real swarm for all tests of this folder: a bootstrap node and three servers, each a process on loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import trio

from p2pllm.client.portal import Portal
from p2pllm.node.local_swarm import LocalSwarm, open_local_swarm

SPANS = [(0, 3), (3, 5), (5, 8)]


@pytest.fixture(scope="session")
def portal() -> Iterator[Portal]:
    """A loop that outlives single tests."""
    with Portal() as portal:
        yield portal
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("p2pllm")]


@pytest.fixture(scope="session")
def swarm(portal: Portal) -> Iterator[LocalSwarm]:
    """Bootstrap and servers of the demo model in exact mode, found through the DHT."""
    held = portal.open(open_local_swarm("demo", SPANS, flags=["--exact", "--threads", "1"]))
    try:
        yield held.value
    finally:
        with contextlib.suppress(trio.Cancelled):
            held.close()
