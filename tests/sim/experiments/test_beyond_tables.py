"""Factors of switches, from rates that are made up."""

from __future__ import annotations

from sim.calibrated import SETUPS
from sim.experiments.beyond_tables import outcome
from sim.paper import FAR, NEAR
from sim.rates import ClientsJob, ForwardJob, Rates, StepsJob

SETUP = SETUPS["llama-3"]


def steps(name, values, lengths=(128,)):
    job = StepsJob(setup=SETUP, fit=SETUP.fit, nets=(NEAR, FAR), lengths=lengths)
    return {("steps", "llama-3", "", 0, name): (job, Rates(values, name))}


def test_factors_are_of_one_simulated_rate_over_another():
    played = steps("paper", (2.0, 1.0, 1.6, 0.8), (128, 2048)) | steps("8-bit", (2.1, 1.2)) | steps("all", (3.0, 2.0))
    (table,) = outcome(played, ("push", "8-bit")).tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["network"], row["tokens"], row["paper"]) for row in rows[:2]] == [
        ("1000 Mbit/s, 5 ms", 128, 2.29),
        ("100 Mbit/s, 100 ms", 128, 1.57),
    ]
    assert [(row["x 8-bit"], row["x all"], row["all, here"]) for row in rows[:2]] == [(1.05, 1.5, 3.0), (1.2, 2.0, 2.0)]
    assert [row["x all"] for row in rows[2:]] == [None, None]  # not played at 2,048
    assert "x push" not in table.columns  # nobody played it


def test_clients_count_together():
    def clients(name, values):
        job = ClientsJob(setup=SETUP, fit=SETUP.fit, clients=len(values))
        return {("clients", "llama-3", "", len(values), name): (job, Rates(values, name))}

    made = outcome(clients("paper", (1.0, 1.0)) | clients("batching", (1.5, 1.5)), ("batching",))
    assert made.tables[0].rows == (("llama-3", "", 2, None, 2.0, 1.5, None),)
    assert made.results[1]["steps/s"] == 3.0
    assert made.gates == ()


def test_faster_than_the_devices_is_a_violation():
    """Three devices that take 9.9 ms per token cannot do a thousand tokens per second."""

    def violations(rate):
        job = ForwardJob(setup=SETUP, fit=SETUP.fit, net=FAR)
        return outcome({("forwards", "llama-3", str(FAR), 64, "paper"): (job, Rates((rate,), "t"))}, ()).violations

    assert violations(300.0) == ()
    assert "at most 303" in violations(1000.0)[0]
