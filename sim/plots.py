"""Plots as PNG, by matplotlib's Agg canvas; imported only where something is drawn.

Invariants: the same plot gives the same picture; no window, no global state of pyplot; colours can be told apart by
everybody, and every series has a marker of its own besides.
"""

from __future__ import annotations

import io
import math
from typing import Any

from p2pllm.errors import UserError
from sim.results import Plot

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#a6761d")
MARKERS = "osD^vPX*"
SIZE_INCHES = (7.2, 4.0)
DPI = 110
CROWDED = 8
"""More places than this on a bar plot, and their names are written aslant."""


def png(plot: Plot) -> bytes:
    """Draw a plot.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'p2pllm[sim]'") from error
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(plot, axes)
    axes.set_title(plot.title, fontsize=11, loc="left")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(visible=True, axis="y", color="#e0e0e0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1 or (plot.series and plot.series[0].name):
        axes.legend(frameon=False, fontsize=9)
    out = io.BytesIO()
    canvas.print_figure(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(plot: Plot, axes: Any) -> None:
    if plot.kind == "bar":
        _bars(plot, axes)
    else:
        for index, series in enumerate(plot.series):
            style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "label": series.name, "linewidth": 1.6}
            values = [math.nan if y is None or not math.isfinite(y) else y for y in series.y]
            if plot.kind == "step":
                axes.step(series.x, values, where="post", **style)
            else:
                axes.plot(series.x, values, marker=MARKERS[index % len(MARKERS)], markersize=4.5, **style)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y and _any_positive(plot):
        axes.set_yscale("log")


def _bars(plot: Plot, axes: Any) -> None:
    places = list(dict.fromkeys(x for series in plot.series for x in series.x))
    width = 0.8 / max(1, len(plot.series))
    for index, series in enumerate(plot.series):
        found = dict(zip(series.x, series.y, strict=True))
        shift = (index - (len(plot.series) - 1) / 2) * width
        heights = [y if (y := found.get(place)) is not None and math.isfinite(y) else 0.0 for place in places]
        at = [number + shift for number in range(len(places))]
        axes.bar(at, heights, width, color=COLOURS[index % len(COLOURS)], label=series.name)
    slant = {"rotation": 30, "ha": "right"} if len(places) > CROWDED else {}
    axes.set_xticks(range(len(places)), [str(place) for place in places], fontsize=9, **slant)


def _any_positive(plot: Plot) -> bool:
    """A logarithmic axis needs something to show."""
    return any(y is not None and y > 0 for series in plot.series for y in series.y)
