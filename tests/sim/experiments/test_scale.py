"""The growing swarm, small: everybody finds a chain, and counts and trace follow from the seed."""

from __future__ import annotations

from sim.crowd import BLOCKS, Crowd, play
from sim.experiments.scale import KIND, Params
from sim.kinds import Run

SMALL = Crowd(
    servers=14, clients=12, at_once=6, fill_s=10.0, quiet_s=20.0, crowd_s=20.0, stay_s=5.0, latency_s=0.03, seed=3
)


def test_the_reduced_experiment_keeps_its_promises():
    outcome = KIND.play(Params(servers=(10, 20)), Run(quick=True, processes=1))
    assert all(one.ok for one in outcome.gates)
    small, large = outcome.results
    assert (small["servers"], large["servers"]) == (10, 20)
    assert (small["known_min"], large["known_min"]) == (10, 20)
    assert large["record_bytes_per_min"] > small["record_bytes_per_min"] > 0
    assert 1 <= small["lookups_per_client"] < 10
    assert small["hops"] == BLOCKS / 8


def test_the_same_seed_counts_the_same():
    one, again = play(SMALL), play(SMALL)
    assert one.trace == again.trace
    assert (one.ready_s, one.record_bytes_per_min, one.client_bytes) == (
        again.ready_s, again.record_bytes_per_min, again.client_bytes,
    )  # fmt: skip
    assert len(one.plan_cpu_s) == 12


def test_a_crowd_beyond_its_limit_is_counted_as_failed():
    crowded = play(Crowd(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"at_once": 2}))
    assert crowded.most_at_once == 2
    assert crowded.failed == 12 - len(crowded.ready_s) > 0
