"""How often a node does what it does again and again: the more servers, the more rarely.

Invariants: pure. Every server's record reaches every member, so with fixed intervals a member's traffic would grow with
the swarm. Up to ``SERVERS_AT_FULL_PACE`` servers the configured intervals hold; beyond that a record lives in
proportion to their number, so that a member takes in about as many per minute however many servers there are. What
changes is told at once in any case. A record outlives its renewal by far, and never lives longer than ``ttl_max_s``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from p2pllm.config import RecordConfig

SERVERS_AT_FULL_PACE = 200
RENEWALS_MIN = 2.0
"""Renewals in a record's life in a large swarm; one that comes late is late by seconds, and a life is many minutes."""
FIND_INTERVAL_S = 120.0
"""How often the DHT is asked again although members answer: two halves of a swarm find each other this way."""

FANOUT = 4


def slower(servers: int) -> float:
    """How many times longer than configured the intervals are in a swarm of so many servers."""
    return max(1.0, servers / SERVERS_AT_FULL_PACE)


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals for now.

    Attributes:
        announce_s: until a record that says nothing new is renewed.
        exchange_s: until a partner is asked what is new.
        fanout: members that a server tells of a change itself; others ask them.
        find_s: until the DHT is asked again.
        meet_s: after which a round with partners also calls on a server that was never reached.
    """

    announce_s: float
    ttl_s: float
    exchange_s: float
    find_s: float
    meet_s: float
    fanout: int


def pace(config: RecordConfig, servers: int) -> Pace:
    """The intervals of a member that knows so many servers."""
    life = max(1.0, min(slower(servers), config.ttl_max_s / config.ttl_s))
    renewals = max(RENEWALS_MIN, config.ttl_s / config.announce_interval_s - (life - 1))
    return Pace(
        announce_s=max(config.announce_interval_s, config.ttl_s * life / renewals),
        ttl_s=config.ttl_s * life,
        exchange_s=config.exchange_interval_s * life,
        find_s=FIND_INTERVAL_S * life,
        meet_s=config.announce_interval_s * (life - 1),
        fanout=max(FANOUT, ceil(sqrt(servers) / 2)),
    )
