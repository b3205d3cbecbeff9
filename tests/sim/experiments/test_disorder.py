"""The kind "disorder": the same seed gives the same outcome, and faults of the command line replace those drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.client.failover import Failover
from sim.cli.main import main
from sim.experiments.disorder import KIND, Params, percentile
from sim.kinds import Run, kind_of
from tests.sim.test_trial import forget_to_replay

SMALL = replace(Params(), users=2, new_tokens=30, heal_s=20.0)


def test_a_seed_is_an_outcome():
    outcome = KIND.play(SMALL, Run(seed=1))
    assert outcome.ok
    assert outcome.faults
    assert outcome == KIND.play(SMALL, Run(seed=1))
    assert outcome.trace_hash != KIND.play(SMALL, Run(seed=2)).trace_hash
    assert kind_of("disorder") is KIND


def test_faults_are_those_of_the_user():
    outcome = KIND.play(SMALL, Run(faults=("crash@1=s0+5", "hang@2=s4")))
    assert outcome.faults == ("crash@1=s0+5", "hang@2=s4")
    assert outcome.ok
    assert KIND.play(SMALL, Run(faults=())).faults == ()
    named = replace(SMALL, faults=("crash@3=s1",))
    assert KIND.play(named, Run()).faults == ("crash@3=s1",)


def test_liars_are_found():
    outcome = KIND.play(SMALL, Run(faults=("wrong@0=s0", "wrong@0=s3", "wrong@0=s6")))
    assert not outcome.ok
    assert "undisturbed it is" in outcome.violations[0]


def test_a_bug_is_repeated_by_the_line_that_tells_of_it(monkeypatch, capsys):
    """``check`` prints such a line for a seed; here the bug is a client that forgets to replay."""
    monkeypatch.setattr(Failover, "replay", forget_to_replay)
    words = ["run", "disorder", "--quick", "--seed", "0", "--faults", "crash@5=s0 crash@5=s3"]
    assert main(words) == 1
    assert "has 0 tokens" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(words) == 0


@pytest.mark.parametrize(("share", "found"), [(0.5, 3), (0.95, 4), (0.0, 1)])
def test_percentiles(share, found):
    assert percentile([4, 1, 3, 2], share) == found
    assert percentile([], share) is None
