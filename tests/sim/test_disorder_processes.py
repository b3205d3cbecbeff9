"""Processes draw what their names say, and the same from the same generator."""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import replace
from typing import get_args

import pytest

from p2pllm.errors import UserError
from p2pllm.types import Span
from sim.disorder import Fault, FaultWord, schedule_of, texts_of
from sim.disorder_processes import Churn, Place, draw, loads, parse_trace

STAGES = [Place(f"s{i}", f"region{i // 4}", Span(i % 4, i % 4 + 1)) for i in range(12)]
"""Four blocks, three replicas each, every region a whole chain."""


@pytest.mark.parametrize("process", ["poisson", "correlated", "cascading"])
def test_the_same_draws_give_the_same_schedule_and_it_is_its_text(process):
    churn = Churn(process, ("crash", "hang", "restart"), between_s=40, repair_s=10, load=0.9)
    one, two = (draw(churn, STAGES, 300, random.Random(5)) for _ in range(2))
    assert one == two
    assert one
    assert draw(churn, STAGES, 300, random.Random(6)) != one
    assert schedule_of(texts_of(one)) == one
    assert all(event.at_s < 300 and event.target in {place.name for place in STAGES} for event in one)


def test_poisson_keeps_its_means():
    churn = Churn(between_s=50, repair_s=10)
    schedule = draw(churn, STAGES[:1], 200_000, random.Random(1))
    repairs = [event.for_s for event in schedule]
    assert statistics.mean(repairs) == pytest.approx(10, rel=0.1)
    assert len(schedule) == pytest.approx(200_000 / 60, rel=0.1)
    for before, after in itertools.pairwise(schedule):
        assert after.at_s >= before.ends_s - 0.01  # who is down cannot fail


def test_nothing_happens_before_the_start():
    for process in ("poisson", "correlated", "cascading"):
        assert draw(Churn(process, start_s=100, between_s=5), STAGES, 99, random.Random(0)) == ()


def test_a_region_fails_as_a_whole_and_shortly():
    churn = Churn("correlated", between_s=100, repair_s=10, spread_s=2)
    schedule = draw(churn, STAGES, 2000, random.Random(3))
    regions = {place.name: place.region for place in STAGES}
    groups = [schedule[i : i + 4] for i in range(0, len(schedule), 4)]
    alone = [group for group in groups if len({regions[event.target] for event in group}) == 1]
    assert len(alone) >= 0.7 * len(groups)  # outages of different regions may overlap
    assert all(len({event.target for event in group}) == 4 for group in alone)
    assert all(group[-1].at_s - group[0].at_s <= 2.001 for group in alone)
    half = draw(replace(churn, share=0.5), STAGES, 2000, random.Random(3))
    assert 0 < len(half) < len(schedule)


def test_an_overload_brings_down_the_survivors_and_room_does_not():
    def failures(load):
        churn = Churn("cascading", between_s=2000, repair_s=30, load=load, steepness=3)
        return [len(draw(churn, STAGES, 2000, random.Random(seed))) for seed in range(20)]

    calm, busy = failures(0.5), failures(0.95)
    assert statistics.mean(busy) > 1.5 * statistics.mean(calm)
    # With room for a lost replica or two nobody fails but by accident: 12 hosts, one accident in 2000 s each.
    assert statistics.mean(calm) < 16


def test_load_is_shared_and_a_broken_chain_carries_none():
    servers = {"a": Span(0, 2), "b": Span(0, 1), "c": Span(1, 2)}
    assert loads(servers, servers) == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert loads({"a": Span(0, 2), "b": Span(0, 1)}, servers) == {"a": 0.75, "b": 0.5}
    assert loads({"b": Span(0, 1)}, servers) == {"b": 0.0}


def test_a_trace_is_read(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("at_s,kind,target,for_s,amount\n7,crash,s1,,\n3.5,slow,s0,10,4\n9,partition,s0&s1|s2,5,\n")
    schedule = draw(Churn("trace", trace=str(file)), [], 8, random.Random(0))
    assert texts_of(schedule) == ("slow@3.5=s0+10*4", "crash@7=s1")
    assert parse_trace("at_s,kind,target\n1,restart,s0\n", "x")[0].kind is Fault.RESTART


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("when,what\n1,crash\n", "x: the columns are at_s,kind,target,for_s,amount"),
        ("at_s,kind,target\n1,crash,s0\n2,crush,s0\n", "x, line 3: 'crush@2=s0': there is no fault 'crush'"),
    ],
)
def test_a_bad_trace_is_named(text, complaint):
    with pytest.raises(UserError) as caught:
        parse_trace(text, "x")
    assert complaint in str(caught.value)


def test_a_missing_trace_and_no_faults_at_all_are_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the trace .*nowhere"):
        draw(Churn("trace", trace=str(tmp_path / "nowhere")), STAGES, 9, random.Random(0))
    assert {fault.value for fault in Fault} - set(get_args(FaultWord)) == {"partition"}  # of no single host
    with pytest.raises(UserError, match="name at least one"):
        draw(Churn(faults=()), STAGES, 9, random.Random(0))
