"""What the papers report of performance, cell by cell, and whether each was seen or is only remembered.

Papers: arXiv 2312.08361 (NeurIPS 2023) and arXiv 2209.01188 (ACL 2023). Sources: "S", the cell was seen, in the
authors' repository (README of March 2023) or in notes that quote the paper; "R", recalled, with a good chance that its
digits are wrong: such cells are reported and never decide anything. Values are steps/s of one sequence, or tokens/s of
parallel forwards.

Invariants: data only; nothing is filled in that was neither seen nor recalled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Found = Literal["S", "R"]


@dataclass(frozen=True, slots=True, order=True)
class Net:
    """A network setting of the tables: every host's link, and the round trip between any two."""

    mbit_per_s: float
    rtt_ms: float

    @property
    def bytes_per_s(self) -> float:
        return self.mbit_per_s * 125_000

    @property
    def one_way_s(self) -> float:
        return self.rtt_ms / 2000

    def __str__(self) -> str:
        return f"{self.mbit_per_s:g} Mbit/s, {self.rtt_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of the papers."""

    value: float
    found: Found


NEAR, SLIM, FAR = Net(1000, 5), Net(100, 5), Net(100, 100)
"""The papers' three settings. "< 5 ms" is taken as 5, and "100 ms" as a round trip: read one way, it misses by 23 to
45 %."""
NETS = (NEAR, SLIM, FAR)


def _steps(short: float, long: float, found: Found = "S") -> dict[int, Cell]:
    """Steps/s at 128 and at 2,048 tokens."""
    return {128: Cell(short, found), 2048: Cell(long, found)}


def _forwards(one: float, many: float, found: Found = "S") -> dict[int, Cell]:
    """Tokens/s of 1 and of 64 sequences."""
    return {1: Cell(one, found), 64: Cell(many, found)}


STEPS: dict[str, dict[Net, dict[int, Cell]]] = {
    "bloom-3": {NEAR: _steps(1.71, 1.54), SLIM: _steps(1.66, 1.49), FAR: _steps(1.23, 1.11)},
    "bloom-12": {NEAR: _steps(1.24, 1.06), SLIM: _steps(1.24, 1.05, "R"), FAR: _steps(0.57, 0.53)},
    "llama-3": {NEAR: _steps(2.29, 2.02), SLIM: _steps(2.29, 2.01, "R"), FAR: _steps(1.57, 1.44)},
}
"""Steps/s by setup, network and length."""

FORWARDS: dict[str, dict[Net, dict[int, Cell]]] = {
    "bloom-3": {NEAR: _forwards(70.0, 253.6), SLIM: _forwards(56.4, 182.0), FAR: _forwards(19.7, 112.2)},
    "bloom-12": {NEAR: _forwards(37.9, 180.0, "R"), SLIM: _forwards(25.6, 66.6, "R"), FAR: _forwards(5.8, 44.3, "R")},
    "llama-3": {NEAR: _forwards(45.4, 155.1, "R"), SLIM: _forwards(37.5, 140.2, "R"), FAR: _forwards(23.9, 128.7, "R")},
}
"""Tokens/s of parallel forwards by setup, network and sequences of 128 tokens."""

REAL_STEPS = {128: Cell(0.83, "S"), 2048: Cell(0.79, "S")}
REAL_FORWARDS = {1: Cell(32.6, "S"), 64: Cell(179.4, "S")}
"""BLOOM-176B on 14 small servers in Europe and North America; nobody wrote down their network."""

CLIENTS_8_SLOWER = Cell(0.20, "R")
"""How much slower each of 8 clients at once is than one alone: "about 20 %"."""


@dataclass(frozen=True, slots=True)
class Offload:
    """A row of the offloading bound.

    Attributes:
        gbit_per_s: of one GPU's link to the host's memory.
        step: steps/s. forward: tokens/s of 64 x 128 tokens. one: what the table gives for a single sequence.
    """

    gpus: int
    gbit_per_s: float
    step: Cell
    one: Cell
    forward: Cell


OFFLOADS = (
    Offload(1, 256, Cell(0.18, "S"), Cell(2.7, "S"), Cell(170.3, "S")),
    Offload(1, 128, Cell(0.09, "S"), Cell(2.4, "S"), Cell(152.8, "S")),
    Offload(3, 256, Cell(0.09, "R"), Cell(5.1, "R"), Cell(325.1, "R")),
    Offload(3, 128, Cell(0.05, "R"), Cell(3.5, "R"), Cell(226.3, "R")),
)
"""Upper bounds for BLOOM-176B in 8 bits from the host's memory over PCIe; the papers compute them, too."""
