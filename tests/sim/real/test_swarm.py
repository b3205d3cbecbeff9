"""Swarms of real processes: built, asked, broken, and gone without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.errors import SwarmError
from sim.kinds import Skipped
from sim.measuring import Load, Pace
from sim.netlab import doctor
from sim.real import swarm as real
from sim.real.swarm import RealSpec, open_real
from tests.sim.netlab.laboratory import left_behind, needs_lab

WHOLE = {"s0": (0, 8)}


def test_the_network_is_as_asked() -> None:
    """Every host adds half of the latency; no rate is no limit."""
    lab = RealSpec(WHOLE, 30.0, None, seed=4).lab()
    assert [host["name"] for host in lab["hosts"]] == ["boot", "s0", "client"]
    assert {host["delay_ms"] for host in lab["hosts"]} == {15.0}
    assert {host["uplink_mbit"] for host in lab["hosts"]} == {0.0}
    assert (lab["seed"], lab["tcp_cc"]) == (5, "reno")


def test_what_this_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "missing", lambda: ("root", "gcc (gcc)"))
    with pytest.raises(Skipped, match=r"missing on this machine: root, gcc \(gcc\)"), open_real(RealSpec(WHOLE)):
        pass
    assert doctor.missing is not real.missing


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("one\ntwo\nthree\nfour\n")
    assert real.tail(log) == "two | three | four"
    log.write_text("")
    assert real.tail(log) == "it wrote nothing"


@needs_lab
@pytest.mark.real_clock
def test_a_client_times_steps_and_generates() -> None:
    """Latencies are in what it measures; afterwards nothing is left."""
    with open_real(RealSpec(WHOLE, 20.0)) as swarm:
        job = swarm.job(push="off", loads=(Load(1),), pace=Pace(4, 1, 3), prompt=(5, 6), new_tokens=3)
        timed, *tokens, done = list(swarm.ask(job, 60))
        assert timed["chain"] == ["0:8"]
        assert all(0.04 < step < 1.0 for step in timed["step_s"])
        assert [one["count"] for one in tokens] == [1, 2, 3]
        assert swarm.named(tokens[0]["peers"][0]) == "s0"
        assert len(done["tokens"]) == 3
        with pytest.raises(SwarmError, match=r"longer than 0 s"):
            list(swarm.ask(job, 0.1))
        with pytest.raises(SwarmError, match=r"exit code 1: .*UserError"):
            list(swarm.ask(swarm.job(push="perhaps"), 60))
    assert not left_behind()


@needs_lab
@pytest.mark.real_clock
def test_a_server_that_does_not_start_is_quoted() -> None:
    with pytest.raises(SwarmError, match=r"s0 ended with exit code 2: .*8"), open_real(RealSpec({"s0": (0, 80)})):
        pass
    assert not left_behind()
