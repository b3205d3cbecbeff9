"""The adversary is held against chance, and its kills can be told."""

from __future__ import annotations

from dataclasses import replace

from sim.experiments.adversary import ADVERSARY, ANYBODY, CHASED, KIND
from sim.hunting import Params
from sim.kinds import Run, kind_of

SMALL = replace(Params(), new_tokens=16, kills=1, positions=1, random_runs=2, targeted_runs=1)


def test_told_kills_are_played():
    outcome = KIND.play(SMALL, Run(faults=("crash@5.5=s0+20",), processes=1))
    assert outcome.ok
    assert outcome.faults == ("crash@5.5=s0+20",)
    (result,) = outcome.results
    assert result["lost"] == 0
    assert result["mean_s"] > result["undisturbed_s"]
    assert kind_of("adversary") is KIND


def test_the_adversary_is_the_worst_of_all_that_was_tried():
    outcome = KIND.play(SMALL, Run(processes=1))
    assert outcome.ok
    seconds = {line["killed"]: line["mean_s"] for line in outcome.results}
    assert seconds[ADVERSARY] >= max(seconds[CHASED], seconds[ANYBODY])
    assert len(outcome.faults) == 1
    again = KIND.play(SMALL, Run(processes=1, faults=outcome.faults))
    assert again.results[0]["mean_s"] == seconds[ADVERSARY]
