"""All scenarios are played, the long ones first, and one that fails stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sim.batch import Batch, Done, lanes, play_all, remember, time_table
from sim.catalog import Scenario
from sim.cli.main import main
from tests.sim.odd_kinds import KIND, Params

ROOT = Path(__file__).parents[2]


def scenario(name, minutes=0.0, parallel=False):
    return Scenario(name, name, Path(name), "", replace(KIND, parallel=parallel), Params(), minutes)


def test_those_that_use_all_cores_go_alone_and_the_longest_go_first():
    alone, beside = lanes([scenario("a", 1), scenario("b", 3), scenario("c", 2, True), scenario("d", 3)])
    assert [one.name for one in alone] == ["c"]
    assert [one.name for one in beside] == ["b", "d", "a"]


@pytest.mark.real_clock
async def test_one_that_fails_stops_no_other(tmp_path):
    program = "import sys; print('why', file=sys.stderr); sys.exit({'a': 0, 'b': 1, 'c': 2, 'd': 77}[sys.argv[2]])"
    scenarios = tuple(scenario(name, parallel=name == "d") for name in "abcd")
    heard = []
    done = await play_all(
        Batch(scenarios, tmp_path, processes=2, command=(sys.executable, "-c", program)), heard.append
    )
    assert heard == done
    assert done[0].name == "d", "alone and first"
    assert {one.name: (one.end, one.told) for one in done} == {
        "a": ("ok", ""), "b": ("fails", "why"), "c": ("mistake", "why"), "d": ("crashed", "why"),
    }  # fmt: skip


@pytest.mark.real_clock
async def test_a_failure_is_told_by_its_gates_and_promises(tmp_path):
    last = {"violations": ["lost a token"], "failed_gates": ["x"]}
    program = f"import sys; print({json.dumps(json.dumps(last))}); print('a path', file=sys.stderr); sys.exit(1)"
    batch = Batch((scenario("a"),), tmp_path, command=(sys.executable, "-c", program))
    [done] = await play_all(batch, lambda done: None)
    assert (done.end, done.told) == ("fails", "lost a token and 1 more")


def test_the_command_says_how_to_play():
    words = Batch((), Path("out"), seed=4, quick=True, command=("sim",)).words(scenario("a"), 2)
    assert words == ["sim", "run", "a", "--seed", "4", "--out", "out", "--processes", "2", "--json", "--quick"]


def test_times_are_kept_by_name(tmp_path):
    remember(tmp_path, [Done("b", 2.04, 0), Done("a", 1.0, 0)])
    remember(tmp_path, [Done("b", 3.0, 1, "why")])
    assert json.loads((tmp_path / "times.json").read_text()) == {"a": 1.0, "b": 3.0}
    table = time_table([Done("a", 1.0, 0), Done("b", 3.0, 1, "why")], 3.0)
    assert table.rows == (("b", 3.0, "fails", "why"), ("a", 1.0, "ok", ""))


@pytest.mark.real_clock
def test_all_plays_and_reports(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sim", "all", "--out", "out", "--only", "failover", "--quick"], cwd=tmp_path, text=True,
        capture_output=True, timeout=100, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("failover: ok, ")
    assert "Wall time" in done.stdout
    assert "failover" in (tmp_path / "out" / "report.html").read_text()
    assert main(["report", str(tmp_path / "out")]) == 0


def test_a_batch_is_interrupted_with_its_processes(tmp_path):
    """Cancelling ends what is being played."""

    async def interrupted():
        with trio.move_on_after(0.5):
            program = "import time; time.sleep(600)"
            batch = Batch((scenario("a"),), tmp_path, command=(sys.executable, "-c", program))
            await play_all(batch, lambda done: None)
        return True

    assert trio.run(interrupted)
