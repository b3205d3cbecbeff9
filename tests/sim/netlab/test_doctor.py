"""What is missing for labs is named, on machines that have it and on those that have not."""

from __future__ import annotations

import os

import pytest

from sim.netlab.__main__ import main
from sim.netlab.doctor import examine, missing, nat_missing
from tests.sim.netlab.laboratory import needs_lab


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages that bring them, and root before everything."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = missing()
    assert found[0] == "root"
    assert {"ip (iproute2)", "gcc (gcc)"} <= set(found)
    assert nat_missing() == ("nft (nftables)",)


@needs_lab
@pytest.mark.real_clock
def test_a_machine_that_can_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is vital was tried out; the command's exit code says the same."""
    findings = examine()
    assert all(found.ok for found in findings if found.vital)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("ok       root")


@needs_lab
@pytest.mark.real_clock
def test_failures_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that is not there is found out by trying."""
    monkeypatch.setenv("PATH", "")
    findings = {found.what: found for found in examine()}
    tun = findings["network namespaces with tun devices"]
    assert tun.vital
    assert not tun.ok
    assert "unshare" in tun.why
