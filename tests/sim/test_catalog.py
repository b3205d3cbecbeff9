"""The catalogue can be listed and read, and a name that is not there is answered by the nearest ones."""

from __future__ import annotations

import pytest

from p2pllm.errors import UserError
from sim.catalog import FOLDER, head, names, scenario
from sim.kinds import KINDS, kind_of


@pytest.mark.parametrize("name", names())
def test_every_scenario_of_the_catalogue_is_sound(name):
    found = scenario(name)
    assert found.name == name
    assert found.about, "list shows one line each"
    assert isinstance(found.params, found.kind.params)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_there_and_has_a_scenario(name):
    kind = kind_of(name)
    assert kind.name == name
    assert kind.about
    assert kind.params(), "a kind's defaults are the full experiment"
    assert name in {head(path)[0].kind for path in FOLDER.glob("*.toml")}


def test_a_copied_and_changed_scenario_is_read(tmp_path):
    copy = tmp_path / "mine.toml"
    copy.write_text((FOLDER / "failover.toml").read_text().replace("count = 3", "count = 1"))
    found = scenario(str(copy))
    assert (found.name, found.params.count) == ("mine", 1)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("failovr", "there is no scenario 'failovr'; did you mean 'failover'?; there are: "),
        ("./failover.tml.toml", "there is no file ./failover.tml.toml; did you mean 'failover'?"),
    ],
)
def test_a_scenario_that_is_not_there(asked, complaint):
    with pytest.raises(UserError) as caught:
        scenario(asked)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("about = 'x'", "key 'kind' is missing; expected text"),
        ("kind = 'failovre'", "kind: there is no kind 'failovre'; did you mean 'failover'?; there are: "),
        ("kind = 'failover'\ncuont = 3", "unknown key 'cuont'; did you mean 'count'?; allowed here: mishaps, count"),
        ("kind = 'failover'\nminutes = 'x'", 'minutes: found "x" (text), expected a number'),
    ],
)
def test_a_mistake_in_a_scenario(tmp_path, text, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        scenario(str(path))
    assert str(caught.value).startswith(f"{path}: {complaint}")
