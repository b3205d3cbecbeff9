"""Kind "failover": faults follow from the seed, leave what the swarm needs, and a broken promise is told."""

from __future__ import annotations

import pytest

from p2pllm.errors import UserError
from sim.experiments.failover import LASTING, Params, drawn, parsed, run, spares
from sim.kinds import Run


def test_faults_follow_from_the_seed():
    assert drawn(Params(), 100, 3) == drawn(Params(), 100, 3) != drawn(Params(), 100, 4)
    assert drawn(Params(count=0), 100, 3) == drawn(Params(mishaps=()), 100, 3) == ()
    assert len(drawn(Params(count=50), 10, 3)) == 10


@pytest.mark.parametrize("seed", range(20))
def test_no_more_servers_are_lost_than_there_are_spares(seed):
    faults = drawn(Params(count=20), 100, seed)
    assert sum(fault.mishap.value in LASTING for fault in faults) <= 1
    assert [fault.index for fault in faults] == sorted({fault.index for fault in faults})
    assert not drawn(Params(count=20, mishaps=LASTING, spans=((0, 1), (1, 2))), 100, seed)


def test_spares_are_those_of_the_weakest_block():
    assert spares(((0, 1), (1, 2))) == 0
    assert spares(((0, 2), (0, 1), (1, 2), (1, 2))) == 1
    assert spares(((0, 1), (2, 3))) == 0


def test_a_fault_that_is_none_is_a_users_mistake():
    with pytest.raises(UserError, match="'earthquake@3' is not KIND@MESSAGE"):
        parsed(("kill@3", "earthquake@3"))


def test_a_kill_changes_no_token_and_the_table_tells_of_it():
    found = run(Params(faults=("kill@40",)), Run(1, quick=True))
    assert found.ok
    assert found.faults == ("kill@40",)
    assert found.tables[0].rows[0][0] == "kill@40"
    assert found.results[0]["equal"] is True
    assert "python -m sim failover kill@40" in found.notes[0]


def test_when_no_replica_is_left_the_promise_is_broken_and_told():
    found = run(Params(spans=((0, 1), (1, 2))), Run(1, faults=("kill@30",), quick=True))
    assert not found.ok
    assert found.violations[0].startswith("tokens differ from the undisturbed ones")
