"""Intervals by the size of the swarm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.config import RecordConfig, local
from p2pllm.dht.pace import FANOUT, FIND_INTERVAL_S, RENEWALS_MIN, SERVERS_AT_FULL_PACE, pace

WAN = RecordConfig()


def test_a_small_swarm_keeps_the_configured_intervals():
    for servers in (0, 1, SERVERS_AT_FULL_PACE):
        now = pace(WAN, servers)
        assert (now.announce_s, now.ttl_s, now.exchange_s) == (60.0, 180.0, WAN.exchange_interval_s)
        assert (now.find_s, now.meet_s) == (FIND_INTERVAL_S, 0.0)
        assert FANOUT <= now.fanout <= 2 * FANOUT


def test_what_a_member_takes_in_does_not_grow_with_the_swarm():
    for servers in (200, 400, 1000, 4000):
        assert servers / pace(WAN, servers).announce_s <= SERVERS_AT_FULL_PACE / WAN.announce_interval_s
    assert (pace(WAN, 1000).announce_s, pace(WAN, 1000).ttl_s) == (450.0, 900.0)


@given(st.integers(0, 100_000), st.sampled_from([WAN, local().records]))
def test_a_record_always_outlives_its_renewal_and_no_reader_refuses_it(servers, config):
    now = pace(config, servers)
    assert now.ttl_s <= config.ttl_max_s
    assert now.ttl_s >= RENEWALS_MIN * now.announce_s * (1 - 1e-9)
    assert now.exchange_s * 8 < now.ttl_s - now.announce_s, "news come round several times before it ends"
    assert now.announce_s >= config.announce_interval_s
    assert pace(config, servers + 1).announce_s >= now.announce_s
