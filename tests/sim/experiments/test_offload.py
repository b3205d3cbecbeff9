"""Kind "offload": all seen bounds to the last printed digit, and a real run beside them."""

from __future__ import annotations

import pytest

from p2pllm.errors import UserError
from sim.experiments.offload import KIND, Params
from sim.kinds import Run


def test_every_bound_that_was_seen_agrees_to_its_last_digit():
    outcome = KIND.play(Params(real=False), Run(quick=True))
    seen = [gate for gate in outcome.gates if gate.source == "S"]
    assert len(seen) == 7  # the eighth is what the one constant was taken from
    assert [gate.source for gate in outcome.gates].count("cal") == 1
    assert all(gate.ok and gate.tolerance == 0.0 for gate in seen)
    assert all(gate.ok is None for gate in outcome.gates if gate.source == "R")
    assert outcome.ok


def test_the_real_run_is_reported_and_leaves_the_trace_alone():
    without, measured = (KIND.play(Params(real=real), Run(quick=True)) for real in (False, True))
    assert without.trace_hash == measured.trace_hash
    assert without.gates == measured.gates
    table = measured.tables[-1]
    assert {row[0] for row in table.rows} == {"memory", "disk"}
    assert all(cell > 0 for row in table.rows for cell in row[1:])


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(UserError, match="hidden: 1000 is no multiple of 32"):
        KIND.play(Params(hidden=1000), Run(quick=True))
