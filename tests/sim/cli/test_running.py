"""``python -m sim run`` as users run it: other folders, JSON, files, the same hash in every process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sim.catalog import FOLDER, names
from sim.cli.main import main
from sim.cli.running import faults_of, tell
from sim.kinds import Skipped
from tests.sim.outcomes import PLAYED

ROOT = Path(__file__).parents[3]


def sim(*words, cwd=ROOT, **env):
    """One process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sim", *words], cwd=cwd, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip


def test_the_catalogue_is_listed_at_once():
    done = sim("list")
    assert done.returncode == 0, done.stderr
    for name in names():
        assert name in done.stdout
    listed = [json.loads(line) for line in sim("list", "--json").stdout.splitlines()]
    assert [one["scenario"] for one in listed] == list(names())


def test_a_copied_scenario_runs_from_any_folder_and_in_every_process_the_same(tmp_path):
    (tmp_path / "mine.toml").write_text((FOLDER / "failover.toml").read_text().replace("count = 3", "count = 1"))
    runs = [
        sim("run", "mine.toml", "--seed", "5", "--json", "--out", f"out{hashing}", cwd=tmp_path, PYTHONHASHSEED=hashing)
        for hashing in ("1", "2")
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    *results, last = map(json.loads, runs[0].stdout.splitlines())
    assert (last["scenario"], last["seed"], last["stack"]) == ("mine", 5, "ports")
    assert last["results"] == results
    assert len(last["trace_hash"]) == 32
    assert last["repeat"] == "python -m sim run mine.toml --seed 5"
    assert len(last["faults"]) == 1
    written = sorted(path.name for path in (tmp_path / "out1").iterdir())
    assert written == ["mine-the-generation.csv", "mine-what-happened.csv", "mine.json"]
    for name in written:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


def test_stdout_carries_tables_and_nothing_else(capsys):
    assert main(["run", "failover", "--seed", "1", "--quick"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for piece in ("What happened", "The generation", "Gates", "trace "):
        assert piece in told.out


def test_given_faults_replace_drawn_ones(capsys):
    assert main(["run", "failover", "--json", "--faults", "kill@20, reset@25"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["faults"] == ["kill@20", "reset@25"]
    assert last["repeat"].endswith('--seed 0 --faults "kill@20 reset@25"')
    assert faults_of("") == ()
    assert faults_of(None) is None


def test_a_broken_promise_is_exit_code_1(capsys):
    """No replica anywhere: the generation ends early, and the run says so."""
    code = main(["run", "failover", "--json", "--faults", "kill@20 kill@21 kill@22 kill@23 kill@24 kill@25 kill@26"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, last["ok"]) == (1, False)
    assert last["failed_gates"] == ["tokens lost or wrong"]
    assert last["violations"]


def test_what_this_machine_cannot_play_is_skipped_with_a_clear_line(monkeypatch, capsys):
    from sim.experiments import failover

    def skip(params, how):
        raise Skipped("network namespaces need root")

    monkeypatch.setattr(failover, "KIND", type(failover.KIND)("failover", "x", failover.Params, skip))
    assert main(["run", "failover", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == "sim: failover was skipped: network namespaces need root\n"
    last = json.loads(told.out)
    assert (last["skipped"], last["results"]) == ("network namespaces need root", [])


def test_an_outcome_is_told_whole(capsys):
    tell(PLAYED, json=True)
    *results, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert results == [{"network": "a", "steps_per_s": 1.5}, {"network": "b", "steps_per_s": "inf"}]
    assert (last["ok"], last["failed_gates"]) == (False, ["seen cell"])


@pytest.mark.real_clock
def test_ctrl_c_is_130_without_a_traceback(tmp_path):
    (tmp_path / "long.toml").write_text('kind = "failover"\nnew_tokens = 200\ncount = 100\n')
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "run", "long.toml"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "playing\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "")


@pytest.mark.real_clock
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_the_command(tmp_path, number):
    """Only the parent gets the signal, as from a service manager; a terminal would send it to all."""
    (tmp_path / "slow.toml").write_text('kind = "odd"\nodd = "slow"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sim.odd_kinds", "run", "slow.toml", "--processes", "2"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


INTERRUPTED = """
import sys
from sim.cli.main import main
from sim.experiments import failover
real = failover.KIND.play
def play(params, how):
    print("playing", flush=True)
    while True:
        real(params, how)
object.__setattr__(failover.KIND, "play", play)
sys.exit(main(sys.argv[1:]))
"""
"""The command, playing for as long as it is let."""
