"""The client's automaton: it asks for nothing illegal and believes nothing impossible."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from p2pllm.config import WireLimits
from p2pllm.errors import (
    ClientFault,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
    ServerFault,
    SessionGone,
)
from p2pllm.types import PeerId, SessionId, Span
from p2pllm.wire import messages as m
from p2pllm.wire.session import Answered, Fallback, HopPhase, Over, Ready, Refused, Resumed
from p2pllm.wire.session_client import ClientHop
from tests.wire.strategies import MODEL, SESSION, tensor_of

HIDDEN = 8
NEXT = PeerId("12D3next")
OPEN = m.Open(SESSION, 1, MODEL, Span(0, 4), 1, 100, "int8")
OTHER = SessionId(b"another session!")


def ready(open_: m.Open = OPEN) -> ClientHop:
    hop = ClientHop(open_, hidden=HIDDEN)
    assert hop.open() == open_
    assert hop.receive(m.Opened(SESSION, open_.epoch, "class")) == [Ready("class")]
    return hop


def ask(hop: ClientHop, count: int = 1, *, tail: int = -1, acked: int | None = None) -> m.Step:
    tensor = tensor_of(count, HIDDEN)
    return hop.step(hop.positions, (count,), tensor, bytes(tensor.size), tail=tail, acked=acked)


def answer(number: int, after: int, tokens: int = 1, epoch: int = 1) -> m.Answer:
    return m.Answer(SESSION, epoch, number, (after,), tensor_of(tokens, HIDDEN))


class TestSteps:
    def test_steps_are_numbered_and_acknowledge_what_came(self) -> None:
        hop = ready()
        first = ask(hop, 3)
        assert (first.step, first.positions, first.acked, first.epoch) == (0, (0,), -1, 1)
        second = ask(hop)
        assert (second.step, second.positions, second.acked) == (1, (3,), -1)
        assert hop.unanswered == (0, 1)
        assert hop.receive(answer(0, 3, 3), b"out") == [Answered(answer(0, 3, 3), b"out")]
        assert ask(hop).acked == 0
        assert hop.positions == (5,)
        assert hop.next_step == 3

    def test_acknowledgements_may_be_held_back(self) -> None:
        hop = ready()
        for number in range(3):
            ask(hop)
            hop.receive(answer(number, number + 1))
        assert ask(hop, acked=0).acked == 0
        assert [step.acked for step, _ in hop.resend(1)] == [1]
        assert [step.acked for step, _ in hop.resend()] == [2]

    @pytest.mark.parametrize(
        ("positions", "count", "tensor", "sources", "reason"),
        [
            ((1,), 1, tensor_of(1, HIDDEN), (), "continues at 1, but has 0"),
            ((0,), 101, tensor_of(101, HIDDEN), (), "room for 100"),
            ((0, 0), 1, tensor_of(1, HIDDEN), (), "session of 1"),
            ((0,), 1, tensor_of(1, 16), (), "hidden 8"),
            ((0,), 2, tensor_of(1, HIDDEN), (), "2 tokens"),
            ((0,), 1, tensor_of(1, HIDDEN), (1,), "rows that do not exist"),
        ],
    )
    def test_our_own_mistakes_never_leave(
        self, positions: tuple[int, ...], count: int, tensor: m.TensorHeader, sources: tuple[int, ...], reason: str
    ) -> None:
        hop = ready()
        with pytest.raises(LocalProtocolError, match=reason):
            hop.step(positions, (count,), tensor, bytes(tensor.size), sources=sources)
        assert hop.next_step == 0
        assert hop.unanswered == ()

    def test_only_so_many_steps_are_under_way(self) -> None:
        hop = ready()
        for _ in range(WireLimits().steps_in_flight_max):
            assert hop.room
            ask(hop)
        assert not hop.room
        with pytest.raises(LocalProtocolError, match="in flight"):
            ask(hop)

    def test_rows_roll_back_and_fork(self) -> None:
        hop = ready(dataclasses.replace(OPEN, rows=2))
        tensor = tensor_of(7, HIDDEN)
        hop.step((0, 0), (5, 2), tensor, bytes(tensor.size))
        tensor = tensor_of(2, HIDDEN)
        step = hop.step((3, 5), (1, 1), tensor, bytes(tensor.size), sources=(0, 0))
        assert step.sources == (0, 0)
        assert hop.positions == (4, 6)


class TestLies:
    """Each answer but the right one is the server's fault, and the hop says so."""

    @pytest.mark.parametrize(
        ("lie", "reason"),
        [
            (m.Answer(OTHER, 1, 0, (3,), tensor_of(3, HIDDEN)), "another session"),
            (answer(0, 3, 3, epoch=2), "epoch 2"),
            (answer(0, 3, 3, epoch=0), "epoch 0"),
            (answer(1, 3, 3), "never asked for"),
            (answer(0, 4, 3), "rows at"),
            (answer(0, 3, 2), r"int8 \[2, 8\] instead of int8 \[3, 8\]"),
            (dataclasses.replace(answer(0, 3, 3), tensor=tensor_of(3, 16)), r"\[3, 16\]"),
            (dataclasses.replace(answer(0, 3, 3), tensor=tensor_of(3, HIDDEN, "fp32")), "fp32"),
            (dataclasses.replace(answer(0, 3, 3), positions=(3, 3)), "rows at"),
            (m.Opened(SESSION, 1, "class"), "while the session is ready"),
            (m.Attached(SESSION, 1, -1, (0,)), "while the session is ready"),
            (m.Closed(SESSION), "while the session is ready"),
            (m.Close(SESSION), "not for a client"),
            (m.Fault(m.FaultKind.BUSY, "no", OTHER, 1, 0), "another session"),
            (m.Fault(m.FaultKind.BUSY, "no", SESSION, 2, 0), "not begun"),
            (m.Fault(m.FaultKind.BUSY, "no", SESSION, 1, 5), "never asked for"),
        ],
    )
    def test_a_lie_is_noticed(self, lie: m.Message, reason: str) -> None:
        hop = ready()
        ask(hop, 3)
        with pytest.raises(RemoteProtocolError, match=reason):
            hop.receive(lie, b"")

    def test_the_codec_is_the_one_that_was_asked_for(self) -> None:
        hop = ready(dataclasses.replace(OPEN, returns="fp32"))
        ask(hop)
        with pytest.raises(RemoteProtocolError, match="int8"):
            hop.receive(answer(0, 1))
        right = dataclasses.replace(answer(0, 1), tensor=tensor_of(1, HIDDEN, "fp32"))
        assert isinstance(hop.receive(right)[0], Answered)

    def test_numerics_are_the_ones_that_were_required(self) -> None:
        hop = ClientHop(dataclasses.replace(OPEN, numerics="exact"), hidden=HIDDEN)
        hop.open()
        with pytest.raises(RemoteProtocolError, match="numerics"):
            hop.receive(m.Opened(SESSION, 1, "other"))

    def test_opening_in_another_epoch_is_a_lie(self) -> None:
        hop = ClientHop(OPEN, hidden=HIDDEN)
        hop.open()
        with pytest.raises(RemoteProtocolError, match="epoch 2"):
            hop.receive(m.Opened(SESSION, 2, "class"))

    @pytest.mark.parametrize(
        "attached",
        [
            m.Attached(SESSION, 2, 1, (2,)),
            m.Attached(SESSION, 1, 0, (1,)),  # less than was answered
            m.Attached(SESSION, 1, 3, (4,)),  # more than was asked
            m.Attached(SESSION, 1, 1, (3,)),
            m.Attached(SESSION, 1, 2, (2,)),
        ],
    )
    def test_an_impossible_standing_is_a_lie(self, attached: m.Attached) -> None:
        hop = ready()
        for number in range(2):
            ask(hop)
            hop.receive(answer(number, number + 1))
        ask(hop)
        hop.lost()
        hop.attach()
        with pytest.raises(RemoteProtocolError):
            hop.receive(attached)


class TestFaults:
    @pytest.mark.parametrize(
        ("kind", "error", "over"),
        [
            (m.FaultKind.CLIENT, ClientFault, False),
            (m.FaultKind.BUSY, Overloaded, False),
            (m.FaultKind.GONE, SessionGone, True),
            (m.FaultKind.INTERNAL, ServerFault, True),
        ],
    )
    def test_faults_are_typed_by_blame(self, kind: m.FaultKind, error: type[Exception], over: bool) -> None:
        hop = ready()
        ask(hop)
        (event,) = hop.receive(m.Fault(kind, "because", SESSION, 1, 0, 1.5))
        assert isinstance(event, Refused)
        assert event.step == 0
        assert type(event.error) is error
        assert str(event.error) == "because"
        assert (hop.phase is HopPhase.OVER) == over

    def test_a_wish_to_be_left_alone_is_capped(self) -> None:
        hop = ready()
        ask(hop)
        (event,) = hop.receive(m.Fault(m.FaultKind.BUSY, "full", SESSION, 1, 0, 1e9))
        assert event.error.retry_after_s == WireLimits().retry_after_s_max  # type: ignore[union-attr]

    def test_after_busy_the_steps_go_again_as_they_were(self) -> None:
        hop = ready()
        sent = [ask(hop), ask(hop)]
        hop.receive(m.Fault(m.FaultKind.BUSY, "full", SESSION, 1, 0, 0.1))
        assert [step for step, _ in hop.resend()] == sent

    def test_a_refused_session_is_over(self) -> None:
        hop = ClientHop(OPEN, hidden=HIDDEN)
        hop.open()
        assert isinstance(hop.receive(m.Fault(m.FaultKind.BUSY, "full"))[0], Refused)
        assert hop.phase is HopPhase.OVER
        with pytest.raises(LocalProtocolError, match="cannot be sent while the session is over"):
            ask(hop)

    def test_faults_of_epochs_that_are_over_are_old_news(self) -> None:
        hop = ready(dataclasses.replace(OPEN, epoch=5))
        assert hop.receive(m.Fault(m.FaultKind.GONE, "epoch 4 is over", SESSION, 4)) == []
        assert hop.phase is HopPhase.READY


class TestStreams:
    def test_unanswered_steps_go_again_after_a_re_attach(self) -> None:
        hop = ready()
        ask(hop)
        hop.receive(answer(0, 1))
        sent = [ask(hop), ask(hop)]
        hop.lost()
        assert hop.phase is HopPhase.DETACHED
        with pytest.raises(LocalProtocolError, match="while the session is detached"):
            hop.resend()
        assert hop.attach() == m.Attach(SESSION, 1)
        assert hop.receive(m.Attached(SESSION, 1, 1, (2,))) == [Resumed(1, (2,))]
        assert [step.step for step, _ in hop.resend()] == [1, 2]
        assert [payload for _, payload in hop.resend()] == [bytes(step.tensor.size) for step in sent]

    def test_repeated_answers_are_old_news(self) -> None:
        hop = ready()
        ask(hop)
        hop.receive(answer(0, 1))
        assert hop.receive(answer(0, 1)) == []

    def test_answers_may_overtake_each_other_after_a_re_attach(self) -> None:
        hop = ready()
        for _ in range(3):
            ask(hop)
        assert isinstance(hop.receive(answer(2, 3))[0], Answered)
        assert hop.acked == -1
        assert isinstance(hop.receive(answer(0, 1))[0], Answered)
        assert hop.acked == 0
        assert isinstance(hop.receive(answer(1, 2))[0], Answered)
        assert hop.acked == 2

    def test_a_stream_lost_before_opened_means_open_again(self) -> None:
        hop = ClientHop(OPEN, hidden=HIDDEN)
        hop.open()
        hop.lost()
        assert hop.open() == OPEN

    def test_a_live_stream_can_be_left_for_a_better_one(self) -> None:
        hop = ready()
        ask(hop)
        hop.attach()
        assert isinstance(hop.receive(answer(0, 1))[0], Answered)
        assert hop.receive(m.Attached(SESSION, 1, 0, (1,))) == [Resumed(0, (1,))]
        assert hop.phase is HopPhase.READY

    def test_close_waits_for_closed_and_ignores_the_rest(self) -> None:
        hop = ready()
        ask(hop)
        assert hop.close() == m.Close(SESSION)
        assert hop.receive(answer(0, 1)) == []
        assert hop.receive(m.Closed(SESSION)) == [Over()]
        assert hop.phase is HopPhase.OVER

    @pytest.mark.parametrize("end", [m.Fault(m.FaultKind.GONE, "idle", SESSION, 1), m.Closed(SESSION)])
    def test_however_it_ends_it_is_over(self, end: m.Message) -> None:
        hop = ready()
        hop.close()
        assert hop.receive(end) == [Over()]
        assert hop.phase is HopPhase.OVER

    def test_a_stream_lost_while_closing_is_as_good_as_closed(self) -> None:
        hop = ready()
        hop.close()
        hop.lost()
        assert hop.phase is HopPhase.OVER


class TestEpochs:
    def test_answers_of_the_old_epoch_may_precede_the_confirmation(self) -> None:
        hop = ready()
        ask(hop)
        assert hop.rewire(2, None, NEXT) == m.Rewire(SESSION, 2, None, NEXT)
        assert isinstance(hop.receive(answer(0, 1, epoch=1))[0], Answered)
        hop.receive(m.Attached(SESSION, 2, 0, (1,)))
        ask(hop)
        with pytest.raises(RemoteProtocolError, match="epoch 1"):
            hop.receive(answer(1, 2, epoch=1))

    def test_epochs_only_grow(self) -> None:
        with pytest.raises(LocalProtocolError, match="does not follow"):
            ready().rewire(1)

    def test_an_unconfirmed_rewire_is_said_again(self) -> None:
        hop = ready()
        rewire = hop.rewire(2, None, NEXT)
        hop.lost()
        assert hop.attach() == rewire
        hop.receive(m.Attached(SESSION, 2, -1, (0,)))
        hop.lost()
        assert hop.attach() == m.Attach(SESSION, 2)

    def test_one_rewire_is_confirmed_before_the_next(self) -> None:
        hop = ready()
        hop.rewire(2, step=7)
        hop.lost()
        with pytest.raises(LocalProtocolError, match="attach first"):
            hop.rewire(3)

    def test_a_renumbered_hop_counts_from_there_and_gives_up_the_rest(self) -> None:
        hop = ready()
        ask(hop, 20)
        hop.rewire(2, step=57)
        assert hop.receive(m.Attached(SESSION, 2, 0, (20,))) == [Resumed(0, (20,))]
        assert hop.unanswered == ()
        assert hop.acked == 56
        assert ask(hop).step == 57

    @pytest.mark.parametrize(("last", "positions"), [(-1, (0,)), (0, (20,)), (1, (21,))])
    def test_which_steps_had_arrived_is_the_servers_to_say(self, last: int, positions: tuple[int, ...]) -> None:
        hop = ready()
        ask(hop, 20)
        ask(hop)
        hop.lost()
        hop.rewire(2, step=57)
        hop.receive(m.Attached(SESSION, 2, last, positions))
        assert hop.positions == positions

    @pytest.mark.parametrize("attached", [m.Attached(SESSION, 2, 0, (7,)), m.Attached(SESSION, 2, 56, (20,))])
    def test_but_not_to_invent(self, attached: m.Attached) -> None:
        hop = ready()
        ask(hop, 20)
        hop.rewire(2, step=57)
        with pytest.raises(RemoteProtocolError, match=r"rows at|as the last one"):
            hop.receive(attached)


class TestPush:
    def test_a_hop_that_pushes_answers_in_full(self) -> None:
        hop = ready(dataclasses.replace(OPEN, push_to=NEXT))
        ask(hop, 3, tail=1)
        assert isinstance(hop.receive(answer(0, 3, 3))[0], Answered)

    def test_the_last_hop_answers_with_the_tail(self) -> None:
        hop = ready()
        ask(hop, 3, tail=1)
        with pytest.raises(RemoteProtocolError, match=r"\[1, 8\]"):
            hop.receive(answer(0, 3, 3))
        assert isinstance(hop.receive(answer(0, 3, 1))[0], Answered)

    def test_steps_that_a_neighbour_pushes_are_answered_all_the_same(self) -> None:
        hop = ready()
        assert hop.expect((0,), (3,), tail=1) == 0
        assert hop.resend() == []
        assert isinstance(hop.receive(answer(0, 3, 1))[0], Answered)
        assert hop.positions == (3,)

    def test_what_a_neighbour_cannot_push_is_supplied(self) -> None:
        first = ready(dataclasses.replace(OPEN, push_to=NEXT))
        second = ready()
        like = ask(first, 3, tail=1)
        second.expect((0,), (3,), tail=1)
        assert first.receive(m.Unpushed(SESSION, 1)) == [Fallback()]
        output = tensor_of(3, HIDDEN, "fp16")
        step = second.supply(0, output, bytes(output.size), like)
        assert step == dataclasses.replace(like, tensor=output)
        assert second.resend() == [(step, bytes(output.size))]
        with pytest.raises(LocalProtocolError, match="not under way"):
            second.supply(1, output, b"", like)

    def test_old_news_of_unreachable_neighbours_is_ignored(self) -> None:
        hop = ready(dataclasses.replace(OPEN, push_to=NEXT))
        hop.rewire(2)
        assert hop.receive(m.Unpushed(SESSION, 1)) == []

    def test_rewired_while_under_way_either_size_may_come(self) -> None:
        """Whether the server computed the step before or after the Rewire, only it knows."""
        for tokens in (1, 3):
            hop = ready()
            ask(hop, 3, tail=1)
            hop.lost()
            hop.rewire(2, None, NEXT)
            hop.receive(m.Attached(SESSION, 2, -1, (0,)))
            assert isinstance(hop.receive(answer(0, 3, tokens, epoch=2))[0], Answered)


@pytest.mark.parametrize(
    "call",
    [
        lambda hop: hop.attach(),
        lambda hop: hop.rewire(2),
        lambda hop: hop.resend(),
        lambda hop: ask(hop),
    ],
)
def test_nothing_is_sent_before_its_time(call: Callable[[ClientHop], object]) -> None:
    hop = ClientHop(OPEN, hidden=HIDDEN)
    with pytest.raises(LocalProtocolError, match="while the session is new"):
        call(hop)
    with pytest.raises(RemoteProtocolError, match="while the session is new"):
        hop.receive(m.Fault(m.FaultKind.GONE, "?"))
