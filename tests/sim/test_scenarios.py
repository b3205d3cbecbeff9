"""Every scenario of the catalogue, in its reduced version: its promises hold, and two processes see the same.

The processes hash strings differently and play the catalogue in opposite orders, so what depends on the order of a set,
or on what was played before, shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sim.catalog import names

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
"""Of each process; far more than they take on two idle cores, where both together need less than two minutes."""
PROGRAM = """
import dataclasses, logging, sys
from p2pllm.errors import UserError
from sim.catalog import scenario
from sim.check import told
from sim.kinds import Run
from sim.store import line
logging.getLogger().setLevel(logging.CRITICAL)
for name in sys.argv[1:]:
    try:
        found = scenario(name)
        stack = next((stack for stack in found.kind.stacks if stack != "real"), None)
        how = stack and Run(1, stack, quick=True)
        play = dataclasses.asdict(told(found, how)) if how else {"real": True}
    except UserError as error:
        play = {"problems": [str(error)]}
    print(line({"name": name} | play), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two processes tells, by name; a scenario that one of them did not come to is missing."""
    folder = tmp_path_factory.mktemp("told")
    orders = {"1": list(names()), "2": list(reversed(names()))}
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *order], cwd=ROOT,
                stdout=stack.enter_context((folder / hashing).open("w")),
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hashing, "OMP_NUM_THREADS": "1"},
            )
            for hashing, order in orders.items()
        ]  # fmt: skip
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_S)
            process.kill()
            process.wait()
    sides = [(folder / hashing).read_text().splitlines() for hashing in orders]
    return [{one["name"]: one for one in map(json.loads, side)} for side in sides]


@pytest.mark.real_clock
@pytest.mark.parametrize("name", names())
def test_a_scenario_keeps_its_promises_and_is_the_same_in_every_process(told, name):
    one, other = (side.get(name) for side in told)
    assert one is not None, "not played: its process crashed, or was not done in time"
    if one.get("real"):
        pytest.skip("plays in real time only; its kind has tests of its own")
    assert one["problems"] == []
    assert one == other
