"""What is news and what is only load."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.dht.news import tells_more
from p2pllm.dht.record import Throughput
from p2pllm.types import PeerId, ServerState, Span
from tests.dht.swarm import announcement

BEFORE = announcement(throughput=Throughput(10.0, 100.0, 5.0))


@pytest.mark.parametrize(
    "change",
    [
        {"span": Span(1, 5)},
        {"state": ServerState.DRAINING},
        {"addrs": ("/ip4/1.2.3.4/tcp/1/p2p/x",)},
        {"adapters": ("a",)},
        {"relayed": True},
        {"throughput": Throughput(13.0, 100.0, 5.0)},
        {"throughput": Throughput(10.0, 70.0, 5.0)},
        {"throughput": Throughput()},
    ],
)
def test_news(change):
    assert tells_more(BEFORE, replace(BEFORE, **change))
    assert tells_more(replace(BEFORE, **change), BEFORE)


@pytest.mark.parametrize(
    "change",
    [
        {"queue": 9, "cache_tokens_free": 3},
        {"pings": ((PeerId("x"), 0.1),)},
        {"sequence": 5, "issued_ms": 7, "ttl_ms": 9},
        {"throughput": Throughput(11.0, 90.0, 5.5)},
    ],
)
def test_load_is_no_news(change):
    assert not tells_more(BEFORE, replace(BEFORE, **change))
