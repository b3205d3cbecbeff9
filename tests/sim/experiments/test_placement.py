"""The experiment on load balancing: its table, and the goal that it holds itself to."""

from __future__ import annotations

from sim.experiments.placement import KIND, Params
from sim.kinds import Run


def test_the_reduced_experiment_keeps_its_goal_and_is_the_same_twice():
    outcome = KIND.play(Params(seeds=1), Run(quick=True, processes=1))
    (goal,) = outcome.gates
    assert goal.ok
    by = {(row["swarm"], row["policy"]): row for row in outcome.results}
    assert by["steady", "none"]["of_bound"] < 0.5
    assert by["steady", "bound"]["of_bound"] == 1.0
    assert by["struck", "full"]["healed_s"] is not None
    assert len(outcome.plots) == 3
    again = KIND.play(Params(seeds=1), Run(quick=True, processes=1))
    assert again.trace_hash == outcome.trace_hash
    other = KIND.play(Params(seeds=1), Run(seed=1, quick=True, processes=1))
    assert other.trace_hash != outcome.trace_hash
