"""Test runner glue: ``async def`` tests run under trio, in virtual time unless marked ``real_clock``.

Under the autojump clock no test may use a thread or a real socket; tests that do are marked ``real_clock`` and are
bounded by a real deadline instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

REAL_DEADLINE_S = 120.0
LONG = (
    "tests/sim/real/",
    "tests/sim/netlab/",
    "tests/sim/test_agreement.py",
    *(
        f"tests/sim/experiments/test_{name}.py"
        for name in ("beyond", "failure_table", "finetune", "performance", "placement", "recovery", "scale")
    ),
)
"""Real processes between network namespaces, and experiments whose reduced versions ``tests/sim/test_scenarios.py``
plays anyway: ``make test-long`` runs them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes minutes."""
    for item in items:
        if item.path.relative_to(item.config.rootpath).as_posix().startswith(LONG):
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test function to its end in its own trio loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    call = functools.partial(pyfuncitem.obj, **{n: pyfuncitem.funcargs[n] for n in names if n in pyfuncitem.funcargs})
    if pyfuncitem.get_closest_marker("real_clock"):

        async def bounded() -> None:
            with trio.fail_after(REAL_DEADLINE_S):
                await call()

        trio.run(bounded)
    else:
        trio.run(call, clock=trio.testing.MockClock(autojump_threshold=0))
    return True


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[Any]:
    """Two cores are shared by everything; results must not depend on the thread count of the machine."""
    import sys

    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
