"""The product's settings as a scenario gives them: a preset, and what is to be different.

    [settings]
    client.push = "off"
    server.cache_tokens = 512

Invariants: every setting that the product has can be set, and nothing else; a mistake is one line that names the
setting and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from p2pllm.config import PRESETS, Config, preset
from p2pllm.errors import UserError
from sim.kinds import nearest
from sim.reader import Place, convert

Overrides = Mapping[str, Any]


def configured(base: Config | str, overrides: Overrides) -> Config:
    """A preset with other values in some places; ``overrides`` are nested tables, or keys such as ``client.push``.

    Raises:
        UserError: there is no such preset or setting, or its value is of the wrong type.
    """
    if isinstance(base, str) and base not in PRESETS:
        raise UserError(f"no preset {base!r}; there are {', '.join(PRESETS)}")
    config = _changed(preset(base), overrides, "settings")
    assert isinstance(config, Config)
    return config


def _changed(part: Any, overrides: Overrides, where: str) -> Any:
    hints, values = get_type_hints(type(part)), dict[str, Any]()
    for dotted, value in overrides.items():
        key, _, rest = dotted.partition(".")
        if key not in hints:
            raise UserError(f"{where}: unknown setting {key!r}{nearest(key, hints)}; there are: {', '.join(hints)}")
        old = values.get(key, getattr(part, key))
        if dataclasses.is_dataclass(old):
            table = {rest: value} if rest else value
            if not isinstance(table, Mapping):
                raise UserError(f"{where}.{key}: found {value!r}, expected a table of settings")
            values[key] = _changed(old, table, f"{where}.{key}")
        elif rest:
            raise UserError(f"{where}.{key}: this is one setting, it has no {rest!r}")
        else:
            values[key] = convert(hints[key], value, Place(Path(f"{where}.{key}")))
    return dataclasses.replace(part, **values)
