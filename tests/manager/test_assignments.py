"""What waits for one participant: in order, and not without end. Over any sequence of events:
test_pool_and_calls.py; what moves have to do with it: test_calls.py, too.
"""

from __future__ import annotations

import pytest

from manager.core.assignments import MAX_QUEUE
from manager.core.call import Call, OutcomeKind
from manager.core.calls import CallTable
from manager.core.members import MOVING, Member
from manager.payloads.blobs import view_of
from protos import stream_pb2
from protos.messages import result
from tests.manager.support import make_member

RESULT = result(payload=b"42").SerializeToString()


def kind(call: Call, index: int = 0) -> OutcomeKind | None:
    outcome = call.outcomes[index]
    return None if outcome is None else outcome[0]


def code(call: Call, index: int = 0) -> int:
    outcome = call.outcomes[index]
    assert outcome is not None
    return stream_pb2.ParticipantMessage.FromString(bytes(view_of(outcome[1]))).failure.code


def fill(table: CallTable, member: Member) -> list[Call]:
    """One instruction that it works on, unless it is moving, and as many as may wait."""
    count = MAX_QUEUE if member.moving else MAX_QUEUE + 1
    calls = [table.start([member], [b"%d" % number]) for number in range(count)]
    assert not any(kind(call) for call in calls)
    return calls


def answer_all(table: CallTable, member: Member) -> list[bytes]:
    """Answers until nothing more comes; returns what came, in order."""
    came = []
    while table.sends:
        (send,) = table.sends
        table.sends.clear()
        came.append(bytes(view_of(send.payload)))
        table.answered([(member, send.tag, RESULT)])
    return came


@pytest.mark.parametrize("moving", [False, True])
def test_a_thousand_wait_in_order_and_the_next_one_fails(moving: bool) -> None:
    table, member = CallTable(), make_member(1)
    if moving:
        table.moved(member)
    calls = fill(table, member)
    refused = table.start([member], [b"one too many"])
    assert kind(refused) is OutcomeKind.FAILURE
    assert code(refused) == stream_pb2.Failure.RESOURCE_EXHAUSTED
    assert refused in table.finished
    if moving:
        table.returned(member)
    assert answer_all(table, member) == [b"%d" % number for number in range(len(calls))]
    assert all(kind(call) is OutcomeKind.RESULT for call in calls)


def test_there_is_room_again_once_one_of_them_is_done() -> None:
    table, member = CallTable(), make_member(1)
    fill(table, member)
    table.answered([(member, member.tag, RESULT)])
    assert kind(table.start([member], [b"in the room"])) is None
    assert kind(table.start([member], [b"one too many"])) is OutcomeKind.FAILURE


def test_there_is_room_again_once_one_of_them_is_given_up() -> None:
    table, member = CallTable(), make_member(1)
    calls = fill(table, member)
    table.give_up(calls[500], OutcomeKind.CANCELLED)
    assert kind(table.start([member], [b"in the room"])) is None


@pytest.mark.parametrize("payloads", [[b"for all"], [b"for one", b"for the other"]])
def test_one_full_queue_is_nobody_elses_failure(payloads: list[bytes]) -> None:
    table, full, idle = CallTable(), make_member(1), make_member(2)
    fill(table, full)
    table.sends.clear()
    call = table.start([full, idle], payloads)
    assert [kind(call, 0), kind(call, 1)] == [OutcomeKind.FAILURE, None]
    assert [send.members for send in table.sends] in ([[idle]], [(idle,)])
    (send,) = table.sends
    table.answered([(idle, send.tag, RESULT)])
    assert kind(call, 1) is OutcomeKind.RESULT
    assert call in table.finished


def test_what_crossed_a_move_has_its_place_even_if_the_queue_is_full() -> None:
    table, member = CallTable(), make_member(1)
    calls = fill(table, member)
    table.sends.clear()
    table.moved(member)
    assert member.queue is not None
    assert len(member.queue) == MAX_QUEUE + 1
    assert kind(table.start([member], [b"one too many"])) is OutcomeKind.FAILURE
    table.returned(member)
    assert answer_all(table, member) == [b"%d" % number for number in range(len(calls))]


def test_a_moving_member_is_busy_and_idle_once_it_is_back() -> None:
    table, member = CallTable(), make_member(1)
    table.moved(member)
    assert (member.busy, member.moving, member.tag) == (True, True, MOVING)
    table.returned(member)
    assert (member.busy, member.moving) == (False, False)


def test_a_broadcast_goes_to_the_idle_and_waits_for_those_who_move() -> None:
    table, moving, idle = CallTable(), make_member(1), make_member(2)
    table.moved(moving)
    call = table.start([moving, idle], [b"go"])
    (send,) = table.sends
    assert list(send.members) == [idle]
    table.sends.clear()
    table.returned(moving)
    (again,) = table.sends
    assert list(again.members) == [moving]
    assert again.tag != send.tag
    assert call.pending == 2
