"""Kind "performance", reduced: calibration hits its cells, the seen ones hold, and nothing recalled decides."""

from __future__ import annotations

import pytest

from sim.experiments.performance import KIND, Params
from sim.kinds import Run
from sim.paper import STEPS


@pytest.fixture(scope="module")
def outcome():
    return KIND.play(Params(), Run(quick=True, processes=1))


def test_every_gate_holds(outcome):
    assert [gate.name for gate in outcome.gates if gate.failed] == []
    assert outcome.ok


def test_only_cells_that_were_seen_decide(outcome):
    held = {gate.name: gate for gate in outcome.gates}
    assert held["llama-3, 100 Mbit/s, 100 ms, 2048"].ok is True
    assert held["llama-3, 100 Mbit/s, 5 ms, 128"].ok is None
    assert {gate.tolerance for gate in outcome.gates if gate.source == "S"} == {0.05, 0.15}
    seen = sum(gate.source == "S" for gate in outcome.gates)
    assert seen == 4 + 2 + 3  # steps of BLOOM at 128, steps of Llama, forwards of one sequence


def test_calibration_cells_are_told_and_hit(outcome):
    fitted = {gate.name: gate for gate in outcome.gates if gate.source == "cal"}
    assert set(fitted) == {
        "bloom-3, 1000 Mbit/s, 5 ms, 128", "llama-3, 1000 Mbit/s, 5 ms, 128", "llama-3, 1000 Mbit/s, 5 ms, 2048",
    }  # fmt: skip
    for gate in fitted.values():
        assert gate.ours == pytest.approx(gate.wanted, rel=1e-3)


def test_both_modes_are_in_the_table_and_pushes_save_crossings(outcome):
    steps = outcome.tables[0]
    at = {name: steps.columns.index(name) for name in ("relayed", "pushed", "tokens", "RTT ms", "formula", "ours")}
    rows = [row for row in steps.rows if row[at["tokens"]] == 128]
    assert len(rows) == 3 * len(STEPS)
    for row in rows:
        assert row[at["pushed"]] > row[at["relayed"]]
        assert row[at["ours"]] == pytest.approx(row[at["formula"]], rel=0.01)
    assert "8 for each model" in " ".join(outcome.notes)  # how many variants were tried is told
