"""Plots as PNG, by matplotlib's Agg canvas; imported only where something is drawn.

Invariants: the same plot gives the same picture; no window, no global state of pyplot; colours can be told apart by
everybody, and every line has a marker of its own besides. The paper's own series are hatched or dashed.
"""

from __future__ import annotations

import io
import math
from typing import Any

from p2pllm.errors import UserError
from sim.results import Plot
from sim.show import text

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#a6761d")
MARKERS = "osD^vPX*"
SIZE_INCHES = (7.2, 4.0)
DPI = 110
CROWDED = 64
"""Letters: more than that along an axis, and names of places are written aslant."""
LABELLED = 16
"""So few bars have their figures written above them."""
LEGEND_LETTERS = 100
"""As many fit into one row of the legend."""
LEGEND_ROW_INCHES = 0.22
PAPERS = ": the paper's"
"""What the name of a paper's series ends with; before it stands the name of ours, whose colour it shares."""


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
    names = [series.name for series in plot.series if series.name]
    columns = max(1, min(len(names), LEGEND_LETTERS // (6 + max(map(len, names), default=0))))
    rows = math.ceil(len(names) / columns)
    width, height = SIZE_INCHES
    figure = Figure(figsize=(width, height + rows * LEGEND_ROW_INCHES), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(plot, axes)
    axes.set_title(plot.title, fontsize=11, loc="left")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(visible=True, axis="y", color="#e0e0e0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    out = io.BytesIO()
    canvas.print_figure(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(plot: Plot, axes: Any) -> None:
    if plot.kind == "bar":
        _bars(plot, axes)
    else:
        colours = _colours(plot)
        for index, series in enumerate(plot.series):
            style: dict[str, Any] = {"color": colours[index], "label": series.name, "linewidth": 1.6}
            style["linestyle"] = "--" if _theirs(series.name) else "-"
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
    colours = _colours(plot)
    for index, series in enumerate(plot.series):
        found = dict(zip(series.x, series.y, strict=True))
        shift = (index - (len(plot.series) - 1) / 2) * width
        heights = [y if (y := found.get(place)) is not None and math.isfinite(y) else 0.0 for place in places]
        at = [number + shift for number in range(len(places))]
        style: dict[str, Any] = {"color": colours[index]}
        if _theirs(series.name):
            style = {"facecolor": "white", "edgecolor": colours[index], "hatch": "////"}
        bars = axes.bar(at, heights, width, label=series.name, **style)
        if len(places) * len(plot.series) <= LABELLED:
            labels = ["" if (y := found.get(place)) is None else text(float(f"{y:.3g}")) for place in places]
            axes.bar_label(bars, labels, fontsize=8, padding=1)
    words = [text(place) for place in places]
    slant: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, words)) > CROWDED else {}
    axes.set_xticks(range(len(places)), words, fontsize=9, **slant)


def _theirs(name: str) -> bool:
    """Whether a series is the paper's own, by its name."""
    return name in ("paper", "the paper") or name.endswith(PAPERS)


def _colours(plot: Plot) -> list[str]:
    """One for each series."""
    own = dict.fromkeys(series.name.removesuffix(PAPERS) for series in plot.series)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(own)}
    return [colours[series.name.removesuffix(PAPERS)] for series in plot.series]


def _any_positive(plot: Plot) -> bool:
    """A logarithmic axis needs something to show."""
    return any(y is not None and y > 0 for series in plot.series for y in series.y)
