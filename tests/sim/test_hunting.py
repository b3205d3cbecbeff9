"""The search keeps to its limits, looks at the right moments, and finds kills that hurt."""

from __future__ import annotations

from dataclasses import replace

from p2pllm.client.failover import Recovery
from p2pllm.types import PeerId, Span
from sim.disorder import schedule_of
from sim.hunting import (
    Params,
    allowed,
    chain_at,
    chased_at_random,
    cost_of,
    gone_s,
    hunted,
    moments,
    one_by_one,
    schedule_of_path,
)
from sim.kinds import Run
from sim.trial import Job, JobReport

SMALL = replace(Params(), new_tokens=16, kills=1, positions=1, random_runs=2, targeted_runs=1)


def test_the_worst_kill_of_those_tried_is_found_and_repeated():
    calm = cost_of((SMALL, 0, ()))
    ((moment, cost),) = one_by_one(SMALL, calm, Run(processes=1))
    assert cost.took_s > calm.took_s
    assert (cost.lost, cost.errors, cost.violations) == (0, 0, ())
    assert moment.event.target in chain_at(calm.report.jobs[0], moment.event.at_s)
    assert cost_of((SMALL, 0, (moment.event,))) == cost


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
        chains=[(6.0, ("s0", "s1")), (8.0, ("s4", "s1"))],
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


def test_a_hunt_follows_the_victim_from_server_to_server():
    """With as many kills as replicas the stage is gone, and the victim waits until a server is back."""
    params = replace(SMALL, kills=3, repair_s=8.0)
    path = hunted((params, 0, 1, 0.5))
    schedule = schedule_of_path(path)
    assert len({event.target for event in schedule}) == 3
    assert {int(event.target[1:]) % 4 for event in schedule} == {1}
    cost = path[-1][1]
    assert (cost.lost, cost.errors, cost.violations) == (0, 0, ())
    assert 0 < cost.gone_s <= cost.took_s
    assert cost.took_s > 8
    assert hunted((params, 0, 1, 0.5)) == path


def test_chance_chases_the_victim():
    params = replace(SMALL, kills=2)
    path = chased_at_random((params, 0, 3))
    assert 1 <= len(path) <= 2
    assert path[-1][1].lost == 0


def test_blocks_are_gone_while_nobody_serves_them():
    schedule = schedule_of(["crash@10=s0+10", "crash@12=s4+10", "crash@15=s8+10", "crash@15=s1+10"])
    assert gone_s(Params(), schedule, 100.0) == 5.0
    assert gone_s(Params(), schedule, 17.0) == 2.0
    assert gone_s(Params(replicas=4), schedule, 100.0) == 0.0
    assert gone_s(Params(), (), 100.0) == 0.0
