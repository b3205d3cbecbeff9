"""What kind "beyond" prints: rates of the papers' protocol, and factors of each switch over it.

Invariants: pure; factors are of one simulated rate over another, so that an error of the calibration cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sim.paper import FORWARDS, NETS, STEPS
from sim.rates import ForwardJob, Job, PrefillJob, Rates, StepsJob
from sim.results import Outcome, Plot, Series, Table, combined

Cells = tuple[str, str, str, int, str]
"""Table, setup, network (of steps: all in one job), size, and switch."""
Played = Mapping[Cells, tuple[Job, Rates]]
BASE, ALL = "paper", "all"
Place = tuple[str, str, int]
"""Setup, network, size: a row of a table."""


def outcome(played: Played, switches: Sequence[str]) -> Outcome:
    """A table and a plot of each group of rows."""
    tables, plots, results = [], [], []
    for group, title, size, unit, note in _GROUPS:
        rates = dict(_rates(played, group))
        if not rates:
            continue
        names = [name for name in (*switches, ALL) if any(name in found for found in rates.values())]
        tables.append(_table(group, title, size, rates, names, note))
        plots.append(_plot(title, unit, rates, names))
        results += [
            {"table": group, "setup": place[0], "network": place[1], "size": place[2], "switch": name, unit: rate}
            for place, found in rates.items()
            for name, rate in found.items()
        ]
    return Outcome(
        tables=tuple(tables),
        plots=tuple(plots),
        gates=(),
        results=tuple(results),
        notes=_NOTES,
        trace_hash=combined(rates.trace for _, rates in played.values()),
        violations=tuple(_too_fast(played)),
    )


def _too_fast(played: Played) -> Iterator[str]:
    """Batches that went faster than all devices could compute them: a protocol cannot do that, only a mistake can."""
    for (_, setup, net, size, name), (job, rates) in played.items():
        if isinstance(job, ForwardJob | PrefillJob):
            most = len(set(job.setup.gpus)) / job.fit.token_s
            if rates.values[0] > most:
                row = " ".join((setup, net, str(size), name))
                yield f"{row}: {rates.values[0]:.4g} tokens/s, but its devices compute at most {most:.4g}"


def _rates(played: Played, group: str) -> Iterator[tuple[Place, dict[str, float]]]:
    """By row, then by switch."""
    found: dict[Place, dict[str, float]] = {}
    for (table, setup, net, size, name), (job, rates) in played.items():
        if table != group:
            continue
        if isinstance(job, StepsJob):
            places = [(setup, str(each), length) for length in job.lengths for each in job.nets]
            for place, rate in zip(places, rates.values, strict=True):
                found.setdefault(place, {})[name] = rate
        else:
            found.setdefault((setup, net, size), {})[name] = sum(rates.values)
    yield from found.items()


def _table(
    group: str, title: str, size: str, rates: Mapping[Place, Mapping[str, float]], names: Sequence[str], note: str
) -> Table:
    columns = ("setup", "network", size, "paper", "its protocol, here", *(f"x {name}" for name in names), "all, here")
    rows = []
    for place, found in rates.items():
        factors = (_rounded(found[name] / found[BASE], 3) if name in found else None for name in names)
        ours = (_rounded(found[BASE], 4), *factors, _rounded(found[ALL], 4) if ALL in found else None)
        rows.append((*place, _paper(group, place), *ours))
    return Table(title, columns, tuple(rows), note)


def _paper(group: str, place: Place) -> float | None:
    """What the papers report of a row, if they do."""
    setup, network, size = place
    cells = {"steps": STEPS, "forwards": FORWARDS}.get(group, {}).get(setup, {})
    net = next((net for net in NETS if str(net) == network), None)
    return cells[net][size].value if net in cells and size in cells[net] else None


def _plot(title: str, unit: str, rates: Mapping[Place, Mapping[str, float]], names: Sequence[str]) -> Plot:
    places = tuple(f"{setup} {network} {size}".replace("  ", " ") for setup, network, size in rates)
    series = tuple(
        Series(name, places, tuple(found[name] / found[BASE] if name in found else None for found in rates.values()))
        for name in names
    )
    return Plot(f"{title}: gain of the protocol", "", f"{unit}, times the papers' protocol", series, kind="bar")


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


_GROUPS = (
    (
        "steps", "Beyond the paper: steps of one sequence", "tokens", "steps/s",
        "push: servers send to the next one (Llama's base does already); 8-bit: hidden states; overhead: 2 ms of "
        "software per hop, not 18. Single switches are played at 128 tokens.",
    ),
    (
        "forwards", "Beyond the paper: parallel forwards", "x 128 tokens", "tokens/s",
        "window: the product's, which grows, not 256 KiB; chunks: through a session, cut so that hops overlap; push: "
        "through a session whose servers push; overhead: 2 ms per hop. 8 bits already in the base. A session has one "
        "stream to each server, so over long ways it may lose to many streams with windows that grow.",
    ),
    (
        "prefills", "Beyond the paper: a prompt until its first token", "tokens", "tokens/s",
        "base: relayed in one piece; chunks: 128 tokens each, four in flight. No figure in the papers.",
    ),
    (
        "clients", "Beyond the paper: clients at once, steps/s of all together", "clients", "steps/s",
        "base: servers compute steps one by one; batching: steps that wait share a pass. 128 tokens, first network.",
    ),
)  # fmt: skip
_NOTES = (
    "Factors are gains of the protocol on the same compute and client as the papers' rows; they are not this project's "
    "own speed, and nothing was fitted to them.",
    "A single stream is bound by the client and by compute, so its protocol gains little; the floor of any chain that "
    "pushes is (hops + 1) x RTT / 2 per step.",
)
