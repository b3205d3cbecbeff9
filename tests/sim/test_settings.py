"""Settings of a scenario are the product's own, and mistakes are told in one line."""

from __future__ import annotations

import pytest

from p2pllm.config import Config, lan, local
from p2pllm.errors import UserError
from sim.settings import configured


def test_a_preset_and_what_is_different():
    found = configured("lan", {"client": {"push": "off", "ban_s": 7}, "server.cache_tokens": 512})
    assert found.records == lan().records
    assert (found.client.push, found.client.ban_s, found.server.cache_tokens) == ("off", 7.0, 512)
    assert configured(local(), {}) == local()
    assert configured("wan", {"client.ban_s": 1.0, "client.ban_max_s": 2.0}).client.ban_s == 1.0
    assert configured("wan", {"client": {"allow_servers": ["a"]}}).client.allow_servers == ("a",)
    assert configured("wan", {}) == Config()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"cleint": {}}, "settings: unknown setting 'cleint'; did you mean 'client'"),
        ({"client.pusch": "on"}, "settings.client: unknown setting 'pusch'; did you mean 'push'"),
        ({"client": 3}, "settings.client: found 3, expected a table"),
        ({"client": {"ban_s": "long"}}, 'settings.client.ban_s: found "long"'),
        ({"client.ban_s.max": 3}, "settings.client.ban_s: this is one setting"),
        ({"server": {"exact": 1}}, "settings.server.exact: found 1, expected true or false"),
    ],
)
def test_mistakes(overrides, told):
    with pytest.raises(UserError) as error:
        configured("wan", overrides)
    assert str(error.value).startswith(told)


def test_an_unknown_preset():
    with pytest.raises(UserError, match="lan"):
        configured("moon", {})
