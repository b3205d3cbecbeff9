"""Rows, gates and labels of the performance tables, from rates that are made up."""

from __future__ import annotations

import pytest

from sim.calibrated import SETUPS
from sim.experiments.performance import Params, jobs_of
from sim.experiments.performance_tables import Found, outcome
from sim.kinds import Run
from sim.paper import FORWARDS, STEPS
from sim.rates import ForwardJob, Rates, StepsJob


def paper_rates(job, factor):
    """What the papers report, times something."""
    if isinstance(job, StepsJob):
        cells = [STEPS[job.setup.name][net][length].value for length in job.lengths for net in job.nets]
        return Rates(tuple(factor * value for value in cells), "steps")
    if isinstance(job, ForwardJob):
        return Rates((factor * FORWARDS[job.setup.name][job.net][job.sequences].value,), "forward")
    return Rates((1.0,) * getattr(job, "clients", 1), "other")


def found(factor):
    setups = [SETUPS["bloom-3"], SETUPS["llama-3"]]
    fits = {setup.table: setup.fit for setup in setups}
    jobs = jobs_of(setups, fits, Params(), Run())
    played = {key: paper_rates(job, factor) for key, job in jobs.items()}
    return Found(setups, fits, jobs, played, forwards_fitted=True)


def test_the_papers_own_figures_pass_every_gate():
    gates = outcome(found(1.0)).gates
    assert {gate.ok for gate in gates if gate.source in ("S", "cal")} == {True}
    assert [gate.name for gate in gates if gate.source == "cal"] == [
        "bloom-3, 1000 Mbit/s, 5 ms, 128", "bloom-3, 1000 Mbit/s, 5 ms, 2048", "llama-3, 1000 Mbit/s, 5 ms, 128",
        "llama-3, 1000 Mbit/s, 5 ms, 2048", "bloom-3, 1000 Mbit/s, 5 ms, 64",
    ]  # fmt: skip


@pytest.mark.parametrize(("factor", "failing"), [(1.06, {"llama-3"}), (1.16, {"llama-3", "bloom-3"})])
def test_a_gate_fails_beyond_its_tables_tolerance(factor, failing):
    """Calibration cells have a tolerance of their own; recalled ones never fail."""
    failed = [gate for gate in outcome(found(factor)).gates if gate.failed]
    assert {gate.name.split(",")[0] for gate in failed if gate.source == "S"} == failing
    assert not [gate for gate in failed if gate.source == "R"]


def test_rows_show_both_modes_and_how_the_paper_ran():
    steps = outcome(found(1.0)).tables[0]
    rows = [dict(zip(steps.columns, row, strict=True)) for row in steps.rows]
    assert {row["setup"]: row["as in the paper"] for row in rows} == {
        "BLOOM-176B, 3 x A100": "relay",
        "Llama-2-70B, 3 x T4": "push",
    }
    assert all(row["ours/paper"] == 1.0 for row in rows)
    assert all(row["relayed"] and row["pushed"] for row in rows)
