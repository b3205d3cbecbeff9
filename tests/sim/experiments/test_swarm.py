"""Kind "swarm": the shipped scenarios keep their promises, broken ones are told, and mistakes are answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.config import Config
from p2pllm.errors import UserError
from p2pllm.types import Span
from sim.catalog import scenario
from sim.disorder import schedule_of
from sim.disorder_processes import Churn
from sim.experiments.swarm import Params, play_swarm, shortened
from sim.hosts import Group
from sim.kinds import Run
from sim.nodes import NodeSpan
from sim.results import Outcome
from sim.verdicts import Checks
from sim.workload import Workload

SHIPPED = ("steady", "churn", "partition", "regions", "nat-relay", "overload", "liar", "skew", "story")
EXACT = {"client": {"activations": "fp32", "exact": True}, "server": {"exact": True, "cache_tokens": 1024}}
HALVES = ("0:2", "2:4")
SMALL = Params(
    "toy:4",
    "local",
    EXACT,
    seconds=10.0,
    warmup_s=5.0,
    hosts=(Group("boot", "bootstrap"), Group("s", count=2, blocks=HALVES), Group("client", "client")),
    workloads=(Workload(arrivals="closed", think_s=0.2, new_tokens=(5, 15)),),
)


def quick(name: str, seed: int = 0, stack: str = "ports") -> Outcome:
    one = scenario(name)
    return play_swarm(one.params, Run(seed, stack, quick=True, processes=1))  # type: ignore[arg-type]


def total(outcome: Outcome, key: str) -> int:
    return sum(line[key] for line in outcome.results)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_keep_their_promises(name):
    outcome = quick(name)
    assert outcome.violations == ()
    assert total(outcome, "jobs") == total(outcome, "done") > 0
    assert total(outcome, "right") + total(outcome, "misled") == total(outcome, "done") or name == "story"
    assert bool(total(outcome, "misled")) == (name == "liar")
    assert [table.title for table in outcome.tables] == ["Jobs", "Servers", "Traffic", "Every job"]
    assert [plot.title for plot in outcome.plots] == ["Throughput", "Coverage", "Jobs"]


def test_in_churn_all_jobs_end_with_the_right_tokens_and_the_same_seed_gives_the_same_trace():
    one, other = quick("churn", 3), quick("churn", 3)
    assert one.faults
    assert total(one, "recoveries") > 0
    assert total(one, "right") == total(one, "jobs") > 3
    assert one == other


@pytest.mark.parametrize("name", ["steady", "partition"])
def test_the_same_on_the_real_network_stack(name):
    outcome = quick(name, 0, "libp2p")
    assert outcome.violations == ()
    assert total(outcome, "right") == total(outcome, "jobs") > 0


def test_what_is_asked_for_goes_before_what_the_scenario_draws():
    asked = replace(SMALL, churn=(Churn(between_s=1.0),), faults=("crash@1=s1+1",))
    outcome = play_swarm(asked, Run(faults=("crash@2=s0",)))
    assert outcome.faults == ("crash@2=s0",)
    assert [row[2] for row in outcome.tables[1].rows] == [2, 1], "lives: the end healed it"
    assert play_swarm(asked, Run(seed=1)).trace_hash != outcome.trace_hash


# -- promises that are broken ----------------------------------------------------------------------------------------


def test_a_wrong_token_is_a_violation_unless_a_liar_was_at_work(monkeypatch):
    lied = play_swarm(replace(SMALL, faults=("wrong@0=s1+60",)), Run())
    assert lied.violations == ()
    assert total(lied, "misled") == total(lied, "jobs") > 0
    assert "nothing on the wire can show it" in lied.notes[0]
    original = NodeSpan.run
    monkeypatch.setattr(NodeSpan, "run", lambda self, *args, **kwargs: original(self, *args, **kwargs).roll(1, 0))
    bug = play_swarm(SMALL, Run())
    assert total(bug, "wrong") > 0
    assert any(line.endswith("wrong tokens, silently") for line in bug.violations)


def test_blocks_that_nobody_serves_fail_jobs_and_then_everybody():
    broken = replace(
        SMALL,
        settings={**EXACT, "client": {**EXACT["client"], "patience_s": 5.0}},
        hosts=(SMALL.hosts[0], Group("s", blocks=("0:2",)), SMALL.hosts[2]),
        checks=Checks(settle_s=20.0),
    )
    outcome = play_swarm(broken, Run())
    assert any("jobs failed, allowed are 0: chat/0: CoverageError" in line for line in outcome.violations)
    assert any(line.startswith("client: a new job fails although everything was healed") for line in outcome.violations)
    allowed = play_swarm(replace(broken, checks=Checks(settle_s=20.0, errors_max=99)), Run())
    assert len(allowed.violations) == len(outcome.violations) - 1


def test_a_job_that_takes_too_long_is_an_error():
    slow = replace(SMALL, workloads=(Workload(arrivals="closed", new_tokens=60, timeout_s=1.0),))
    outcome = play_swarm(slow, Run())
    assert total(outcome, "late") == total(outcome, "jobs") > 0
    assert total(outcome, "right") == total(outcome, "jobs"), "what came until then was right"
    assert "given up after 1 s" in outcome.violations[0]


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hosts": (Group("a"), Group("a", "client"))}, "two are called 'a'"),
        ({"workloads": (Workload(clients="s"),)}, "groups with the role client: client"),
        ({"workloads": (Workload(), Workload())}, "another name"),
        ({"faults": ("crash@1=s9",)}, "no host 's9'"),
        ({"faults": ("crsh@1=s0",)}, "no fault 'crsh'"),
        ({"settings": {"client.psh": "on"}}, "unknown setting 'psh'; did you mean 'push'"),
    ],
)
def test_mistakes_are_told_when_they_are_read(change, told):
    with pytest.raises((ValueError, UserError), match=told):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "tyo"}, "no model 'tyo'; did you mean 'toy'"),
        ({"model": "toy:3"}, "serves blocks 2:4, and model toy:3 has 3"),
        ({"model": "demo", "workloads": (Workload(prompt_tokens=99_999),)}, "needs .* tokens, and the context"),
    ],
)
def test_mistakes_that_the_model_shows(change, told):
    with pytest.raises(UserError, match=told):
        play_swarm(replace(SMALL, **change), Run())


def test_a_shorter_story_is_the_same_story():
    full = scenario("churn").params
    short = shortened(replace(full, faults=("crash@90=s0+18",)), 0.1)
    assert (short.seconds, short.faults) == (18.0, ("crash@9=s0+1.8",))
    assert short.churn[0].between_s == pytest.approx(full.churn[0].between_s / 10)
    assert short.hosts[2].lives_s == pytest.approx(6.0)
    assert short.hosts[1].spec(0, Config()).span is None
    assert schedule_of(short.faults)[0].ends_s == pytest.approx(10.8)
    assert SMALL.hosts[1].spec(1, Config()).span == Span(2, 4)
