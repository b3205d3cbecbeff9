"""A play says how to get it again, and a stack that a scenario does not have is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.errors import UserError
from sim.catalog import scenario
from sim.kinds import Run, Skipped
from sim.play import command, play, stack_of


def test_the_line_that_repeats_a_play_has_all_that_matters():
    found = scenario("failover")
    assert command(found, Run(7)) == "python -m sim run failover --seed 7"
    how = Run(7, "libp2p", quick=True, faults=("kill@3", "reset@4"))
    assert command(found, how) == 'python -m sim run failover --seed 7 --stack libp2p --quick --faults "kill@3 reset@4"'
    assert command(replace(found, asked="my file.toml"), Run()) == "python -m sim run 'my file.toml' --seed 0"


def test_the_usual_stack_is_the_kinds_first():
    found = scenario("failover")
    both = replace(found, kind=replace(found.kind, stacks=("libp2p", "ports")))
    assert [stack_of(both, asked) for asked in (None, "ports", "libp2p")] == ["libp2p", "ports", "libp2p"]
    with pytest.raises(UserError, match="cannot be played on --stack real; allowed: libp2p, ports"):
        stack_of(both, "real")


def test_the_same_seed_is_the_same_play():
    found = scenario("failover")
    one = play(found, Run(4, quick=True))
    assert one == play(found, Run(4, quick=True))
    assert one.outcome.trace_hash != play(found, Run(5, quick=True)).outcome.trace_hash


def test_what_cannot_be_played_here_says_why():
    def skip(params, how):
        raise Skipped("needs\nroot")

    found = scenario("failover")
    played = play(replace(found, kind=replace(found.kind, play=skip)), Run())
    assert played.skipped == "needs root"
    assert played.outcome.ok


def test_real_sockets_are_taken_where_there_are_any_and_missed_where_they_were_asked_for(monkeypatch):
    found = scenario("agreement")
    monkeypatch.setattr("sim.play.missing", lambda: ())
    assert stack_of(found, None) == stack_of(found, "real") == "real"
    monkeypatch.setattr("sim.play.missing", lambda: ("root", "gcc (gcc)"))
    assert stack_of(found, None) == "libp2p"
    with pytest.raises(UserError, match=r"--stack real needs .* missing on this machine: root, gcc"):
        stack_of(found, "real")
