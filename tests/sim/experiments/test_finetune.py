"""Kind "finetune": both ways of every row, larger batches are faster, and the paper's column admits what is missing."""

from __future__ import annotations

from sim.experiments.finetune import KIND, NOT_FOUND, Params
from sim.kinds import Run


def test_rows_have_both_ways_and_no_gate():
    params = Params(setups=("llama-3",), networks=("near",), batches=(1, 4), prompts=(16,))
    outcome = KIND.play(params, Run(quick=True, processes=1))
    (table,) = outcome.tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["batch"], row["prompt"]) for row in rows] == [(1, 16), (4, 16)]
    for row in rows:
        assert row["paper forward"] == row["paper backward"] == NOT_FOUND
        assert 0 < row["backward tokens/s"] < row["forward tokens/s"]
    assert rows[0]["forward tokens/s"] < rows[1]["forward tokens/s"]
    assert outcome.gates == ()
