"""The papers' cells, as the fact sheet has them."""

from __future__ import annotations

from sim.paper import FAR, FORWARDS, NEAR, NETS, OFFLOADS, SLIM, STEPS


def seen(table):
    cells = [cell for rows in table.values() for places in rows.values() for cell in places.values()]
    return sorted(cell.value for cell in cells if cell.found == "S")


def test_what_was_seen_is_told_from_what_is_recalled():
    """Ten cells of BLOOM's steps and four of Llama's were seen, six of BLOOM's forwards, and none of Llama's."""
    assert seen(STEPS) == [0.53, 0.57, 1.06, 1.11, 1.23, 1.24, 1.44, 1.49, 1.54, 1.57, 1.66, 1.71, 2.02, 2.29]
    assert seen(FORWARDS) == [19.7, 56.4, 70.0, 112.2, 182.0, 253.6]
    assert all(cell.found == "R" for places in FORWARDS["llama-3"].values() for cell in places.values())
    assert sum(row.step.found == "S" for row in OFFLOADS) == 2


def test_every_setup_has_every_network():
    for table in (STEPS, FORWARDS):
        assert all(tuple(rows) == NETS for rows in table.values())


def test_networks_are_round_trips_and_bits():
    assert (NEAR.bytes_per_s, SLIM.bytes_per_s) == (125e6, 12.5e6)
    assert (NEAR.one_way_s, FAR.one_way_s) == (0.0025, 0.05)
    assert str(FAR) == "100 Mbit/s, 100 ms"
