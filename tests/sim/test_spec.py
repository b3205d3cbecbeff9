"""sim.spec: a ``[network]`` table becomes the world's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.errors import UserError
from sim.draws import LogNormal, Normal, Pareto, Uniform
from sim.nat import Nat, RelayLimits
from sim.network import SimWorld
from sim.reader import Place, fill
from sim.spec import AccessSpec, NetworkSpec, Spread

SHIPPED = Path(__file__).parents[2] / "sim" / "data" / "ibm_cloud_2024.csv"


def spec(**table):
    return fill(NetworkSpec, table, Place(Path("x.toml")))


def test_spreads():
    assert Spread("uniform", 20, 5).draw() == Uniform(0.015, 0.025)
    assert Spread("normal", 20, 5).draw() == Normal(0.02, 0.005)
    assert Spread("lognormal", 20, 0.5).draw() == LogNormal(0.02, 0.5)
    assert Spread("pareto", 20, 2).draw() == Pareto(0.02, 2)


async def test_a_table_is_applied():
    table = {
        "latency_ms": {"kind": "lognormal", "ms": 30, "spread": 0.4},
        "jitter_ms": {"kind": "pareto", "ms": 0.1, "spread": 2.5},
        "loss": 0.001,
        "slow_start": True,
        "window_kib": 64,
        "record_delay_ms": 500,
        "access": {"up_mbit": 8, "down_mbit": 80, "queue_ms": 100, "nat": "symmetric", "relay": True},
    }
    async with SimWorld(3) as world:
        spec(**table).apply(world, {})
        links, host = world.links, world.host("a")
        assert (links.slow_start, links.window_bytes, links.record_delay_s) == (True, 65536, 0.5)
        assert (host.uplink.bytes_per_s, host.downlink.bytes_per_s, host.downlink.queue_s) == (1e6, 1e7, 0.1)
        assert (host.access.nat, host.access.relay) == (Nat.SYMMETRIC, RelayLimits())
        latencies = [world.latency("a", f"b{number}") for number in range(300)]
        assert sorted(latencies)[150] == pytest.approx(0.03, rel=0.1)
        assert links.loss("a", "b1") == pytest.approx(0.001)
        delays = [links.delay("a", "b1", 1) - world.latency("a", "b1") for _ in range(100)]
        assert min(delays) >= 0.0001
        assert len(set(delays)) > 50


async def test_a_matrix_goes_by_the_regions_of_hosts():
    async with SimWorld() as world:
        NetworkSpec(latency_ms=(5, 6), matrix=SHIPPED).apply(world, {"a": "tokyo", "b": "london"})
        assert world.latency("a", "b") == pytest.approx(0.122)
        assert 0.005 <= world.latency("a", "elsewhere") < 0.006


def test_no_limits_by_default():
    access = AccessSpec().access()
    assert access.up_bytes_per_s is None
    assert access.queue_s == float("inf")


def test_mistakes_are_told():
    with pytest.raises(UserError, match="kind"):
        spec(jitter_ms={"kind": "gamma", "ms": 1, "spread": 1})
    with pytest.raises((UserError, ValueError), match="above 1"):
        spec(jitter_ms={"kind": "pareto", "ms": 1, "spread": 1})
