"""``python -m sim check`` finds what is wrong, says where, and repeats it in one line that is as short as it can be."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def odd(folder, text, *words, module="tests.sim.odd_kinds"):
    """The command in a process of its own, with the odd kinds registered and a scenario of one of them."""
    (folder / "odd.toml").write_text(f'kind = "odd"\n{text}\n')
    return subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.real_clock
def test_a_sound_scenario_passes(tmp_path):
    done = odd(tmp_path, "", "check", "odd.toml", "--seeds", "0:4")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "odd (ports): 4 seeds, each in two processes: 4 ok\n"


@pytest.mark.real_clock
def test_faults_of_a_failing_seed_are_made_fewer_and_the_line_repeats_the_failure(tmp_path):
    done = odd(tmp_path, 'odd = "faults"\nfrom_seed = 2', "check", "odd.toml", "--seeds", "0:3")
    assert done.returncode == 1, done.stderr
    told = done.stdout.splitlines()
    assert told[:2] == ["seed 2 fails: b and d met", "  repeat: python -m sim run odd.toml --seed 2"]
    shrunk = told[2].removeprefix("  shrunk: ")
    assert sorted(shlex.split(shrunk)[-1].split()) == ["b", "d"]
    assert told[3].endswith("3 seeds, each in two processes: 2 ok, 1 failed")
    again = odd(tmp_path, 'odd = "faults"\nfrom_seed = 2', *shlex.split(shrunk)[3:])
    assert again.returncode == 1
    assert "b and d met" in again.stdout


@pytest.mark.real_clock
@pytest.mark.parametrize(
    ("odd_word", "told", "shrunk"),
    [
        ("crash", "seed 1 fails: crashed: ZeroDivisionError: by seed (odd_kinds.py:", ""),
        ("gate", "seed 1 fails: gate 'rate': ours 1, wanted near 2", '--seed 1 --faults ""\n'),
    ],
)
def test_a_crash_or_a_failed_gate_is_a_failure_of_its_seed(tmp_path, odd_word, told, shrunk):
    done = odd(tmp_path, f'odd = "{odd_word}"\nfrom_seed = 1', "check", "odd.toml", "--seeds", "0:2")
    assert done.returncode == 1, done.stderr
    assert told in done.stdout
    assert "  repeat: python -m sim run odd.toml --seed 1\n" in done.stdout
    assert shrunk in done.stdout, "it fails without any fault"
    assert ("shrunk" in done.stdout) == bool(shrunk)


@pytest.mark.real_clock
def test_what_differs_between_processes_is_found_at_its_first_event(tmp_path):
    done = odd(tmp_path, 'odd = "hashing"\nfrom_seed = 1', "check", "odd.toml", "--seeds", "0:2")
    assert done.returncode == 1, done.stderr
    assert "seed 1 is not deterministic" in done.stdout
    assert "first difference: event 2:" in done.stdout
    assert done.stdout.count("2.000000000 s step a->b 1 bytes") == 2
    assert "  repeat: python -m sim check odd.toml --seeds 1\n" in done.stdout


@pytest.mark.real_clock
def test_a_difference_outside_of_the_trace_is_told_as_json(tmp_path):
    done = odd(tmp_path, 'odd = "silent"', "check", "odd.toml", "--seeds", "5", "--json")
    assert done.returncode == 1, done.stderr
    verdict, last = map(json.loads, done.stdout.splitlines())
    assert (verdict["seed"], verdict["ok"], verdict["same"], verdict["problems"]) == (5, False, False, [])
    assert "none in what was seen" in verdict["difference"]
    assert last == {"scenario": "odd", "stack": "ports", "seeds": 1, "ok": False, "failed": [5]}


@pytest.mark.real_clock
def test_real_generations_pass(tmp_path):
    done = odd(tmp_path, "", "check", "failover", "--seeds", "3:5", "--quick", module="sim")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "2 seeds, each in two processes: 2 ok" in done.stdout
