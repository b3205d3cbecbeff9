"""A trial finds nothing where the product does what it promises, and finds a bug that is there, whatever it is."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from p2pllm.client.failover import Failover
from p2pllm.client.replay import History
from p2pllm.errors import CoverageError, UserError
from p2pllm.types import Span
from sim.disorder import schedule_of, texts_of
from sim.disorder_acts import Disorder
from sim.disorder_processes import Churn, Place, draw
from sim.shrink import shrink
from sim.toy import ToyModel
from sim.trial import Job, Trial, play

SPANS = ((0, 1), (1, 2), (2, 3)) * 3
TRIAL = Trial(
    SPANS, tuple(Job(f"user{i}", (11 + i, 7, 5), 40, at_s=float(i)) for i in range(2)), pass_s=0.05, heal_s=40.0
)
PLACES = [Place(f"s{i}", f"region{i // 3}", Span(*span)) for i, span in enumerate(SPANS)]


def disturbed(*faults, seed=3, between_s=8.0):
    """Some twenty events."""
    return draw(Churn("poisson", faults, between_s=between_s, repair_s=3.0), PLACES, 20.0, random.Random(seed))


def test_undisturbed_jobs_compute_what_the_whole_model_computes():
    report = play(TRIAL)
    toy = ToyModel(3)
    assert report.violations == ()
    assert [job.tokens for job in report.jobs] == [toy.greedy(job.prompt, job.new_tokens) for job in TRIAL.jobs]
    assert report == play(TRIAL)


@pytest.mark.parametrize("push", ["on", "off"])
def test_nothing_is_lost_while_everything_goes_wrong(push):
    faults = disturbed("crash", "hang", "restart", "slow", "corrupt", "flap", "clock_jump", "stale")
    trial = replace(TRIAL, push=push, regions=tuple(place.region for place in PLACES), schedule=faults)
    report = play(trial)
    assert len(faults) >= 10
    assert report.violations == ()
    assert report.recoveries
    assert all(job.lost == 0 and job.ended_s is not None for job in report.jobs)
    assert play(trial).trace == report.trace
    assert play(replace(trial, seed=1)).trace != report.trace


def test_a_user_goes_on_after_an_error_and_gets_the_same_tokens():
    """All replicas of a block are gone for longer than anybody's patience."""
    faults = schedule_of(["crash@1=s0+20 crash@1=s3+20 crash@1=s6+20"])
    report = play(replace(TRIAL, schedule=faults, patience_s=3.0))
    assert report.violations == ()
    assert any("block 0" in text for job in report.jobs for _, text in job.errors)
    assert all(job.lost == 0 for job in report.jobs)
    assert report.jobs[0].chains[0][1] != ()


def test_wrong_numbers_of_a_server_are_found():
    report = play(replace(TRIAL, schedule=schedule_of(["wrong@0=s0 wrong@0=s3 wrong@0=s6"])))
    assert report.violations
    assert all("undisturbed it is" in line for line in report.violations)


def test_a_swarm_that_is_never_healed_is_found(monkeypatch):
    async def leave(disorder, core=None):
        return

    monkeypatch.setattr(Disorder, "heal", leave)
    faults = schedule_of(["crash@1=s0 crash@1=s3 crash@1=s6"])
    report = play(replace(TRIAL, schedule=faults, heal_s=10.0, bound_s=30.0, patience_s=5.0))
    assert [line for line in report.violations if "not over 30 s after all was healed" in line]


def test_an_error_that_nobody_deserves_is_found(monkeypatch):
    async def refuse(failover, *args, **options):
        raise CoverageError("no server for block 0", (0,))

    mend = Failover.mend
    monkeypatch.setattr(Failover, "mend", refuse)
    report = play(replace(TRIAL, schedule=schedule_of(["crash@1=s0", "crash@1=s3"])))
    monkeypatch.setattr(Failover, "mend", mend)
    assert any("gave up though every block had a server" in line for line in report.violations)


def test_a_host_that_is_not_there_is_the_users_mistake():
    with pytest.raises(UserError, match=r"crash@1=s99: there is no host 's99'; there are: s0, s1"):
        play(replace(TRIAL, schedule=schedule_of(["crash@1=s99"])))


async def forget_to_replay(failover, legs, rows):
    for leg in legs:
        leg.rows = rows
    return 0


packed = History.packed


@pytest.mark.parametrize("bug", ["no replay", "wrong replay"])
def test_a_bug_is_found_by_chance_and_its_schedule_shrinks(bug, monkeypatch):
    """Some twenty events, of which a single one matters; what is left is text that repeats it."""
    expected = play(TRIAL)
    if bug == "no replay":
        monkeypatch.setattr(Failover, "replay", forget_to_replay)
    else:

        async def garbled(history, border, runs):
            found = await packed(history, border, runs)
            return replace(found, payload=bytes(len(found.payload)))

        monkeypatch.setattr(History, "packed", garbled)
    faults = disturbed("crash", "hang", "slow", "clock_jump", "stale", "restart")
    assert len(faults) >= 15
    asked = []

    def fails(schedule):
        asked.append(schedule)
        return bool(play(replace(TRIAL, schedule=schedule), expected).violations)

    small = shrink(faults, fails)
    assert 1 <= len(small) <= 2
    assert len(asked) <= 40
    line = " ".join(texts_of(small))
    again = play(replace(TRIAL, schedule=schedule_of([line])), expected)
    assert again.violations
    monkeypatch.undo()
    assert play(replace(TRIAL, schedule=schedule_of([line])), expected).violations == ()
