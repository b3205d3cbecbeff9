"""sim.credit: the product's window rule, and a fixed window."""

from __future__ import annotations

import math

from p2pllm.net.yamux import connection, stream
from sim import credit
from sim.credit import WINDOW_BYTES, WINDOW_BYTES_MAX, Credit, Pool

RTT = 0.1


def test_the_figures_are_the_products():
    assert credit.WINDOW_BYTES == stream.WINDOW_BYTES_INITIAL
    assert credit.WINDOW_BYTES_MAX == stream.WINDOW_BYTES_MAX
    assert credit.POOL_BYTES == connection.WINDOW_POOL_BYTES


def test_credit_comes_back_in_halves_and_one_latency_later():
    window = Credit(0.0, Pool())
    window.room -= WINDOW_BYTES
    assert not window.consumed(WINDOW_BYTES // 2 - 1, 10.0, 0.05, RTT)
    assert window.next_s == math.inf
    assert window.consumed(1, 10.0, 0.05, RTT)
    window.collect(10.04)
    assert window.room == 0
    window.collect(window.next_s)
    assert window.room == WINDOW_BYTES // 2


def test_a_window_used_up_quickly_doubles_to_its_limit():
    window, now = Credit(0.0, Pool()), 0.0
    for _ in range(20):
        size, window.room = window.room, 0
        now += 0.05
        window.consumed(size, now, 0.0, RTT)
        window.collect(now)
    assert window.room == WINDOW_BYTES_MAX


def test_the_pool_of_a_connection_is_shared_and_returned():
    pool, windows, now = Pool(), [], 0.0
    for _ in range(8):
        window = Credit(now, pool)
        for _ in range(10):
            window.consumed(window._target, now, 0.0, RTT)
        windows.append(window)
    grown = sum(window._target - WINDOW_BYTES for window in windows)
    assert grown == credit.POOL_BYTES
    assert pool.free_bytes == 0
    for window in windows:
        window.close()
        window.close()
    assert pool.free_bytes == credit.POOL_BYTES


def test_a_fixed_window_comes_back_with_every_read_and_never_grows():
    window = Credit(0.0, Pool(), 1000)
    window.room = 0
    assert window.consumed(10, 0.0, 0.05, RTT)
    window.collect(0.05)
    assert window.room == 10
    window.consumed(990, 0.1, 0.05, RTT)
    window.collect(0.2)
    assert window.room == 1000
