"""The Markdown page holds every table, links to every plot, and follows from the results alone."""

from __future__ import annotations

from dataclasses import replace

from sim import show
from sim.cli.main import main
from sim.markdown import anchor, page, publish, table
from sim.results import Table
from sim.store import NOTHING, save
from tests.sim.outcomes import EVERYTHING, PLAYED


def test_a_table_is_one_in_markdown():
    found = Table("t", ("what", "n"), (("a|b", 1.0), ("c", None)), "a note")
    assert table(found).splitlines() == ["| what | n |", "|---|---:|", "| a\\|b | 1 |", "| c |  |", "", "a note"]
    assert table(found, code=True).splitlines()[3] == "| `c` |  |"
    assert table(Table("t", ("what",), ())) == "Nothing.\n"


def test_every_table_and_plot_is_on_the_page(tmp_path):
    results = {"everything": PLAYED, "other": replace(PLAYED, scenario="other", outcome=NOTHING, skipped="no root")}
    paths = publish(tmp_path / "results.md", results)
    text = paths[0].read_text()
    for one in EVERYTHING.tables:
        assert f"### {one.title}" in text
        for row in one.rows:
            assert "| " + " | ".join(show.text(cell) for cell in row) + " |" in text
    for path in paths[1:]:
        assert f"]({path.relative_to(tmp_path)})" in text
        assert path.read_bytes().startswith(b"\x89PNG")
    for piece in ("[everything](#everything)", "1 of 2 hold", "seen cell", "lost a <token>", "Skipped: no root."):
        assert piece in text
    assert page(results) == text


def test_plots_that_are_no_more_go_away(tmp_path):
    publish(tmp_path / "results.md", {"everything": PLAYED})
    assert len(list((tmp_path / "plots").iterdir())) == len(EVERYTHING.plots)
    publish(tmp_path / "results.md", {"everything": replace(PLAYED, outcome=NOTHING)})
    assert not list((tmp_path / "plots").iterdir())


def test_a_report_is_published_by_the_command(tmp_path, capsys):
    save(tmp_path / "out", "everything", PLAYED)
    assert main(["report", str(tmp_path / "out"), "--markdown", str(tmp_path / "docs" / "results.md")]) == 0
    assert str(tmp_path / "docs" / "results.md") in capsys.readouterr().out
    assert (tmp_path / "docs" / "results.md").exists()


def test_headings_are_linked_as_pages_do():
    assert anchor("paper-table 2 (BLOOM)") == "paper-table-2-bloom"
