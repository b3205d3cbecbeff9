"""The report is one page that needs nothing else, and nothing of any outcome is missing in it."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html import unescape

import pytest

from p2pllm.errors import UserError
from sim import show
from sim.report import TIMES, report
from sim.store import NOTHING, save
from tests.sim.outcomes import EVERYTHING, PLAYED


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, "everything", PLAYED)
    save(tmp_path, "namespaces", replace(PLAYED, scenario="namespaces", outcome=NOTHING, skipped="needs <root>"))
    (tmp_path / TIMES).write_text('{"everything": 12.5}')
    return tmp_path


def text_of(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_the_page_needs_nothing_else(folder):
    html = report(folder)[0].read_text()
    assert "http" not in html
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", html)
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    pictures = [link for link in links if link.startswith("data:image/png;base64,")]
    assert len(pictures) == len(EVERYTHING.plots)
    for link in set(links) - set(pictures):
        assert link.startswith("#") or (folder / link).exists()
    assert html.count('id="s-everything"') == 1


def test_every_table_and_gate_of_every_scenario_is_on_the_page(folder):
    page = text_of(report(folder)[0].read_text())
    for table in EVERYTHING.tables:
        for piece in (table.title, table.note, *table.columns):
            assert piece in page
        for row in table.rows:
            assert " ".join(show.text(cell) for cell in row if cell is not None) in page
    for gate in EVERYTHING.gates:
        assert gate.name in page
    for piece in (
        "seen cell 1 1.71 ± 5 % 0.5848 S FAILS", "recalled cell 1 9 ± 5 % 0.1111 R reported", "1 of 2 gates hold",
        "python -m sim run everything --seed 3", "calibrated on 1.71", "lost a <token>", "crash@1=s0", "Lines", "Bars",
        "0123456789abcdef", "Skipped: needs <root>", "1 skipped", "12.5", "calibration: fitted to",
    ):  # fmt: skip
        assert piece in page


def test_json_and_csv_lie_beside(folder):
    page, told, gates = report(folder)
    assert page.name == "report.html"
    everything, skipped = json.loads(told.read_text())["report"]
    assert everything["gates"] == {"held": 1, "failed": 1, "reported": 1}
    assert (everything["wall_s"], everything["failed_gates"]) == (12.5, ["seen cell"])
    assert skipped["skipped"] == "needs <root>"
    rows = list(csv.DictReader(gates.read_text().splitlines()))
    assert [row["verdict"] for row in rows] == ["FAILS", "reported", "ok"]
    assert rows[0]["scenario"] == "everything"


def test_the_same_folder_is_the_same_page(folder):
    assert report(folder)[0].read_bytes() == report(folder)[0].read_bytes()


def test_without_plots_tables_remain(folder):
    html = report(folder, draw=False)[0].read_text()
    assert "<img" not in html
    assert EVERYTHING.tables[0].columns[1] in html


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results in"):
        report(tmp_path)
