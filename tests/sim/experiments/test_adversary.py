"""The adversary keeps to its limits, is worse than chance, and takes no token from its victim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.client.failover import Recovery
from p2pllm.types import PeerId, Span
from sim.disorder import schedule_of
from sim.experiments.adversary import KIND, Params, allowed, chain_at, cost_of, moments, search
from sim.kinds import Run, kind_of
from sim.trial import Job, JobReport

SMALL = replace(Params(), new_tokens=16, kills=1, positions=1, random_runs=2, targeted_runs=1)


def test_the_worst_kill_of_those_tried_is_found_and_repeated():
    calm = cost_of((SMALL, 0, ()))
    ((moment, added),), (cost,) = search(SMALL, calm, Run(processes=1))
    assert cost.took_s == pytest.approx(calm.took_s + added)
    assert added > 0
    assert (cost.lost, cost.errors, cost.violations) == (0, 0, ())
    assert moment.event.target in chain_at(calm.report.jobs[0], moment.event.at_s)
    assert cost_of((SMALL, 0, (moment.event,))) == cost


def test_told_kills_are_played():
    outcome = KIND.play(SMALL, Run(faults=("crash@5.5=s0+20",), processes=1))
    assert outcome.ok
    assert outcome.faults == ("crash@5.5=s0+20",)
    (result,) = outcome.results
    assert result["lost"] == 0
    assert result["mean_s"] > result["undisturbed_s"]
    assert kind_of("adversary") is KIND


def test_kills_keep_to_the_limit_and_to_the_living():
    params = Params(kills_per_minute=2, repair_s=20.0)
    schedule = schedule_of(["crash@10=s0+20", "crash@40=s1+20"])

    def may(text):
        return allowed(params, schedule, schedule_of([text])[0])

    assert not may("crash@69=s2+20")
    assert may("crash@70.5=s2+20")
    assert not may("crash@5=s2+20")
    assert not allowed(params, schedule_of(["crash@10=s0+20"]), schedule_of(["crash@25=s0+20"])[0])
    assert allowed(params, schedule_of(["crash@10=s0+20"]), schedule_of(["crash@25=s1+20"])[0])


def test_moments_are_everywhere_and_the_special_ones():
    recovery = Recovery(7.2, PeerId("x"), Span(0, 1), "gone", (), 3, 0.5)
    job = JobReport(
        Job("user0", (1,), 4, at_s=5.0),
        times_s=[6.0, 7.0, 8.0, 9.0],
        recoveries=(recovery,),
        chains=[(6.0, ("s0", "s1")), (7.7, ("s4", "s1"))],
    )
    found = moments(replace(Params(), positions=2), job)
    special = {
        (moment.why, moment.event.target, moment.event.at_s) for moment in found if "somewhere" not in moment.why
    }
    assert special == {
        ("at the last position", "s4", 8.6),
        ("at the last position", "s1", 8.6),
        ("during a replay", "s4", 7.5),
        ("just after a re-route", "s4", 7.701),
    }
    assert len([moment for moment in found if "somewhere" in moment.why]) == 4
    assert [moment.position for moment in found if moment.why == "at the last position"] == [3, 3]
