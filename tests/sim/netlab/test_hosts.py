"""A lab's configuration: addresses, defaults, commands for the forwarder, mistakes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import sim.netlab
from sim.netlab.hosts import NATS, forwarder_lines, link_lines, read_hosts
from sim.netlab.tools import LabError

EXAMPLE = tomllib.loads((Path(sim.netlab.__file__).parent / "example.toml").read_text())


def test_the_example_says_what_it_means() -> None:
    """Hosts in file order, defaults filled in, routers for those behind NAT."""
    hosts = read_hosts("nl1x0", EXAMPLE)
    assert list(hosts) == ["a", "b", "home", "mobile"]
    assert [host.wan for host in hosts.values()] == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert hosts["a"].local == "10.0.0.1"
    assert hosts["a"].router is None
    assert hosts["home"].local == "192.168.3.2"
    assert hosts["home"].lan == "192.168.3"
    assert hosts["home"].router == "nl1x0-home.r"
    assert hosts["home"].link["uplink_mbit"] == 20
    assert hosts["a"].link == {"uplink_mbit": 100, "downlink_mbit": 100, "queue_ms": 100, "delay_ms": 5}


def test_the_forwarder_is_told_everything() -> None:
    """Seed first, hosts, access links, then both directions of the pairs."""
    lines = forwarder_lines(read_hosts("L", EXAMPLE), EXAMPLE, "/run/netns")
    assert lines[0] == "seed 1"
    assert lines[1] == "host a /run/netns/L-a wan0 10.0.0.1"
    assert lines[3] == "host home /run/netns/L-home.r wan0 10.0.0.3"
    assert "link b up=100 down=100 queue=100 delay=20 jitter=2 loss=0.001" in lines
    assert lines[-2:] == ["pair a b delay=40", "pair b a delay=40"]


def test_link_lines() -> None:
    assert link_lines("a", None, False, {"uplink_mbit": 3.5}) == ["link a up=3.5"]
    assert link_lines("a", "b", True, {"delay_ms": None}) == ["pair a b delay=-"]


def test_many_hosts_have_addresses_of_their_own() -> None:
    hosts = read_hosts("L", {"hosts": [{"name": "h", "count": 252}]})
    assert hosts["h0"].wan == "10.0.0.1"
    assert hosts["h251"].wan == "10.0.1.2"
    assert len({host.wan for host in hosts.values()}) == 252


@pytest.mark.parametrize("nat", NATS[1:])
def test_rules_fit_the_kind_of_nat(nat: str) -> None:
    """Ports by destination only where symmetric; others are let in only by the full cone."""
    rules = read_hosts("L", {"hosts": [{"name": "n", "nat": nat}]})["n"].nat_rules()
    assert ("fully-random" in rules) == (nat == "symmetric")
    assert ("update @cone" in rules) == (nat == "full-cone")
    assert "dnat to 192.168.1.2;" in rules


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"host": []}, "config: unknown key.* host; known: .*hosts"),
        ({"hosts": [{"name": "a", "delay": 1}]}, "host a: unknown key.* delay; known: .*delay_ms"),
        ({"hosts": [{"name": "a"}, {"name": "a"}]}, "duplicate host a"),
        ({"hosts": [{"name": "a b"}]}, "bad name"),
        ({"hosts": [{"name": "a", "nat": "cone"}]}, "full-cone, port-restricted, symmetric"),
    ],
)
def test_mistakes_are_named(config: dict, words: str) -> None:
    with pytest.raises(LabError, match=words):
        read_hosts("L", config)


def test_mistakes_of_links_are_named() -> None:
    with pytest.raises(LabError, match="unknown key"):
        link_lines("a", None, False, {"bandwidth": 1})
