"""What is written comes back, and is the same bytes every time."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest

from p2pllm.errors import UserError
from sim.store import as_csv, jsonable, load, load_all, plot_paths, save, slug, stem, write
from tests.sim.outcomes import EVERYTHING, PLAYED


def test_an_outcome_comes_back_from_its_file(tmp_path):
    paths = save(tmp_path, "everything", PLAYED)
    assert [path.name for path in paths] == [
        "everything.json", "everything-steps-s-by-network.csv", "everything-steps-s-by-network-2.csv",
    ]  # fmt: skip
    back = load(paths[0])
    assert back.outcome.gates == EVERYTHING.gates
    assert back.outcome.plots == EVERYTHING.plots
    assert back.outcome.tables[0].rows[1] == ("100 Mbit/s & 100 ms", None, "inf", None)
    assert replace(back, outcome=EVERYTHING) == PLAYED
    assert load_all(tmp_path) == {"everything": back}


def test_the_same_outcome_is_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        save(tmp_path / folder, "x", PLAYED)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert not list(tmp_path.glob("*/.*")), "no half-written file stays"


def test_json_is_strict():
    text = json.dumps(jsonable({"a": (1.5, math.nan, -math.inf), 3: True}), allow_nan=False)
    assert json.loads(text) == {"a": [1.5, None, "-inf"], "3": True}


def test_csv_keeps_every_digit():
    rows = list(csv.reader(as_csv(EVERYTHING.tables[0]).splitlines()))
    assert rows[0] == ["network", "paper", "ours", "ratio"]
    assert rows[1] == ["1 Gbit/s, 5 ms", "1.71", "1.7101", "1.0001"]


def test_files_are_named_after_titles(tmp_path):
    assert slug("Ünder <100> ms!") == "nder-100-ms"
    assert slug("?") == "untitled"
    assert [path.name for path in plot_paths(tmp_path, "x", EVERYTHING)] == ["x-lines.png", "x-bars.png", "x-steps.png"]
    assert stem(PLAYED, "ports") == "everything"
    assert stem(replace(PLAYED, stack="libp2p"), "ports") == "everything@libp2p"


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load_all(tmp_path / "none")
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(UserError, match="no results in"):
        load_all(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not a result"),
        ('{"a": 1}', "is not a result"),
        ("[]", "is not a result"),
        ('{"format": 0}', "another version"),
        ('{"format": 1, "outcome": {}}', "is not a result"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, text, complaint):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        load(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "x.json", "")
