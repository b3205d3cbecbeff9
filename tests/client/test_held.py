from __future__ import annotations

from p2pllm.client.held import UNKNOWN, Held


def test_what_a_prompt_shares_with_a_row():
    held = Held()
    assert held.common(0, 5, [1, 2]) == 0
    held.fed(0, 0, [1, 2, 3])
    held.fed(0, 3, [4])
    assert held.common(0, 4, [1, 2, 3, 4, 5]) == 4
    assert held.common(0, 4, [1, 2, 9, 4]) == 2
    assert held.common(0, 4, [1, 2]) == 2
    assert held.common(1, 4, [1, 2]) == 0


def test_a_roll_back_is_known_by_the_position_and_by_what_is_fed_next():
    held = Held()
    held.fed(0, 0, [1, 2, 3, 4])
    assert held.common(0, 2, [1, 2, 3, 4]) == 2
    held.fed(0, 2, [7])
    assert held.common(0, 3, [1, 2, 7, 4]) == 3
    assert held.common(0, 3, [1, 2, 3, 4]) == 2


def test_hidden_states_equal_no_token():
    held = Held()
    held.fed(0, 0, [1, UNKNOWN, 3])
    assert held.common(0, 3, [1, 2, 3]) == 1


def test_a_copy_goes_its_own_way():
    held = Held()
    held.fed(0, 0, [1, 2])
    other = held.copy()
    other.fed(0, 1, [5])
    assert held.common(0, 2, [1, 2]) == 2
    assert other.common(0, 2, [1, 2]) == 1
