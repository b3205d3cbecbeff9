"""Every test of netlab leaves neither namespaces nor forwarders behind."""

from __future__ import annotations

import pytest

from tests.sim.netlab.laboratory import left_behind


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert not left_behind()
