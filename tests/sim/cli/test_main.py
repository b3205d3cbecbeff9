"""Flags, exit codes and one-line answers to mistakes, in this process."""

from __future__ import annotations

import argparse

import pytest

from p2pllm.errors import SwarmError
from sim.catalog import FOLDER
from sim.cli import main as cli
from sim.cli.main import main


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "failovr"], "sim: there is no scenario 'failovr'; did you mean 'failover'?"),
        (["run", "failover", "--stack", "real"], "cannot be played on --stack real; allowed: ports"),
        (["run", "failover", "--faults", "kill@x"], "sim: fault 'kill@x' is not KIND@MESSAGE"),
        (["run", "none.toml"], "sim: there is no file none.toml"),
        (["check", "failovr", "--seeds", "0:2"], "sim: there is no scenario 'failovr'"),
        (["report", "no-such-folder"], "sim: there is no folder no-such-folder"),
        (["keys", "failovr"], "sim: there is no kind 'failovr'; did you mean 'failover'?"),
        (["all", "--out", "x", "--only", "failovr"], "sim: there is no scenario 'failovr'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, complaint, capsys):
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert complaint in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "COMMAND"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run", "failover", "--seed", "x"], "invalid int value: 'x'"),
        (["run", "failover", "--processes", "0"], "must be at least 1"),
        (["check", "failover", "--seeds", "5:5"], "holds no seed"),
        (["check", "failover", "--seeds", "a:b"], "is not A:B"),
        (["failover", "earthquake"], "earthquake"),
    ],
)
def test_flags_that_are_wrong_exit_with_2(words, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_seeds_are_a_half_open_range():
    assert cli.seeds("3:6") == range(3, 6)
    assert cli.seeds("7") == range(7, 8)
    with pytest.raises(argparse.ArgumentTypeError):
        cli.seeds("1:2:3")


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (SwarmError("blocks 3:5 are gone"), 1),
                        (BaseExceptionGroup("", [KeyboardInterrupt()]), 130)],
)  # fmt: skip
def test_other_ends_have_their_exit_codes(error, code, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr("sim.cli.listing.run", fail)
    assert main(["list"]) == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert ("blocks 3:5 are gone" in told) == (code == 1)


def test_a_bug_stays_a_traceback(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr("sim.cli.listing.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_a_mistake_in_a_copied_scenario_names_file_and_key(tmp_path, capsys):
    copy = tmp_path / "mine.toml"
    copy.write_text((FOLDER / "failover.toml").read_text().replace("count = 3", "count = 300"))
    assert main(["run", str(copy)]) == 2
    assert f"{copy}: count: found 300, expected a whole number from 0 to 100" in capsys.readouterr().err
