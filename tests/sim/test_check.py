"""What one process tells of a seed, and how a failing one is made small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pllm.errors import UserError
from sim.catalog import Scenario, scenario
from sim.check import Task, Verdict, problems, recorded, shrunk, told
from sim.kinds import Run
from tests.sim.odd_kinds import KIND, Params
from tests.sim.outcomes import EVERYTHING


def task(odd="", **how):
    scenario = Scenario("odd", "odd.toml", Path("odd.toml"), "", KIND, Params(odd), 0.0)
    return Task(scenario, Run(**how))


def test_problems_are_broken_promises_and_failed_gates():
    assert problems(EVERYTHING) == ("lost a <token>", "gate 'seen cell': ours 1, wanted near 1.71")


def test_equal_plays_are_told_equal():
    one = told(task().scenario, Run(3))
    assert Verdict(one, told(task().scenario, Run(3))).ok
    assert not Verdict(one, told(task().scenario, Run(4))).same


def test_of_a_kind_that_measures_only_the_trace_is_compared():
    measuring = replace(task().scenario, kind=replace(KIND, measured=True))
    one, other = (told(measuring, Run(3, processes=1)) for _ in range(2))
    assert (one.digest, one.trace_hash) == ("", told(task().scenario, Run(3)).trace_hash)
    assert Verdict(one, other).same


def test_events_are_recorded_into_a_file(tmp_path):
    found = recorded(task().scenario, Run(3), tmp_path / "events")
    assert found == told(task().scenario, Run(3))
    assert len((tmp_path / "events").read_text().splitlines()) == 3


def test_shrinking_ends_after_so_many_plays_and_keeps_what_fails():
    found = told(task("faults").scenario, Run(0))
    asked = []
    small = shrunk(task("faults"), Verdict(found, found), lambda text, done, total: asked.append(done), plays_max=9)
    assert asked == list(range(1, 10))
    assert {"b", "d"} <= set(small)
    assert 2 < len(small) < len(found.faults)


def test_faults_that_are_not_to_blame_stay():
    found = told(task("gate").scenario, Run(0))
    assert shrunk(task("gate"), Verdict(found, found)) == ()
    quiet = replace(found, problems=())
    assert shrunk(task(), Verdict(quiet, quiet)) == found.faults


def test_a_users_mistake_is_no_crash():
    def play(params, how):
        raise UserError("no such fault")

    scenario = replace(task().scenario, kind=replace(KIND, play=play))
    with pytest.raises(UserError, match="no such fault"):
        told(scenario, Run())


def test_worlds_tell_their_events(tmp_path):
    found = recorded(scenario("failover"), Run(1, quick=True), tmp_path / "events")
    lines = (tmp_path / "events").read_text().splitlines()
    assert len(lines) > 100
    assert not found.problems
    assert all(" s " in line and "->" in line for line in lines)
