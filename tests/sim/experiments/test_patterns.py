"""Failure patterns: no token is lost, recoveries are timed, and a run is repeated by its faults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.experiments.patterns import KIND, Params, measured, played, stalls, trial_of, wrong_of
from sim.kinds import Run, kind_of
from sim.trial import Job, JobReport, Report

SMALL = replace(Params(), users=1, new_tokens=40, runs=1)


def test_told_failures_are_survived_and_timed():
    outcome = KIND.play(SMALL, Run(faults=("crash@6=s0+9", "crash@6.2=s4+9", "crash@6.4=s8+9"), processes=1))
    assert outcome.ok
    (result,) = outcome.results
    assert result["pattern"] == "as told"
    assert (result["failures"], result["lost"], result["errors"]) == (3, 0, 0)
    assert result["recoveries"] >= 1
    assert 5 < result["wait_max_s"] < 30  # nobody serves the first block until one of them is back
    assert result["slower"] > 1.5
    assert outcome.faults == ("crash@6=s0+9", "crash@6.2=s4+9", "crash@6.4=s8+9")
    assert kind_of("patterns") is KIND


def test_every_pattern_is_played():
    outcome = KIND.play(SMALL, Run(seed=3, processes=1))
    assert outcome.ok
    assert [line["pattern"] for line in outcome.results] == ["random", "correlated", "cascading"]
    assert len(outcome.gates) == 6


def test_a_run_is_its_job():
    job = (SMALL, SMALL.patterns[0], 5, None)
    assert played(job) == played(job)
    assert trial_of(SMALL, 5).seed == 5


def test_lost_and_wrong_tokens_are_counted():
    job = Job("user0", (1,), 4)
    expected, found = JobReport(job, [5, 6, 7, 8]), JobReport(job, [5, 9, 7])
    assert wrong_of(expected, found) == 2
    expected.ended_s = 4.0
    report = Report((found,), ("user0: token 1 is 9",), "", 4.0)
    measures = measured("x", (), Report((expected,), (), "", 4.0), report)
    assert (measures.lost, measures.slower) == (2, 0.0)


def test_waiting_counts_where_something_was_recovered_only():
    class Recovered:
        at = 2.5

    job = JobReport(Job("user0", (1,), 5), times_s=[1.0, 2.0, 7.0, 8.0, 12.0], recoveries=(Recovered(),))
    assert stalls(job) == pytest.approx([4.0])
    assert stalls(JobReport(Job("user0", (1,), 5))) == []
