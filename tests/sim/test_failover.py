"""A case is what its command says, and the command tells what came of it."""

from __future__ import annotations

import pytest

from sim import failover
from sim.cli.main import main
from sim.failover import Case, play
from sim.faults import FaultAt, Mishap


@pytest.mark.parametrize(
    "case",
    [
        Case(faults=(FaultAt(Mishap.RESET, 20), FaultAt(Mishap.RESET, 31))),
        Case(
            faults=(FaultAt(Mishap.BUSY, 30),),
            activations="int8",
            seed=3,
            pass_s=0.01,
            new_tokens=9,
            spans=((0, 3), (0, 3)),
        ),
    ],
)
def test_a_case_is_repeated_by_its_command(case, capsys):
    words = case.command().split()
    assert words[:3] == ["python", "-m", "sim"]
    assert main(words[3:]) == 0
    told = capsys.readouterr().out
    outcome = play(case)
    assert case.command() in told
    assert str(list(outcome.tokens)) in told
    for fault, victim in outcome.struck:
        assert str(fault) in told
        assert f"victim {victim}" in told


def test_an_undisturbed_case_hits_nobody():
    outcome = play(Case(new_tokens=2))
    assert outcome.error is None
    assert (outcome.struck, outcome.blamed, outcome.recoveries) == ((), frozenset(), 0)
    assert outcome == play(Case(new_tokens=2))


def test_an_unknown_mishap_is_refused(capsys):
    with pytest.raises(SystemExit):
        failover.main(["earthquake"])
    assert "earthquake" in capsys.readouterr().err
