"""Kind "recovery": a server killed in mid-generation costs a pause, and no token, on any stack."""

from __future__ import annotations

import pytest

from sim.experiments import recovery
from sim.experiments.recovery import Params, run
from sim.kinds import Run
from sim.measuring import Generated
from tests.sim.netlab.laboratory import needs_lab


@pytest.mark.parametrize("mode", ["pushed", "relayed"])
def test_no_token_is_lost_in_virtual_time(mode: str) -> None:
    outcome = run(Params(mode=mode), Run(stack="libp2p", quick=True))
    assert outcome.ok
    assert [(row[0], row[2], row[3]) for row in outcome.tables[0].rows] == [("ports", 0, 1), ("libp2p", 0, 1)]
    assert all(result["pause_s"] > 0.04 for result in outcome.results)


@needs_lab
@pytest.mark.real_clock
def test_no_token_is_lost_with_kill_9() -> None:
    """A process ends in mid-sentence, and the client's goes on."""
    outcome = run(Params(), Run(stack="real", quick=True))
    assert outcome.ok
    assert outcome.results[0]["stack"] == "real"
    assert outcome.results[0]["recoveries"] >= 1


def test_a_wrong_token_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    played = (Generated((1,) * 11, tuple(map(float, range(11))), 0, ()), "trace")
    monkeypatch.setattr(recovery, "play_virtual", lambda *_: played)
    outcome = run(Params(), Run(stack="libp2p", quick=True))
    assert not outcome.ok
    assert len(outcome.violations) == 2
    assert {one.name for one in outcome.gates if one.failed} >= {"ports: tokens lost or wrong"}


def test_the_kill_comes_before_the_end() -> None:
    with pytest.raises(ValueError, match="kill_at: 9 of 9 tokens is too late"):
        Params(new_tokens=9, kill_at=9)
