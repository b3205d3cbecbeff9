"""sim.matrix: tables of measured latencies, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.errors import UserError
from sim.matrix import read_matrix

SHIPPED = Path(__file__).parents[2] / "sim" / "data" / "ibm_cloud_2024.csv"


def written(folder, text):
    path = folder / "m.csv"
    path.write_text(text)
    return path


def test_the_shipped_one_names_its_source_and_reads():
    assert "Source:" in SHIPPED.read_text()
    matrix = read_matrix(SHIPPED)
    assert matrix.one_way_s("frankfurt", "london") == pytest.approx(0.0065)
    assert matrix.one_way_s("nowhere", "london") is None
    for a in matrix.regions:
        for b in matrix.regions:
            there, back = matrix.one_way_s(a, b), matrix.one_way_s(b, a)
            assert there == pytest.approx(back, rel=0.05)
            assert there >= 0.001


def test_one_way_figures_and_halves_that_are_filled_in(tmp_path):
    matrix = read_matrix(written(tmp_path, "# measured\none_way_ms,a,b\na,0,7\nb,,1\n"))
    assert matrix.one_way_s("a", "b") == matrix.one_way_s("b", "a") == pytest.approx(0.007)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ms,a\na,1\n", "rtt_ms, one_way_ms"),
        ("", "rtt_ms"),
        ("rtt_ms,a,b\na,1,2\n", "the same regions"),
        ("rtt_ms,a,b\na,1,2\nb,1\n", "1 figures, not 2"),
        ("rtt_ms,a,b\na,1,x\nb,1,1\n", "'x' between a and b"),
        ("rtt_ms,a,b\na,1,-2\nb,1,1\n", "'-2'"),
        ("rtt_ms,a,b\na,1,\nb,,1\n", "no figure between a and b"),
    ],
)
def test_mistakes_are_told(tmp_path, text, complaint):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=complaint) as told:
        read_matrix(path)
    assert str(path) in str(told.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv"):
        read_matrix(tmp_path / "none.csv")
