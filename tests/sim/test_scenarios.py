"""Every scenario of the catalogue, in its reduced version: its promises hold, and two processes see the same.

The processes hash strings differently and play the catalogue in opposite orders, so what depends on the order of a set,
or on what was played before, shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.catalog import names

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
"""Far more than they take: two minutes on two idle cores."""
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
def told():
    """By name, what each of two processes tells."""
    orders = {"1": list(names()), "2": list(reversed(names()))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *order], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hashing, "OMP_NUM_THREADS": "1"},
        )
        for hashing, order in orders.items()
    ]  # fmt: skip
    try:
        lines = [process.communicate(timeout=LIMIT_S)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [{one["name"]: one for one in map(json.loads, side)} for side in lines]


@pytest.mark.real_clock
@pytest.mark.parametrize("name", names())
def test_a_scenario_keeps_its_promises_and_is_the_same_in_every_process(told, name):
    one, other = (side[name] for side in told)
    if one.get("real"):
        pytest.skip("plays in real time only; its kind has tests of its own")
    assert one["problems"] == []
    assert one == other
