"""A progress bar on stderr, where somebody watches.

Invariants: no thread (the bar is painted when something is told); nothing is written where stderr is no terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sim import show
from sim.kinds import Progress as Tell


@contextmanager
def bar(name: str) -> Iterator[Tell]:
    """What takes progress while the block runs; the bar is gone afterwards."""
    out = show.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=out, transient=True, auto_refresh=False, disable=not out.is_terminal
    ) as progress:  # fmt: skip
        task = progress.add_task(name, total=None)

        def tell(text: str, done: int, total: int) -> None:
            progress.update(task, description=f"{name}: {text}" if text else name, completed=done, total=total)
            progress.refresh()

        yield tell
