"""Scenarios are filled as written, and every mistake is answered by file, key, what was found and what is allowed."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from p2pllm.errors import UserError
from sim.reader import Place, described, fill, read


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Steady:
    form: Literal["steady"] = "steady"
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Bursts:
    form: Literal["bursts"] = "bursts"
    every_s: float = 10.0


@dataclass(frozen=True, slots=True)
class HostSpec:
    name: str
    up_mbit: float = field(default=100.0, metadata={"min": 0.1, "max": math.inf})
    span: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class Net:
    latency_ms: float | tuple[float, ...] = field(default=5.0, metadata={"min": 0.0, "max": 10_000.0})
    matrix: Path | None = None


@dataclass(frozen=True, slots=True)
class Params:
    servers: int = field(default=6, metadata={"min": 1, "max": 1000, "about": "how many join"})
    loss: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})
    mode: Literal["push", "relay"] = "push"
    bits: Literal[8, 16] = 8
    colour: Colour = Colour.RED
    exact: bool = True
    about_it: str | None = None
    network: Net = Net()
    hosts: tuple[HostSpec, ...] = ()
    rates: tuple[float, ...] = field(default=(0.0,), metadata={"min": 0.0})
    arrivals: Steady | Bursts = Steady()
    weights: dict[str, float] = field(default_factory=dict)
    warmup: Literal["auto"] | float = "auto"
    extra: Any = None

    def __post_init__(self) -> None:
        if self.servers > 500 and self.exact:
            raise ValueError("more than 500 servers cannot be exact")


def filled(text: str, folder: Path = Path()) -> Params:
    return fill(Params, tomllib.loads(text), Place(folder / "my.toml"))


def test_an_empty_file_is_all_defaults():
    assert filled("") == Params()


def test_everything_that_toml_can_say_arrives(tmp_path):
    (tmp_path / "ms.csv").write_text("1")
    params = filled(
        """
        servers = 9
        loss = 1
        mode = "relay"
        bits = 16
        colour = "blue"
        exact = false
        about_it = "x"
        rates = [0, 0.5]
        warmup = 3
        extra = [1]
        network = {latency_ms = [1, 2.5], matrix = "ms.csv"}
        arrivals = {form = "bursts", every_s = 3}
        weights = {a = 1, b = 2}
        [[hosts]]
        name = "s0"
        up_mbit = inf
        span = [0, 3]
        [[hosts]]
        name = "s1"
        """,
        tmp_path,
    )
    assert params == Params(
        servers=9, loss=1.0, mode="relay", bits=16, colour=Colour.BLUE, exact=False, about_it="x", rates=(0.0, 0.5),
        warmup=3.0, extra=[1], network=Net((1.0, 2.5), (tmp_path / "ms.csv").resolve()), arrivals=Bursts(every_s=3.0),
        weights={"a": 1.0, "b": 2.0}, hosts=(HostSpec("s0", math.inf, (0, 3)), HostSpec("s1")),
    )  # fmt: skip
    assert type(params.loss) is float


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server = 3", "my.toml: unknown key 'server'; did you mean 'servers'?; allowed here: servers, loss, mode"),
        ("zzz = 3", "my.toml: unknown key 'zzz'; allowed here: servers,"),
        ("servers = 'six'", 'my.toml: servers: found "six" (text), expected a whole number from 1 to 1000'),
        ("servers = 6.0", "my.toml: servers: found 6.0, expected a whole number from 1 to 1000"),
        ("servers = true", "my.toml: servers: found true, expected a whole number from 1 to 1000"),
        ("servers = 0", "my.toml: servers: found 0, expected a whole number from 1 to 1000"),
        ("loss = 1.5", "my.toml: loss: found 1.5, expected a number from 0 to 1"),
        ("loss = nan", "my.toml: loss: found nan, expected a number from 0 to 1"),
        ("rates = [1, -1]", "my.toml: rates[1]: found -1, expected a number of at least 0"),
        ("rates = [inf]", "my.toml: rates[0]: found inf, expected a number of at least 0"),
        ("rates = 1", "my.toml: rates: found 1, expected a list, each item a number of at least 0"),
        (
            "mode = 'psuh'",
            'my.toml: mode: found "psuh" (text), expected one of "push", "relay"; did you mean \'push\'?',
        ),
        ("mode = 8", 'my.toml: mode: found 8, expected one of "push", "relay"'),
        ("bits = 32", "my.toml: bits: found 32, expected one of 8, 16"),
        ("bits = '8'", 'my.toml: bits: found "8" (text), expected one of 8, 16'),
        ("colour = 'green'", 'my.toml: colour: found "green" (text), expected one of "red", "blue"'),
        ("exact = 1", "my.toml: exact: found 1, expected true or false"),
        ("about_it = 1", "my.toml: about_it: found 1, expected text"),
        ("network = 5", "my.toml: network: found 5, expected a table with latency_ms, matrix"),
        ("[network]\nlatency = 5", "my.toml: network: unknown key 'latency'; did you mean 'latency_ms'?; allowed here"),
        ("[network]\nlatency_ms = -1", "my.toml: network.latency_ms: found -1, expected a number from 0 to 10000"),
        ("[network]\nlatency_ms = 'x'", 'my.toml: network.latency_ms: found "x" (text), expected a number from 0 to'),
        ("[network]\nmatrix = 'no.csv'", "my.toml: network.matrix: there is no file /"),
        ("[[hosts]]\nname = 's0'\n[[hosts]]\n", "my.toml: hosts[1]: key 'name' is missing; expected text"),
        (
            "[[hosts]]\nname = 's'\nspan = [1]",
            "my.toml: hosts[0].span: found a list of 1, expected a list of 2: a whole",
        ),
        ("[[hosts]]\nname = 's'\nup_mbit = 0", "my.toml: hosts[0].up_mbit: found 0, expected a number of at least 0.1"),
        ("[hosts]\nname = 's'", "my.toml: hosts: found a table, expected a list, each item a table with name, up_mbit"),
        ("arrivals = {form = 'x'}", 'my.toml: arrivals.form: found "x" (text), expected one of "steady", "bursts"'),
        ("arrivals = {every_s = 1}", "my.toml: arrivals: unknown key 'every_s'; allowed here: form, rate"),
        ("weights = {a = 'b'}", 'my.toml: weights.a: found "b" (text), expected a number'),
        ("warmup = 'never'", 'my.toml: warmup: found "never" (text), expected "auto" or a number'),
        ("warmup = true", 'my.toml: warmup: found true, expected "auto" or a number'),
        ("servers = 501", "my.toml: more than 500 servers cannot be exact"),
        ("servers = 2026-01-01", "my.toml: servers: found 2026-01-01 (date), expected a whole number from 1 to 1000"),
    ],
)
def test_a_mistake_is_answered_by_file_key_and_what_is_allowed(text, complaint):
    with pytest.raises(UserError) as caught:
        filled(text)
    assert str(caught.value).startswith(complaint), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"kind = ", "not TOML: Invalid value (at end of document)"),
        (b"\n\na b = 1", "at line 3"),
        (b"a = '\xff'", "not TOML: byte 5 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, content, complaint):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.toml")


def test_types_are_described_as_a_person_would():
    assert described(float, {"max": 3}) == "a number of at most 3"
    assert described(dict[str, int]) == "a table, each value a whole number"
    assert described(Any) == "anything"
