"""The server's automaton, rule by rule."""

from __future__ import annotations

import dataclasses

import pytest

from p2pllm.config import WireLimits
from p2pllm.errors import LocalProtocolError, RemoteProtocolError
from p2pllm.types import PeerId, Priority, SessionId, Span
from p2pllm.wire import messages as m
from p2pllm.wire.ledger import ENTRIES_MAX
from p2pllm.wire.session import Bind, End, Run, Send, ServerEvent, ServerPhase, Wired, Withdraw
from p2pllm.wire.session_server import ServerSession
from tests.wire.strategies import MODEL, SESSION, tensor_of

ME = PeerId("12D3opener")
BEFORE = PeerId("12D3before")
NEXT = PeerId("12D3next")
STRANGER = PeerId("12D3stranger")
HIDDEN = 8
OPEN = m.Open(SESSION, 1, MODEL, Span(0, 4), 1, 100, "int8")


def opened(open_: m.Open = OPEN, **options: float) -> ServerSession:
    session = ServerSession(open_, ME, hidden=HIDDEN, **options)  # type: ignore[arg-type]
    session.opened("class")
    return session


def step(number: int, position: int, count: int = 1, *, fill: int = 0, **changes: object) -> tuple[m.Step, bytes]:
    tensor = tensor_of(count, HIDDEN)
    message = m.Step(SESSION, 1, number, (position,), (count,), tensor)
    return dataclasses.replace(message, **changes), bytes([fill]) * tensor.size  # type: ignore[arg-type]


def answer(session: ServerSession, number: int, tokens: int = 1) -> list[ServerEvent]:
    tensor = tensor_of(tokens, HIDDEN)
    return session.answered(number, tensor, bytes(tensor.size))


def faults(events: list[ServerEvent]) -> list[tuple[PeerId, m.FaultKind, int, str]]:
    return [
        (event.to, event.message.kind, event.message.step, event.message.reason)
        for event in events
        if isinstance(event, Send) and isinstance(event.message, m.Fault)
    ]


def fault(events: list[ServerEvent]) -> tuple[PeerId, m.FaultKind, int, str]:
    assert len(events) == 1
    return faults(events)[0]


class TestSteps:
    def test_a_step_runs_and_is_answered(self) -> None:
        session = opened()
        message, payload = step(0, 0, 3)
        assert session.receive(ME, message, payload) == [Run(message, payload, -1)]
        tensor = tensor_of(3, HIDDEN)
        (sent,) = session.answered(0, tensor, bytes(tensor.size), 0.1, 0.2)
        assert sent == Send(ME, m.Answer(SESSION, 1, 0, (3,), tensor, 0.1, 0.2), bytes(tensor.size))
        assert session.positions == (3,)

    def test_steps_may_overlap_and_are_answered_in_order(self) -> None:
        session = opened()
        for number in range(3):
            session.receive(ME, *step(number, number))
        assert session.running == (0, 1, 2)
        with pytest.raises(LocalProtocolError, match="not the oldest"):
            answer(session, 1)
        for number in range(3):
            (sent,) = answer(session, number)
            assert isinstance(sent, Send)
            assert sent.message.positions == (number + 1,)  # type: ignore[union-attr]
        assert session.running == ()

    def test_an_output_of_the_wrong_shape_is_our_bug(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0, 3))
        with pytest.raises(LocalProtocolError, match="asked for 3 tokens"):
            answer(session, 0, 2)

    def test_a_repeated_step_repeats_its_answer(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        assert session.receive(ME, *step(0, 0)) == []  # still running: the answer will come
        first = answer(session, 0)
        assert session.receive(ME, *step(0, 0)) == first
        assert session.positions == (1,)

    def test_the_same_id_with_other_contents_is_refused(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        answer(session, 0)
        for other in (step(0, 0, fill=1), step(0, 0, 2), step(0, 0, tensor=tensor_of(1, HIDDEN, "bf16"))):
            who, kind, number, reason = fault(session.receive(ME, *other))
            assert (who, kind, number) == (ME, m.FaultKind.CLIENT, 0)
            assert "other contents" in reason
        assert isinstance(session.receive(ME, *step(1, 1))[0], Run)

    def test_acknowledged_answers_are_gone(self) -> None:
        session = opened()
        for number in range(3):
            session.receive(ME, *step(number, number, acked=number - 1))
            answer(session, number)
        assert "acknowledged already" in fault(session.receive(ME, *step(1, 1, acked=0)))[3]
        assert len(session.receive(ME, *step(2, 2, acked=1))) == 1

    def test_nothing_is_acknowledged_before_it_was_answered(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        assert "was not answered yet" in fault(session.receive(ME, *step(1, 1, acked=0)))[3]

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            (step(2, 1), "step 2 came where 1 was due"),
            (step(1, 2), "continues at 2, but has 1"),
            (step(1, 1, 100), "would have 101 tokens"),
            (step(1, 1, tensor=tensor_of(1, 16)), "hidden size 16; this model has 8"),
            (step(1, 1, positions=(1, 0), counts=(1, 0)), "2 rows in a session of 1"),
            (step(1, 1, epoch=2), "epoch 2 has not begun"),
        ],
    )
    def test_a_wrong_step_is_refused_and_changes_nothing(self, wrong: tuple[m.Step, bytes], reason: str) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        answer(session, 0)
        who, kind, number, text = fault(session.receive(ME, *wrong))
        assert (who, kind, number) == (ME, m.FaultKind.CLIENT, wrong[0].step)
        assert reason in text
        assert session.positions == (1,)
        assert isinstance(session.receive(ME, *step(1, 1))[0], Run)

    def test_what_was_sent_behind_a_refused_step_is_dropped_silently(self) -> None:
        session = opened()
        assert len(faults(session.receive(ME, *step(0, 5)))) == 1
        assert session.receive(ME, *step(1, 6)) == []
        assert session.receive(ME, *step(2, 7)) == []
        assert isinstance(session.receive(ME, *step(0, 0))[0], Run)
        assert isinstance(session.receive(ME, *step(1, 1))[0], Run)

    def test_a_lower_position_rolls_back(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0, 10))
        session.receive(ME, *step(1, 4, 2))
        assert session.positions == (6,)

    def test_rows_continue_their_sources(self) -> None:
        session = opened(dataclasses.replace(OPEN, rows=3))
        tensor = tensor_of(7, HIDDEN)
        first = m.Step(SESSION, 1, 0, (0, 0, 0), (4, 2, 1), tensor)
        session.receive(ME, first, bytes(tensor.size))
        tensor = tensor_of(2, HIDDEN)
        second = m.Step(SESSION, 1, 1, (4, 3, 2), (1, 1, 0), tensor, sources=(0, 0, 1))
        assert isinstance(session.receive(ME, second, bytes(tensor.size))[0], Run)
        assert session.positions == (5, 4, 2)

    def test_a_tail_is_all_that_is_returned(self) -> None:
        session = opened()
        (run,) = session.receive(ME, *step(0, 0, 9, tail=1))
        assert isinstance(run, Run)
        assert run.tail == 1
        (sent,) = answer(session, 0, 1)
        assert sent.message.positions == (9,)  # type: ignore[union-attr]

    def test_long_payloads_go_as_bulk(self) -> None:
        wide = ServerSession(OPEN, ME, hidden=4096)
        tensor = tensor_of(64, 4096)
        wide.receive(ME, m.Step(SESSION, 1, 0, (0,), (64,), tensor), bytes(tensor.size))
        (sent,) = wide.answered(0, tensor, bytes(tensor.size))
        assert sent.priority is Priority.BULK  # type: ignore[union-attr]


class TestCredit:
    def test_too_many_steps_in_flight_are_refused(self) -> None:
        session = opened()
        most = WireLimits().steps_in_flight_max
        for number in range(most):
            session.receive(ME, *step(number, number))
        assert "steps in flight" in fault(session.receive(ME, *step(most, most)))[3]

    def test_answers_that_nobody_acknowledges_end_in_busy(self) -> None:
        size = m.plain_size("int8", 1, HIDDEN)
        session = opened(answer_bytes_max=3 * size)
        for number in range(3):
            session.receive(ME, *step(number, number))
            answer(session, number)
        events = session.receive(ME, *step(3, 3))
        assert fault(events)[1] is m.FaultKind.BUSY
        assert events[0].message.retry_after_s > 0  # type: ignore[union-attr]
        assert isinstance(session.receive(ME, *step(3, 3, acked=0))[0], Run)

    def test_their_number_is_bounded_too(self) -> None:
        session = opened(dataclasses.replace(OPEN, max_length=1000))
        for number in range(ENTRIES_MAX):
            session.receive(ME, *step(number, number))
            answer(session, number)
        assert fault(session.receive(ME, *step(ENTRIES_MAX, ENTRIES_MAX)))[1] is m.FaultKind.BUSY

    def test_an_answer_beyond_all_credit_is_the_clients_fault(self) -> None:
        session = opened(answer_bytes_max=10)
        assert fault(session.receive(ME, *step(0, 0)))[1] is m.FaultKind.CLIENT

    def test_answers_in_the_codec_that_was_asked_for_count(self) -> None:
        session = opened(dataclasses.replace(OPEN, returns="fp32"), answer_bytes_max=4 * HIDDEN - 1)
        assert fault(session.receive(ME, *step(0, 0)))[1] is m.FaultKind.CLIENT


class TestFailures:
    @pytest.mark.parametrize("kind", [m.FaultKind.CLIENT, m.FaultKind.BUSY])
    def test_a_step_that_did_not_run_can_come_again(self, kind: m.FaultKind) -> None:
        session = opened()
        for number in range(4):
            session.receive(ME, *step(number, number))
        answer(session, 0)
        events = session.failed(1, kind, "no", 2.5)
        assert events[0] == Send(ME, m.Fault(kind, "no", SESSION, 1, 1, 2.5))
        assert events[1:] == [Withdraw((2, 3))]
        assert session.positions == (1,)
        assert session.receive(ME, *step(4, 4)) == []  # was under way
        assert [type(event) for number in (1, 2) for event in session.receive(ME, *step(number, number))] == [Run, Run]

    @pytest.mark.parametrize("kind", [m.FaultKind.INTERNAL, m.FaultKind.GONE])
    def test_a_step_that_broke_the_cache_ends_the_session(self, kind: m.FaultKind) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        session.receive(ME, *step(1, 1))
        assert session.failed(0, kind, "broke") == [Send(ME, m.Fault(kind, "broke", SESSION, 1, 0)), End()]
        assert answer(session, 1) == []
        assert session.failed(1, kind, "broke") == []
        assert fault(session.receive(ME, *step(2, 2)))[1] is m.FaultKind.GONE

    def test_only_running_steps_fail(self) -> None:
        with pytest.raises(LocalProtocolError, match="not running"):
            opened().failed(0, m.FaultKind.BUSY, "no")


class TestPeers:
    def test_strangers_learn_nothing(self) -> None:
        """Whoever is neither opener nor pusher hears what they would hear if there were no session."""
        session = opened()
        messages: list[m.Message] = [step(0, 0)[0], m.Attach(SESSION, 1), m.Rewire(SESSION, 9), OPEN]
        for message in messages:
            who, kind, _, reason = fault(session.receive(STRANGER, message))
            assert (who, kind, reason) == (STRANGER, m.FaultKind.GONE, "no such session here")
        assert session.receive(STRANGER, m.Close(SESSION)) == [Send(STRANGER, m.Closed(SESSION))]
        assert session.phase is ServerPhase.ATTACHED
        assert session.stale_frames == 5

    def test_what_no_client_sends_is_a_broken_protocol(self) -> None:
        with pytest.raises(RemoteProtocolError, match="Closed is not for a server"):
            opened().receive(ME, m.Closed(SESSION))

    def test_frames_of_other_sessions_are_not_brought_here(self) -> None:
        with pytest.raises(LocalProtocolError):
            opened().receive(ME, m.Close(SessionId(b"another session!")))

    def test_the_pusher_of_this_epoch_may_step_and_no_more(self) -> None:
        session = opened(dataclasses.replace(OPEN, push_from=BEFORE))
        assert isinstance(session.receive(BEFORE, *step(0, 0))[0], Run)
        assert answer(session, 0)[0].to == ME  # type: ignore[union-attr]
        assert fault(session.receive(BEFORE, m.Rewire(SESSION, 2)))[1] is m.FaultKind.GONE
        assert session.receive(ME, *step(1, 1)) != []  # the opener may replay and relay at any time

    def test_a_pushed_step_that_is_refused_is_told_to_both(self) -> None:
        session = opened(dataclasses.replace(OPEN, push_from=BEFORE))
        assert [(who, kind) for who, kind, _, _ in faults(session.receive(BEFORE, *step(0, 7)))] == [
            (BEFORE, m.FaultKind.CLIENT),
            (ME, m.FaultKind.CLIENT),
        ]


class TestEpochs:
    def test_rewire_names_new_neighbours(self) -> None:
        session = opened()
        rewire = m.Rewire(SESSION, 2, BEFORE, NEXT)
        confirmed = Send(ME, m.Attached(SESSION, 2, -1, (0,)))
        assert session.receive(ME, rewire) == [Bind(), Wired(2, BEFORE, NEXT), confirmed]
        assert session.receive(ME, rewire) == [Bind(), Wired(2, BEFORE, NEXT), confirmed]
        assert "wired otherwise" in fault(session.receive(ME, m.Rewire(SESSION, 2, NEXT)))[3]

    def test_a_server_that_wakes_from_a_freeze_changes_nothing(self) -> None:
        session = opened(dataclasses.replace(OPEN, push_from=BEFORE))
        session.receive(ME, m.Rewire(SESSION, 2, NEXT))
        assert fault(session.receive(BEFORE, *step(0, 0)))[3] == "no such session here"
        session.receive(ME, m.Rewire(SESSION, 3, BEFORE))
        who, kind, number, reason = fault(session.receive(BEFORE, *step(0, 0, epoch=1)))
        assert (who, kind, number, reason) == (BEFORE, m.FaultKind.GONE, 0, "epoch 1 of this session is over")
        assert session.positions == (0,)
        assert isinstance(session.receive(BEFORE, *step(0, 0, epoch=3))[0], Run)

    @pytest.mark.parametrize("message", [m.Attach(SESSION, 1), m.Rewire(SESSION, 1), OPEN, step(0, 0)[0]])
    def test_everything_old_is_over(self, message: m.Message) -> None:
        session = opened()
        session.receive(ME, m.Rewire(SESSION, 2))
        assert "epoch 1 of this session is over" in fault(session.receive(ME, message))[3]

    def test_answers_and_their_repeats_bear_the_epoch_of_the_day(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        session.receive(ME, m.Rewire(SESSION, 2))
        assert answer(session, 0)[0].message.epoch == 2  # type: ignore[union-attr]
        session.receive(ME, m.Rewire(SESSION, 3))
        assert session.receive(ME, *step(0, 0, epoch=3))[0].message.epoch == 3  # type: ignore[union-attr]

    def test_a_renumbered_session_counts_from_there(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0, 20))
        answer(session, 0, 20)
        events = session.receive(ME, m.Rewire(SESSION, 2, step=57))
        assert events[-1] == Send(ME, m.Attached(SESSION, 2, 0, (20,)))
        assert session.receive(ME, m.Rewire(SESSION, 2, step=57)) == events
        assert isinstance(session.receive(ME, *step(57, 20, epoch=2))[0], Run)
        assert "acknowledged already" in fault(session.receive(ME, *step(0, 0, 20, epoch=2)))[3]

    def test_what_ran_under_old_ids_is_no_news(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        session.receive(ME, *step(1, 1))
        session.receive(ME, m.Rewire(SESSION, 2, step=0))
        assert isinstance(session.receive(ME, *step(0, 2, epoch=2))[0], Run)
        assert answer(session, 0) == []
        assert answer(session, 1) == []
        assert answer(session, 0)[0].message.positions == (3,)  # type: ignore[union-attr]

    def test_a_failure_under_old_ids_takes_the_ground_away(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        session.receive(ME, m.Rewire(SESSION, 2, step=5))
        assert session.failed(0, m.FaultKind.BUSY, "no")[-1] == End()


class TestPush:
    def test_outputs_go_to_the_next_hop_first_and_to_the_opener_as_history(self) -> None:
        session = opened(dataclasses.replace(OPEN, push_to=NEXT))
        (run,) = session.receive(ME, *step(0, 0, 3, tail=1))
        assert run.tail == -1  # type: ignore[union-attr]
        tensor = tensor_of(3, HIDDEN)
        out = b"\x07" * tensor.size
        pushed, history = session.answered(0, tensor, out)
        assert pushed == Send(NEXT, m.Step(SESSION, 1, 0, (0,), (3,), tensor, (), 1, -1), out)
        assert history == Send(ME, m.Answer(SESSION, 1, 0, (3,), tensor), out, Priority.BULK)

    def test_a_repeat_is_pushed_to_the_neighbour_of_the_day(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        answer(session, 0)
        session.receive(ME, m.Rewire(SESSION, 2, None, NEXT))
        pushed, history = session.receive(ME, *step(0, 0, epoch=2))
        assert (pushed.to, history.to) == (NEXT, ME)  # type: ignore[union-attr]
        assert pushed.message.epoch == 2  # type: ignore[union-attr]

    def test_an_output_that_was_cut_is_not_pushed(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0, 3, tail=1))
        session.receive(ME, m.Rewire(SESSION, 2, None, NEXT))
        assert [event.to for event in answer(session, 0, 1)] == [ME]  # type: ignore[union-attr]

    def test_where_the_next_hop_cannot_be_reached_the_opener_relays(self) -> None:
        session = opened(dataclasses.replace(OPEN, push_to=NEXT))
        assert session.unpushed() == [Send(ME, m.Unpushed(SESSION, 1))]
        assert session.unpushed() == []
        (run,) = session.receive(ME, *step(0, 0, 3, tail=1))
        assert run.tail == -1  # type: ignore[union-attr]
        assert [event.to for event in answer(session, 0, 3)] == [ME]  # type: ignore[union-attr]

    def test_pushing_goes_on_while_the_opener_is_away(self) -> None:
        session = opened(dataclasses.replace(OPEN, push_from=BEFORE, push_to=NEXT))
        session.lost(0.0)
        assert isinstance(session.receive(BEFORE, *step(0, 0))[0], Run)
        assert [event.to for event in answer(session, 0)] == [NEXT]  # type: ignore[union-attr]


class TestStreams:
    def test_a_lost_opener_has_a_while_to_come_back(self) -> None:
        session = opened(linger_s=30.0)
        assert not session.expired(1e9)
        session.lost(100.0)
        assert session.deadline == 130.0
        assert not session.expired(129.9)
        assert session.expired(130.0)
        session.receive(ME, m.Attach(SESSION, 1))
        assert session.deadline is None
        assert not session.expired(1e9)

    def test_answers_wait_for_the_opener(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        session.receive(ME, *step(1, 1))
        session.lost(0.0)
        assert answer(session, 0) == []
        assert session.receive(ME, m.Attach(SESSION, 1)) == [Bind(), Send(ME, m.Attached(SESSION, 1, 0, (1,)))]
        assert len(session.receive(ME, *step(0, 0))) == 1  # repeated
        assert session.receive(ME, *step(1, 1)) == []  # runs
        assert len(answer(session, 1)) == 1

    def test_the_opener_attaches_before_it_steps(self) -> None:
        session = opened()
        session.lost(0.0)
        assert "attach before you step" in fault(session.receive(ME, *step(0, 0)))[3]

    def test_rewire_attaches_as_well(self) -> None:
        session = opened()
        session.lost(0.0)
        assert session.receive(ME, m.Rewire(SESSION, 2))[0] == Bind()
        assert session.phase is ServerPhase.ATTACHED

    def test_an_epoch_that_has_not_begun_cannot_be_attached_to(self) -> None:
        assert "has not begun" in fault(opened().receive(ME, m.Attach(SESSION, 2)))[3]

    def test_an_open_that_came_twice_is_answered_twice(self) -> None:
        session = opened()
        session.lost(0.0)
        assert session.receive(ME, OPEN) == [Bind(), Send(ME, m.Opened(SESSION, 1, "class"))]

    def test_another_open_of_the_same_epoch_is_refused(self) -> None:
        session = opened()
        other = dataclasses.replace(OPEN, max_length=5)
        assert "already open" in fault(session.receive(ME, other))[3]
        session.receive(ME, *step(0, 0))
        assert "already open" in fault(session.receive(ME, OPEN))[3]

    def test_an_open_of_a_newer_epoch_makes_room_for_itself(self) -> None:
        assert opened().receive(ME, dataclasses.replace(OPEN, epoch=2, span=Span(1, 3))) == [End()]

    def test_close_is_the_end(self) -> None:
        session = opened()
        session.receive(ME, *step(0, 0))
        assert session.receive(ME, m.Close(SESSION)) == [Send(ME, m.Closed(SESSION)), End()]
        assert answer(session, 0) == []
        assert session.receive(ME, m.Close(SESSION)) == [Send(ME, m.Closed(SESSION))]
        assert session.end() == []
        session.lost(0.0)
        assert session.deadline is None

    def test_the_server_may_end_it(self) -> None:
        session = opened()
        assert session.end(reason="idle") == [Send(ME, m.Fault(m.FaultKind.GONE, "idle", SESSION, 1)), End()]
        silent = opened()
        silent.lost(0.0)
        assert silent.end() == [End()]
