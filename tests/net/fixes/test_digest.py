"""p2pllm.net.fixes.digest: a fix of code that we do not know is refused in one line."""

from __future__ import annotations

import pytest

from p2pllm.errors import UserError
from p2pllm.net.fixes.digest import digest, require


def known() -> int:
    return 1


def changed() -> int:
    return 2


def test_known_code_is_accepted_and_other_code_is_not() -> None:
    require(known, digest(known), "example")
    with pytest.raises(UserError, match=r"example: changed.*install libp2p==0\.8\.1") as caught:
        require(changed, digest(known), "example")
    assert "\n" not in str(caught.value)
