"""The reference of keys is made of the dataclasses, and the one in the documentation is current."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from p2pllm.errors import UserError
from sim.cli.main import main
from sim.keys import BEGIN, END, literal, table, tables, update, updated
from sim.kinds import KINDS

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Inner:
    up_mbit: float = field(default=math.inf, metadata={"min": 0.0, "about": "uplink"})


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    mode: Literal["push", "relay"] = "push"
    network: Inner = Inner()
    hosts: tuple[Inner, ...] = ()


def test_every_key_is_told_with_what_is_allowed():
    assert table(Outer).rows == (
        ("name", "text", "needed", ""),
        ("mode", 'one of "push", "relay"', '"push"', ""),
        ("network", "a table Inner", "its defaults", ""),
        ("hosts", "a list, each item a table Inner", "[]", ""),
    )
    assert table(Inner).rows == (("up_mbit", "a number of at least 0", "inf", "uplink"),)
    assert tables([Outer]) == [Inner]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"), (True, "true"), (1e-4, "0.0001"), (0.1234567891, "0.1234567891"), (3, "3"), ("a", '"a"'),
        ((1.0, "x"), '[1, "x"]'), ((Inner(),), "some tables"), ({"a": 1.0}, "{a = 1}"),
        (tuple(range(30)), "[0, 1, ...] (30 items)"), (Path("x.csv"), "x.csv"),
    ],
)  # fmt: skip
def test_defaults_are_written_as_toml(value, expected):
    assert literal(value) == expected


def test_the_reference_in_the_documentation_is_current():
    text = (ROOT / "docs" / "simulator.md").read_text()
    assert updated(text) == text, "run: python -m sim keys --update docs/simulator.md"


def test_a_document_is_renewed_between_its_marks(tmp_path, capsys):
    path = tmp_path / "x.md"
    path.write_text(f"before\n{BEGIN}\nOUTDATED\n{END}\nafter\n")
    assert main(["keys", "--update", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "OUTDATED" not in text
    for name in KINDS:
        assert f'`kind = "{name}"`' in text
    assert not update(path), "nothing left to do"
    path.write_text("no marks")
    with pytest.raises(UserError, match="there is no"):
        update(path)


def test_keys_of_one_kind_are_printed(capsys):
    assert main(["keys", "failover"]) == 0
    told = capsys.readouterr().out
    for key in ("minutes", "mishaps", "new_tokens", "whole number"):
        assert key in told
