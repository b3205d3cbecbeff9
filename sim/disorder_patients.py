"""A swarm as disorder sees it, however it was opened: whom something can happen to, and how.

Invariants: looks behind the curtain where nothing else leads to a machine's devices, disk or blocks, and changes
nothing there but on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch

from p2pllm.dht.view import SwarmView
from p2pllm.errors import UserError
from p2pllm.model.span import SpanModel
from p2pllm.ports import Compute, Ports, Storage
from sim.nodes import Nodes, Role
from sim.swarm import SimSwarm
from sim.world import World


class Patients(Protocol):
    """A swarm as disorder sees it, however it was opened."""

    @property
    def world(self) -> World: ...

    def names(self) -> tuple[str, ...]:
        """Hosts that something can happen to, servers first."""
        ...

    async def restart(self, name: str) -> None:
        """Start a dead host's process again.

        Raises:
            UserError: this one cannot be started again.
        """
        ...

    def compute(self, name: str) -> Compute | None:
        """The devices of a living host."""
        ...

    def disk(self, name: str) -> Storage | None:
        """The disk of a living host."""
        ...

    def lie(self, name: str, wrong: bool) -> None:
        """From now on a living server's answers are wrong, or right again."""
        ...

    def views(self) -> Mapping[str, SwarmView]:
        """What every living member believes, by its name."""
        ...


class WrongSpan:
    """Blocks whose numbers are wrong while ``wrong`` is set; their shapes are right."""

    def __init__(self, model: SpanModel) -> None:
        self.wrong = False
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, *args: Any, **options: Any) -> torch.Tensor:
        """See ``SpanModel.run``."""
        out = self._model.run(*args, **options)
        return out.flip(-1) if self.wrong else out


class SwarmPatients:
    """Servers and clients of ``sim.swarm``; clients are not started again."""

    def __init__(self, swarm: SimSwarm) -> None:
        self._swarm = swarm

    @property
    def world(self) -> World:
        return self._swarm.world

    def names(self) -> tuple[str, ...]:
        """See ``Patients``."""
        return (*self._swarm.servers, *(client.network.name for client in self._swarm.clients))

    async def restart(self, name: str) -> None:
        """See ``Patients``."""
        if name not in self._swarm.servers:
            raise UserError(f"{name!r} is a client, which is not started again here; a server can be")
        await self._swarm.add(name, self._swarm.servers[name].span)

    def compute(self, name: str) -> Compute | None:
        """See ``Patients``."""
        server = self._swarm.servers.get(name)
        if server is not None:
            return server.serving.engine._compute
        ports = self._ports(name)
        return None if ports is None else ports.compute

    def disk(self, name: str) -> Storage | None:
        """See ``Patients``; servers have none."""
        ports = self._ports(name)
        return None if ports is None else ports.storage

    def lie(self, name: str, wrong: bool) -> None:
        """See ``Patients``."""
        server = self._swarm.servers.get(name)
        if server is None:
            return
        backend = cast("Any", server.serving.engine._backend)
        if wrong and not isinstance(backend.model, WrongSpan):
            backend.model = WrongSpan(backend.model)
        if isinstance(backend.model, WrongSpan):
            backend.model.wrong = wrong

    def views(self) -> Mapping[str, SwarmView]:
        """See ``Patients``."""
        return {client.network.name: client.directory.view for client in self._swarm.clients}

    def _ports(self, name: str) -> Ports | None:
        """A client's."""
        clients = {client.network.name: client for client in self._swarm.clients}
        return clients[name].model._context.ports if name in clients else None


ROLES: tuple[Role, ...] = ("server", "client", "bootstrap")


class NodePatients:
    """Whole nodes of ``sim.nodes``."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    @property
    def world(self) -> World:
        return self._nodes.world

    def names(self) -> tuple[str, ...]:
        """See ``Patients``."""
        return tuple(node.name for role in ROLES for node in self._nodes.of(role))

    async def restart(self, name: str) -> None:
        """See ``Patients``: it joins in its own time."""
        await self._nodes.restart(name)

    def compute(self, name: str) -> Compute | None:
        """See ``Patients``."""
        return self._nodes.by_name[name].compute

    def disk(self, name: str) -> Storage | None:
        """See ``Patients``."""
        return cast("Storage", self._nodes.by_name[name].disk)

    def lie(self, name: str, wrong: bool) -> None:
        """See ``Patients``."""
        self._nodes.by_name[name].wrong = wrong

    def views(self) -> Mapping[str, SwarmView]:
        """See ``Patients``."""
        nodes = self._nodes.by_name.values()
        return {node.name: node.directory.view for node in nodes if node.directory is not None}
