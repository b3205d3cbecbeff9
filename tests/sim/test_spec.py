"""A network in people's units becomes the simulator's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sim.links import Access
from sim.nat import Nat, RelayLimits
from sim.network import SimWorld
from sim.spec import AccessSpec, NetworkSpec

MATRIX = Path(__file__).parents[2] / "sim" / "data" / "ibm_cloud_2024.csv"


def test_an_access_in_people_s_units():
    spec = AccessSpec(8, 80, 5, 2, 0.01, 50, Nat.SYMMETRIC)
    assert spec.access() == Access(1e6, 1e7, 0.005, 0.002, 0.01, 0.05, Nat.SYMMETRIC, None)
    assert AccessSpec(relay=True).access() == Access(relay=RelayLimits())
    assert AccessSpec().access().queue_s == math.inf


async def test_a_network_is_applied():
    async with SimWorld(3) as world:
        spec = NetworkSpec((10, 30), loss=0.02, window_kib=64, access=AccessSpec(latency_ms=5))
        spec.apply(world, {})
        ways = [world.latency(a, b) for a in "abc" for b in "abc" if a < b]
        assert all(0.020 <= way <= 0.040 for way in ways)
        assert len(set(ways)) == 3
        assert world.links.loss("a", "b") == pytest.approx(0.02)
        assert world.links.window_bytes == 64 * 1024


async def test_regions_have_measured_latencies():
    async with SimWorld(3) as world:
        regions = {"a": "frankfurt", "b": "tokyo", "c": "tokyo"}
        NetworkSpec(7, matrix=MATRIX).apply(world, regions)
        assert world.latency("a", "b") == pytest.approx(0.2325, abs=0.1165)
        assert world.latency("a", "b") > 50 * world.latency("b", "c")
        assert world.latency("a", "elsewhere") == pytest.approx(0.007)
