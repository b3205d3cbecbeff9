"""A whole chain of automata in push mode, and its recovery from the loss of any server at any moment.

The client below is the shortest one that recovers: wire the survivors for relaying, open a replacement, replay its
inputs from the history, finish by hand what was under way, renumber the replacement, and wire for pushing again. It
shows that the automata have all that fail-over asks for; the outputs must be those of an undisturbed chain.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from p2pllm.types import PeerId, Span
from p2pllm.wire import messages as m
from p2pllm.wire.frame import MessageReader, encode_message
from p2pllm.wire.session import Answered, Fallback, Ready, Refused, Resumed, Run, Send
from p2pllm.wire.session_client import ClientHop
from p2pllm.wire.session_server import ServerSession
from tests.wire.strategies import MODEL, SESSION
from tests.wire.toy import HIDDEN, Rows, new_token, pack, run, unpack

ME = PeerId("12D3opener")
STEPS = 9
HOPS = 3
IN_FLIGHT = 3


class Server:
    """A toy server: one session, one cache."""

    def __init__(self, salt: bytes) -> None:
        self.salt = salt
        self.session: ServerSession | None = None
        self.cache: Rows = [()]
        self.queue: deque[Run] = deque()


class World:
    """Servers, and a reliable ordered link between any two peers; ``rng`` decides what happens next."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.servers: dict[PeerId, Server] = {}
        self.links: dict[tuple[PeerId, PeerId], deque[bytes]] = {}
        self.readers: dict[tuple[PeerId, PeerId], MessageReader] = {}
        self.events = 0
        self.unreachable: set[tuple[PeerId, PeerId]] = set()

    def send(self, source: PeerId, to: PeerId, message: m.Message, payload: bytes = b"") -> None:
        self.links.setdefault((source, to), deque()).append(encode_message(message, payload))

    def kill(self, peer: PeerId) -> None:
        del self.servers[peer]
        self.links = {key: queue for key, queue in self.links.items() if peer not in key}

    def serve(self, me: PeerId, source: PeerId, message: m.Message, payload: bytes) -> None:
        server = self.servers[me]
        if server.session is None:
            assert isinstance(message, m.Open)
            server.session = ServerSession(message, source, hidden=HIDDEN)
            self.perform(me, server.session.opened("class"))
        else:
            self.perform(me, server.session.receive(source, message, payload))

    def perform(self, me: PeerId, events: list[object]) -> None:
        for event in events:
            if isinstance(event, Run):
                self.servers[me].queue.append(event)
            elif isinstance(event, Send):
                if (me, event.to) in self.unreachable:
                    session = self.servers[me].session
                    assert session is not None
                    self.perform(me, [*session.unpushed()])
                elif event.to == ME or event.to in self.servers:
                    self.send(me, event.to, event.message, bytes(event.payload))

    def compute(self, me: PeerId) -> None:
        server = self.servers[me]
        item = server.queue.popleft()
        step = item.step
        tokens = unpack(item.payload)
        server.cache, out = run(server.cache, step.positions, step.counts, step.sources, tokens, item.tail, server.salt)
        assert server.session is not None
        header, payload = pack(out)
        self.perform(me, [*server.session.answered(step.step, header, payload)])

    def happen(self, client: Client) -> bool:
        """Let one thing happen; False when nothing can."""
        choices: list[object] = [key for key, queue in self.links.items() if queue]
        choices += [peer for peer, server in self.servers.items() if server.queue]
        if not choices:
            return False
        self.events += 1
        choice = self.rng.choice(choices)
        if isinstance(choice, str):
            self.compute(PeerId(choice))
            return True
        assert isinstance(choice, tuple)
        source, to = choice
        reader = self.readers.setdefault(choice, MessageReader())
        for message, payload in reader.feed(self.links[choice].popleft()):
            if to == ME:
                client.take(source, message, bytes(payload))
            elif not isinstance(message, m.Fault):
                self.serve(to, source, message, bytes(payload))
        return True


class Client:
    """The smallest client that recovers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made = 0
        self.epoch = 1
        self.peers = [self.fresh(i) for i in range(HOPS)]
        self.steps: list[tuple[int, tuple[m.TensorHeader, bytes]]] = []  # (position, input of the first hop)
        self.outputs: list[dict[int, bytes]] = [{} for _ in range(HOPS)]  # per hop, by the chain's ids: the history
        self.offsets = [0] * HOPS  # a hop's id minus the chain's
        self.confirmed: set[PeerId] = set()
        self.fallbacks = 0
        self.hops = [self.hop(i, push=True) for i in range(HOPS)]
        self.wait(lambda: len(self.confirmed) == HOPS)

    def fresh(self, index: int) -> PeerId:
        peer = PeerId(f"12D3server{'ABC'[index]}{'abcdefgh'[self.made]}")
        self.made += 1
        self.world.servers[peer] = Server(bytes([index]))
        return peer

    def neighbours(self, i: int, push: bool) -> tuple[PeerId | None, PeerId | None]:
        before = self.peers[i - 1] if push and i > 0 else None
        return before, self.peers[i + 1] if push and i + 1 < HOPS else None

    def hop(self, i: int, push: bool) -> ClientHop:
        before, after = self.neighbours(i, push)
        span = Span(i, i + 1)
        hop = ClientHop(
            m.Open(SESSION, self.epoch, MODEL, span, 1, 99, "int8", push_from=before, push_to=after), hidden=HIDDEN
        )
        self.world.send(ME, self.peers[i], hop.open())
        return hop

    def take(self, peer: PeerId, message: m.Message, payload: bytes) -> None:
        if peer not in self.peers:
            return
        i = self.peers.index(peer)
        for event in self.hops[i].receive(message, payload):
            match event:
                case Answered(answer=answer) if answer.tensor.shape[0]:  # a replay has no outputs
                    self.outputs[i][answer.step - self.offsets[i]] = payload
                case Ready() | Resumed():
                    self.confirmed.add(peer)
                case Fallback():
                    self.fallbacks += 1
                case Refused(error=error):
                    raise error

    def wait(self, done: object) -> None:
        assert callable(done)
        while not done():
            assert self.world.happen(self), "nothing can happen any more"

    def ask(self, tokens: list[bytes]) -> None:
        """One step in push mode: sent to the first hop, expected from all others."""
        position = sum(len(unpack(payload)) for _, (_, payload) in self.steps)
        packed = pack(tokens)
        self.steps.append((position, packed))
        acked = min(hop.acked for hop in self.hops)
        step = self.hops[0].step((position,), (len(tokens),), *packed, tail=1, acked=acked)
        self.world.send(ME, self.peers[0], step, packed[1])
        for hop in self.hops[1:]:
            assert hop.expect((position,), (len(tokens),), tail=1) == step.step

    def rewire(self, push: bool, renumber: int | None = None) -> None:
        self.confirmed.clear()
        number = len(self.steps)
        for i, hop in enumerate(self.hops):
            if hop.epoch < self.epoch:
                rewire = hop.rewire(self.epoch, *self.neighbours(i, push), step=number if i == renumber else -1)
                self.world.send(ME, self.peers[i], rewire)
        self.wait(lambda: self.confirmed == set(self.peers))

    def recover(self, lost: int | None) -> None:
        """Go on without server ``lost`` (None: all are there, but one could not push)."""
        self.epoch += 1
        if lost is not None:
            self.peers[lost] = self.fresh(lost)
            self.hops[lost] = self.hop(lost, push=False)
        self.rewire(push=False)
        first = min((hop.acked for i, hop in enumerate(self.hops) if i != lost), default=-1) + 1
        if lost is not None:
            first = min(first, max(self.outputs[lost], default=-1) + 1)
            while first and not all(s in self.outputs[i] for i in range(HOPS) for s in range(first)):
                first -= 1
            self.replay(lost, first)
        for s in range(first, len(self.steps)):
            payload = self.steps[s][1][1]
            for i in range(HOPS):
                payload = self.finish(i, s, payload)
        self.epoch += 1
        self.rewire(push=True, renumber=lost)
        if lost is not None:
            self.offsets[lost] = 0

    def replay(self, lost: int, first: int) -> None:
        """Feed the replacement all inputs before step ``first`` in one step, and ask for no output."""
        history = [step[1][1] for step in self.steps] if lost == 0 else self.outputs[lost - 1]
        tokens = [token for s in range(first) for token in unpack(history[s])]
        for s in range(first, len(self.steps)):
            self.outputs[lost].pop(s, None)
        if tokens:
            header, payload = pack(tokens)
            step = self.hops[lost].step((0,), (len(tokens),), header, payload, tail=0)
            self.world.send(ME, self.peers[lost], step, payload)
        self.offsets[lost] = self.hops[lost].next_step - first
        self.wait(lambda: not self.hops[lost].unanswered)

    def finish(self, i: int, s: int, payload: bytes) -> bytes:
        """Step ``s`` at hop ``i``, relayed by hand unless its answer is there already."""
        if s not in self.outputs[i]:
            position, packed = self.steps[s]
            count = len(unpack(packed[1]))
            header = pack(unpack(payload))[0]
            hop = self.hops[i]
            number = s + self.offsets[i]
            tail = 1 if i == HOPS - 1 else -1
            if number in hop.unanswered:
                like = m.Step(SESSION, self.epoch, number, (position,), (count,), header, tail=tail)
                step = hop.supply(number, header, payload, like)
            else:
                step = hop.step((position,), (count,), header, payload, tail=tail)
            self.world.send(ME, self.peers[i], step, payload)
            self.wait(lambda: s in self.outputs[i])
        return self.outputs[i][s]

    def generate(self, disturb: object) -> None:
        """A prefill of 4 tokens, then single ones, some of them in flight together."""
        assert callable(disturb)
        for s in range(STEPS):
            self.ask([new_token(100 * s + i) for i in range(4 if s == 0 else 1)])
            while len(self.steps) - len(self.outputs[-1]) >= IN_FLIGHT or (s == STEPS - 1 and not self.complete()):
                lost = disturb()
                if lost is not None or self.fallbacks:
                    self.fallbacks = 0
                    self.recover(lost)
                elif not self.complete():
                    assert self.world.happen(self), "nothing can happen any more"

    def complete(self) -> bool:
        return all(len(outputs) == len(self.steps) for outputs in self.outputs)


def expected() -> dict[int, bytes]:
    """What the last hop answers to each step of an undisturbed chain."""
    caches: list[Rows] = [[()] for _ in range(HOPS)]
    answers = {}
    position = 0
    for s in range(STEPS):
        tokens = [new_token(100 * s + i) for i in range(4 if s == 0 else 1)]
        count = len(tokens)
        for i in range(HOPS):
            caches[i], tokens = run(caches[i], (position,), (count,), (), tokens, -1, bytes([i]))
        answers[s] = tokens[-1]
        position += count
    return answers


def test_an_undisturbed_chain_pushes() -> None:
    for seed in range(20):
        client = Client(World(seed))
        client.generate(lambda: None)
        assert client.outputs[-1] == expected()


@pytest.mark.parametrize("lost", range(HOPS))
def test_any_server_may_be_lost_after_any_event(lost: int) -> None:
    reference = Client(World(1))
    opened = reference.world.events
    reference.generate(lambda: None)
    for moment in range(opened, reference.world.events):
        world = World(1)
        client = Client(world)
        left = [lost]

        def disturb(
            world: World = world, client: Client = client, left: list[int] = left, at: int = moment
        ) -> int | None:
            if not left or world.events < at:
                return None
            world.kill(client.peers[left[0]])
            return left.pop()

        client.generate(disturb)
        assert client.outputs[-1] == expected(), moment
        assert not left or moment >= world.events


@pytest.mark.parametrize("seed", range(40))
def test_servers_may_be_lost_one_after_another(seed: int) -> None:
    world = World(seed)
    client = Client(world)
    left = [random.Random(seed).randrange(HOPS) for _ in range(3)]

    def disturb() -> int | None:
        if not left or world.rng.random() > 0.1:
            return None
        world.kill(client.peers[left[-1]])
        return left.pop()

    client.generate(disturb)
    assert client.outputs[-1] == expected()


@pytest.mark.parametrize("first", [0, 1])
def test_a_link_between_two_servers_may_be_missing(first: int) -> None:
    """The server says so once, and the client relays: nothing is lost and nobody is blamed."""
    world = World(5)
    client = Client(world)
    world.unreachable.add((client.peers[first], client.peers[first + 1]))
    said = []

    def disturb() -> None:
        if client.fallbacks:
            said.append(client.fallbacks)
            world.unreachable.clear()

    client.generate(disturb)
    assert said == [1]
    assert client.outputs[-1] == expected()
