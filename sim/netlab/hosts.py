"""A lab's configuration: hosts, links and what the forwarder is told about them; and the rules of NAT routers.

Invariants: pure. A key that nobody knows is an error that lists the known ones. Host i, in file order, has the public
address ``PREFIX.0.(i+1)``; a host behind NAT has a private one besides, and its router the public one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.netlab.tools import LabError, check_keys

NATS = ("none", "full-cone", "port-restricted", "symmetric")
PAIR_KEYS = {"delay_ms": "delay", "jitter_ms": "jitter", "loss": "loss"}
"""Of a path between two hosts: our names and the forwarder's."""
LINK_KEYS = {"uplink_mbit": "up", "downlink_mbit": "down", "queue_ms": "queue", **PAIR_KEYS}
HOST_KEYS = (*LINK_KEYS, "name", "nat", "nat_udp_timeout_s", "count", "cmd")
TOP_KEYS = ("hosts", "pairs", "defaults", "seed", "mtu", "prefix", "tcp_cc")
HOSTS_PER_THIRD_OCTET = 250

# Unsolicited packets are dropped, not rejected: a reply would spoil hole punching.
NAT_RULES = """table ip netlab {{
  set cone {{ type inet_proto . inet_service; flags dynamic,timeout; timeout {timeout}s; }}
  chain pre {{ type nat hook prerouting priority dstnat;
    iifname wan0 meta l4proto {{ tcp, udp }} meta l4proto . th dport @cone dnat to {inside};
  }}
  chain post {{ type nat hook postrouting priority srcnat; oifname wan0 masquerade {mode}; }}
  chain forward {{ type filter hook forward priority filter; policy drop;
    {learn}
    iifname lan0 oifname wan0 accept
    ct state established,related accept
    ct status dnat accept;
  }}
  chain input {{ type filter hook input priority filter; policy drop;
    iifname {{ lo, lan0 }} accept
    ct state established,related accept;
  }}
}}"""
LEARN = "iifname lan0 oifname wan0 meta l4proto {tcp, udp} update @cone {meta l4proto . th sport}"


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a lab.

    Attributes:
        wan: the address that others see.
        local: its own address; another one than ``wan`` behind NAT.
        netns, router: its namespaces; no router without NAT.
        link: settings of its access link.
    """

    name: str
    nat: str
    wan: str
    local: str
    netns: str
    router: str | None
    nat_udp_timeout_s: int = 120
    cmd: str | None = None
    link: Mapping[str, float] = field(default_factory=dict)

    @property
    def lan(self) -> str:
        """The first three octets behind its NAT."""
        return self.local.rpartition(".")[0]

    def nat_rules(self) -> str:
        """What its router's nft is told."""
        mode = "random,fully-random" if self.nat == "symmetric" else ""
        learn = LEARN if self.nat == "full-cone" else ""
        return NAT_RULES.format(timeout=self.nat_udp_timeout_s, inside=self.local, mode=mode, learn=learn)


def read_hosts(lab_id: str, config: Mapping[str, Any]) -> dict[str, Host]:
    """The hosts of a configuration, by name."""
    check_keys("config", config, TOP_KEYS)
    hosts: dict[str, Host] = {}
    for table in config.get("hosts", []):
        spec = {"name": "h", **config.get("defaults", {}), **table}
        check_keys(f"host {spec['name']}", spec, HOST_KEYS)
        for number in range(spec.get("count", 1)):
            name = spec["name"] + (str(number) if "count" in spec else "")
            if name in hosts:
                raise LabError(f"duplicate host {name}")
            hosts[name] = _host(lab_id, len(hosts), config.get("prefix", "10.0"), {**spec, "name": name})
    return hosts


def _host(lab_id: str, index: int, prefix: str, spec: Mapping[str, Any]) -> Host:
    name, nat = spec["name"], spec.get("nat", "none")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,20}", name) or nat not in NATS:
        raise LabError(f"host {name!r}: bad name, or nat is none of {', '.join(NATS)}")
    wan = f"{prefix}.{index // HOSTS_PER_THIRD_OCTET}.{index % HOSTS_PER_THIRD_OCTET + 1}"
    netns, hidden = f"{lab_id}-{name}", nat != "none"
    return Host(
        name, nat, wan,
        local=f"192.168.{index % HOSTS_PER_THIRD_OCTET + 1}.2" if hidden else wan,
        netns=netns,
        router=f"{netns}.r" if hidden else None,
        nat_udp_timeout_s=int(spec.get("nat_udp_timeout_s", 120)),
        cmd=spec.get("cmd"),
        link={key: spec[key] for key in LINK_KEYS if key in spec},
    )  # fmt: skip


def link_lines(a: str, b: str | None, oneway: bool, settings: Mapping[str, float | None]) -> list[str]:
    """Forwarder commands for host a's access link, or with b for the path a <-> b."""
    keys = PAIR_KEYS if b else LINK_KEYS
    check_keys(f"link {a}", settings, keys)
    values = " ".join(f"{keys[key]}={'-' if value is None else value}" for key, value in settings.items())
    heads = [f"link {a}"] if b is None else [f"pair {a} {b}", f"pair {b} {a}"][: 1 if oneway else 2]
    return [f"{head} {values}" for head in heads]


def forwarder_lines(hosts: Mapping[str, Host], config: Mapping[str, Any], folder: str) -> list[str]:
    """What the forwarder reads at its start; ``folder`` holds the namespaces."""
    lines = [f"seed {int(config.get('seed', 1))}"]
    lines += [f"host {host.name} {folder}/{host.router or host.netns} wan0 {host.wan}" for host in hosts.values()]
    for host in hosts.values():
        if host.link:
            lines += link_lines(host.name, None, True, host.link)
    for pair in map(dict, config.get("pairs", [])):
        a, b, oneway = pair.pop("a"), pair.pop("b"), pair.pop("oneway", False)
        lines += link_lines(a, b, oneway, pair)
    return lines
