"""How calls end, one case at a time. Over any sequence of events: test_pool_and_calls.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast
from unittest import mock

import pytest

from manager.core.call import Answer, Call, OutcomeKind
from manager.core.calls import CallTable
from manager.core.members import Member
from manager.core.roster import Roster
from manager.payloads.blobs import CAN_SHARE, Blob, Payload, view_of
from manager.reducing.schema import decode_schema, encode_schema
from manager.reducing.shares import Folded, Group, Partial, Reduction
from protos import stream_pb2
from protos.messages import failure, result
from tests.manager.support import make_member

RESULT = result(payload=b"42").SerializeToString()
FAILURE = failure(stream_pb2.Failure.UNSPECIFIED, "no").SerializeToString()
EMPTY = b""


def make_members(count: int, *, accepts_cancel: bool = False) -> list[Member]:
    return [make_member(key, accepts_cancel=accepts_cancel) for key in range(1, count + 1)]


def kinds(call: Call) -> list[OutcomeKind | None]:
    return [None if outcome is None else outcome[0] for outcome in call.outcomes]


def take_sends(table: CallTable) -> list[tuple[Member, int, Payload]]:
    """Who is sent what since the last time, one by one."""
    sends, table.sends = table.sends, []
    return [(member, send.tag, send.payload) for send in sends for member in send.members]


def answer(table: CallTable, member: Member, tag: int, said: Payload | None) -> None:
    table.answered([(member, tag, said)])


def start(
    table: CallTable,
    members: Sequence[Member],
    payloads: Sequence[bytes] = (b"go",),
    *,
    deadline: float | None = None,
    quorum: int | None = None,
) -> Call:
    return table.start(members, payloads, deadline=deadline, quorum=quorum)


def reduce(table: CallTable, members: Sequence[Member], *, quorum: int | None = None) -> Call:
    return table.start(members, [b"go"], quorum=quorum, stream=True, reduction=Reduction("mean"))


def fold(table: CallTable, call: Call, *members: Member, size: int = 10, part: int = 1) -> None:
    """The results of these, who are all of one worker, have been folded in there."""
    by_session = {member.session: member for member in members}
    table.folded(members[0].worker, Folded(call.id, part, list(by_session), size, tag=0), by_session)


def fold_all(
    table: CallTable, call: Call, tag: int, *listed: Member, worker: int = 0, size: int = 10
) -> None:
    """The results of these have been folded in at this worker, and of all others there that were sent the
    broadcast with this tag.
    """
    by_session = {member.session: member for member in call.members if member.worker == worker}
    sessions = [member.session for member in listed]
    table.folded(worker, Folded(call.id, 1, sessions, size, tag), by_session)


def partial(
    table: CallTable,
    call: Call,
    worker: int,
    *groups: Group,
    closed: bool = False,
    part: int = 1,
    error: str = "",
) -> None:
    """What has been folded in at this worker has come to this."""
    table.partial(worker, Partial(call.id, part, groups, closed, error))


def lose(table: CallTable, member: Member) -> None:
    member.gone = True
    table.lost(member)


# Sending


def test_one_instruction_goes_to_all() -> None:
    table, members = CallTable(), make_members(3)
    start(table, members, [b"same"])
    assert [(member, payload) for member, _, payload in take_sends(table)] == [
        (member, b"same") for member in members
    ]


def test_a_broadcast_is_one_send_with_one_tag() -> None:
    table, members = CallTable(first_tag=7), make_members(3)
    call = start(table, members, [b"same"])
    (send,) = table.sends
    assert (send.tag, send.payload, send.call) == (7, b"same", None)
    assert list(send.members) == members
    assert [(member.tag, member.call, member.index) for member in members] == [
        (7, call, 0),
        (7, call, 1),
        (7, call, 2),
    ]


def test_a_broadcast_to_all_is_sent_to_the_very_roster_it_was_started_with() -> None:
    table, roster = CallTable(), Roster(make_members(3))
    for number in range(2):  # so that what is worked out of it serves the next one, too
        call = start(table, roster)
        assert call.members is roster
        assert table.sends[number].members is roster
        for member in roster:
            answer(table, member, member.tag, RESULT)


def test_a_broadcast_and_a_reducing_call_make_a_roster_if_they_get_none() -> None:
    table, members = CallTable(), make_members(3)
    broadcast = start(table, members[:2])
    reducing = reduce(table, members[2:])
    assert isinstance(broadcast.members, Roster)
    assert isinstance(reducing.members, Roster)
    assert table.sends[0].members is broadcast.members
    members.clear()
    assert [len(broadcast.members), len(reducing.members)] == [2, 1]


def test_those_at_work_get_a_broadcast_later_with_tags_of_their_own() -> None:
    table, members = CallTable(), make_members(4)
    start(table, members[:2], [b"a", b"b"])
    take_sends(table)
    call = start(table, members, [b"same"])
    (send,) = table.sends
    assert send.members is not call.members, "what is known of all is not so of these"
    assert send.members == members[2:]
    ((first, tag, _), (second, other_tag, _)) = take_sends(table)
    assert (first, second, tag) == (members[2], members[3], other_tag)
    for member in members[:2]:
        answer(table, member, member.tag, RESULT)
    assert [(send.members, send.payload) for send in table.sends] == [
        ((members[0],), b"same"),
        ((members[1],), b"same"),
    ]
    assert len({tag, *(send.tag for send in table.sends)}) == 3
    for member in members:
        answer(table, member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT] * 4


def test_each_gets_its_own_instruction() -> None:
    table, members = CallTable(), make_members(3)
    start(table, members, [b"a", b"b", b"c"])
    assert [(member, payload) for member, _, payload in take_sends(table)] == list(
        zip(members, [b"a", b"b", b"c"], strict=True)
    )


@pytest.mark.parametrize("payloads", [[], [b"a", b"b"], [b"a"] * 4])
def test_the_instructions_must_fit_the_participants(payloads: list[bytes]) -> None:
    table = CallTable()
    with pytest.raises(ValueError, match=f"{len(payloads)} instructions for 3 participants"):
        start(table, make_members(3), payloads)
    assert len(table) == 0
    assert table.sends == []


def test_tags_are_never_used_again_and_begin_where_told() -> None:
    table, (member,) = CallTable(first_tag=(9 << 32) + 1), make_members(1)
    for _ in range(3):
        start(table, [member])
        answer(table, member, member.tag, RESULT)
    assert [send.tag for send in table.sends] == [(9 << 32) + 1, (9 << 32) + 2, (9 << 32) + 3]


def test_further_instructions_wait_their_turn_in_order() -> None:
    table, (member,) = CallTable(), make_members(1)
    calls = [start(table, [member], [b"%d" % number]) for number in range(3)]
    for number, call in enumerate(calls):
        ((_, tag, payload),) = take_sends(table)
        assert payload == b"%d" % number
        answer(table, member, tag, RESULT)
        assert kinds(call) == [OutcomeKind.RESULT]
    assert take_sends(table) == []
    assert table.finished == calls


def test_a_participant_named_twice_works_twice() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member, member], [b"a", b"b"])
    for payload in (b"a", b"b"):
        ((_, tag, sent),) = take_sends(table)
        assert sent == payload
        answer(table, member, tag, result(payload=payload).SerializeToString())
    assert call.outcomes == [
        (OutcomeKind.RESULT, result(payload=b"a").SerializeToString()),
        (OutcomeKind.RESULT, result(payload=b"b").SerializeToString()),
    ]


def test_a_call_to_nobody_is_finished_at_once() -> None:
    table = CallTable()
    call = start(table, [], deadline=1.0)
    assert table.finished == [call]
    assert call.outcomes == []
    assert table.next_deadline is None


def test_those_who_are_gone_are_lost_at_once() -> None:
    table, members = CallTable(), make_members(2)
    members[0].gone = True
    call = start(table, members)
    assert kinds(call) == [OutcomeKind.LOST, None]
    assert [send.members for send in table.sends] == [[members[1]]]
    assert [member for member, _, _ in take_sends(table)] == [members[1]]
    everybody_gone = start(table, [members[0]])
    nobody_left = start(table, Roster([members[0], members[0]]))
    assert table.finished == [everybody_gone, nobody_left]
    assert table.sends == []


# Standing in line


def test_whoever_has_nothing_in_line_has_no_line() -> None:
    table, (member,) = CallTable(), make_members(1)
    assert member.queue is None
    assert not member.step_back(start(table, [member]), 0)
    assert member.queue is None


def test_only_what_is_in_line_can_step_back() -> None:
    table, (member,) = CallTable(), make_members(1)
    start(table, [member])
    twice, other = start(table, [member, member], [b"a", b"b"]), start(table, [member])
    assert member.queue is not None
    assert list(member.queue) == [(twice, 0), (twice, 1), (other, 0)]
    assert member.step_back(twice, 1)
    assert not member.step_back(twice, 1)
    assert list(member.queue) == [(twice, 0), (other, 0)]


# Answers


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (RESULT, OutcomeKind.RESULT),
        (FAILURE, OutcomeKind.FAILURE),
        (memoryview(FAILURE), OutcomeKind.FAILURE),
        (memoryview(RESULT), OutcomeKind.RESULT),
        (EMPTY, OutcomeKind.RESULT),
        (memoryview(b""), OutcomeKind.RESULT),
        pytest.param(
            Blob.of(RESULT) if CAN_SHARE else RESULT,
            OutcomeKind.RESULT,
            marks=pytest.mark.skipif(not CAN_SHARE, reason="needs memory that can be shared"),
        ),
    ],
)
def test_an_answer_is_a_result_or_a_failure(said: Payload, kind: OutcomeKind) -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    answer(table, member, member.tag, said)
    assert call.outcomes == [(kind, said)]
    assert table.counters[kind] == 1
    assert not member.busy


def test_an_answer_that_is_gone_is_lost() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    answer(table, member, member.tag, None)
    assert call.outcomes == [(OutcomeKind.LOST, b"")]
    assert not member.busy


def test_a_report_has_the_answers_of_many_and_of_some_who_are_gone() -> None:
    table, members = CallTable(), make_members(3)
    call = start(table, members)
    following = start(table, members[:1], [b"following"])
    take_sends(table)
    table.answered([(members[0], 1, RESULT), (None, 1, RESULT), (members[2], 1, FAILURE)])
    assert kinds(call) == [OutcomeKind.RESULT, None, OutcomeKind.FAILURE]
    assert [(member, payload) for member, _, payload in take_sends(table)] == [(members[0], b"following")]
    assert kinds(following) == [None]
    assert table.late == 0


def test_an_answer_of_an_earlier_life_is_counted_and_dropped() -> None:
    table, (member,) = CallTable(first_tag=100), make_members(1)
    call = start(table, [member])
    answer(table, member, 7, RESULT)
    assert table.late == 1
    assert kinds(call) == [None]
    assert member.busy


@pytest.mark.parametrize("tag", [0, 1, 2])
def test_an_answer_that_nobody_asked_for_is_counted_and_dropped(tag: int) -> None:
    table, (member,) = CallTable(), make_members(1)
    answer(table, member, tag, RESULT)
    assert table.late == 1
    assert not member.busy
    assert table.sends == []


def test_the_same_answer_twice_counts_once() -> None:
    table, (member,) = CallTable(), make_members(1)
    first = start(table, [member])
    second = start(table, [member])
    tag = member.tag
    answer(table, member, tag, RESULT)
    answer(table, member, tag, RESULT)
    assert kinds(first) == [OutcomeKind.RESULT]
    assert kinds(second) == [None]
    assert table.late == 1


def test_outcomes_are_streamed_only_for_calls_that_want_it() -> None:
    table, members = CallTable(), make_members(2)
    table.start([members[0]], [b"go"])
    streaming = table.start([members[1]], [b"go"], waiter="me", stream=True)
    for member in members:
        answer(table, member, member.tag, RESULT)
    assert table.settled == [(streaming, 0)]
    assert streaming.waiter == "me"
    assert len(table.finished) == 2


# Giving up


@pytest.mark.parametrize("kind", [OutcomeKind.TIMED_OUT, OutcomeKind.CANCELLED])
def test_a_late_answer_is_never_taken_for_the_next_one(kind: OutcomeKind) -> None:
    table, (member,) = CallTable(), make_members(1)
    first = start(table, [member], [b"first"])
    ((_, first_tag, _),) = take_sends(table)
    table.give_up(first, kind)
    assert kinds(first) == [kind]
    assert member.busy
    second = start(table, [member], [b"second"])
    assert take_sends(table) == []  # the device still works on the first
    answer(table, member, first_tag, result(payload=b"late").SerializeToString())
    assert table.late == 1
    ((_, second_tag, _),) = take_sends(table)
    answer(table, member, second_tag, RESULT)
    assert second.outcomes == [(OutcomeKind.RESULT, RESULT)]
    assert kinds(first) == [kind]


def test_what_still_waits_in_line_is_never_sent() -> None:
    table, (member,) = CallTable(), make_members(1)
    start(table, [member], [b"first"])
    second = start(table, [member], [b"second"])
    third = start(table, [member], [b"third"])
    table.give_up(second, OutcomeKind.CANCELLED)
    take_sends(table)
    answer(table, member, member.tag, RESULT)
    ((_, _, payload),) = take_sends(table)
    assert payload == b"third"
    assert kinds(third) == [None]


@pytest.mark.parametrize("accepts_cancel", [False, True])
def test_only_those_who_accept_it_and_work_on_it_are_told_to_stop(accepts_cancel: bool) -> None:
    table, (member,) = CallTable(), make_members(1, accepts_cancel=accepts_cancel)
    first, second = start(table, [member]), start(table, [member])
    table.give_up(second, OutcomeKind.CANCELLED)
    assert table.cancels == []
    tag = member.tag
    table.give_up(first, OutcomeKind.CANCELLED)
    assert table.cancels == ([(member, tag)] if accepts_cancel else [])
    assert member.busy  # it still owes an answer


def test_giving_up_a_finished_call_does_nothing() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    answer(table, member, member.tag, RESULT)
    start(table, [member])
    table.give_up(call, OutcomeKind.CANCELLED)
    assert kinds(call) == [OutcomeKind.RESULT]
    assert table.cancels == []
    assert table.finished == [call]


def test_giving_up_twice_changes_nothing() -> None:
    table, members = CallTable(), make_members(2)
    call = start(table, members)
    table.give_up(call, OutcomeKind.TIMED_OUT)
    table.give_up(call, OutcomeKind.CANCELLED)
    assert kinds(call) == [OutcomeKind.TIMED_OUT] * 2
    assert table.finished == [call]


# Quorum


def test_a_quorum_of_results_cancels_the_rest() -> None:
    table, members = CallTable(), make_members(4)
    call = start(table, members, quorum=2)
    answer(table, members[2], members[2].tag, RESULT)
    answer(table, members[0], members[0].tag, FAILURE)
    assert call.pending == 2  # a failure does not count towards it
    answer(table, members[3], members[3].tag, RESULT)
    assert kinds(call) == [
        OutcomeKind.FAILURE,
        OutcomeKind.CANCELLED,
        OutcomeKind.RESULT,
        OutcomeKind.RESULT,
    ]
    assert table.finished == [call]


def test_a_quorum_that_the_last_answer_fills_cancels_nobody() -> None:
    table, members = CallTable(), make_members(2)
    call = start(table, members, quorum=2)
    for member in members:
        answer(table, member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT] * 2
    assert call.results == 2
    assert table.finished == [call]


def test_a_quorum_out_of_reach_ends_when_everybody_has_ended() -> None:
    table, members = CallTable(), make_members(3)
    call = start(table, members, quorum=3)
    lose(table, members[0])
    answer(table, members[1], members[1].tag, RESULT)
    assert table.finished == []
    answer(table, members[2], members[2].tag, RESULT)
    assert kinds(call) == [OutcomeKind.LOST, OutcomeKind.RESULT, OutcomeKind.RESULT]


def test_a_quorum_frees_the_place_in_line_of_the_same_participant() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member, member], quorum=1)
    after = start(table, [member], [b"after"])
    take_sends(table)
    answer(table, member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.CANCELLED]
    ((_, _, payload),) = take_sends(table)
    assert payload == b"after"
    assert kinds(after) == [None]


# Losing


def test_everything_of_a_lost_participant_is_lost() -> None:
    table, members = CallTable(), make_members(2)
    first, second = start(table, members), start(table, members)
    lose(table, members[0])
    assert kinds(first) == kinds(second) == [OutcomeKind.LOST, None]
    assert not members[0].busy
    assert not members[0].queue
    answer(table, members[0], 1, RESULT)
    assert table.late == 1
    assert kinds(first) == [OutcomeKind.LOST, None]


def test_a_call_that_was_given_up_is_not_lost_as_well() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    table.give_up(call, OutcomeKind.TIMED_OUT)
    lose(table, member)
    assert kinds(call) == [OutcomeKind.TIMED_OUT]
    assert table.counters[OutcomeKind.LOST] == 0


# What a worker finds


def test_an_instruction_that_a_worker_does_not_know_of_is_lost() -> None:
    table, (member,) = CallTable(), make_members(1)
    call, following = start(table, [member]), start(table, [member], [b"following"])
    take_sends(table)
    table.found(member, 0)
    assert kinds(call) == [OutcomeKind.LOST]
    ((_, _, payload),) = take_sends(table)
    assert payload == b"following"
    assert kinds(following) == [None]


def test_an_instruction_that_a_worker_knows_of_goes_on() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    table.found(member, member.tag)
    answer(table, member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT]


def test_the_work_of_an_earlier_life_is_waited_for() -> None:
    table, (member,) = CallTable(first_tag=100), make_members(1)
    table.found(member, 7)
    assert member.busy
    call = start(table, [member])
    assert table.sends == []
    answer(table, member, 7, RESULT)
    assert table.late == 1
    answer(table, member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT]


def test_other_work_than_expected_loses_what_was_expected() -> None:
    table, (member,) = CallTable(), make_members(1)
    call, following = start(table, [member]), start(table, [member])
    take_sends(table)
    table.found(member, 77)
    assert kinds(call) == [OutcomeKind.LOST]
    assert take_sends(table) == []
    answer(table, member, 77, RESULT)
    assert len(take_sends(table)) == 1
    assert kinds(following) == [None]


def test_an_instruction_of_a_batch_that_a_worker_has_forgotten_is_lost_though_its_answer_will_come() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = reduce(table, [member])
    tag = member.tag
    table.worker_lost(0)
    table.found(member, tag)
    assert kinds(call) == [OutcomeKind.LOST]
    assert member.busy
    answer(table, member, tag, RESULT)
    assert table.late == 1
    assert not member.busy


# Reducing


SCHEMA = encode_schema((("w", (2,), "float32"),))
OTHER_SCHEMA = encode_schema((("w", (3,), "float32"),))


def test_who_is_folded_is_idle_but_counts_only_once_the_partial_is_here() -> None:
    table, members = CallTable(), make_members(2)
    call = reduce(table, members)
    assert [send.call for send in table.sends] == [call]
    fold(table, call, *members)
    assert not any(member.busy for member in members)
    assert kinds(call) == [None, None]
    assert (call.answered, call.bytes) == (2, 10)
    assert table.advanced == [(call, 2, 10)]
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    assert call.outcomes == [(OutcomeKind.RESULT, b"")] * 2
    assert call.states == [b"state"]
    assert table.finished == [call]


def test_the_next_instruction_of_who_is_folded_is_sent() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = reduce(table, [member])
    start(table, [member], [b"following"])
    take_sends(table)
    fold(table, call, member)
    assert [payload for _, _, payload in take_sends(table)] == [b"following"]


def test_everybody_who_works_on_a_broadcast_is_folded_by_its_tag() -> None:
    table, members = CallTable(first_tag=7), make_members(3)
    call = reduce(table, members)
    fold_all(table, call, 7, size=30)
    assert not any(member.busy or member.call for member in members)
    assert kinds(call) == [None] * 3
    assert (call.answered, call.bytes) == (3, 30)
    assert table.advanced == [(call, 3, 30)]
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    assert call.outcomes == [(OutcomeKind.RESULT, b"")] * 3
    assert call.states == [b"state"]
    assert table.finished == [call]


def test_only_those_at_the_worker_that_says_so_are_folded_by_a_tag() -> None:
    table = CallTable()
    members = [make_member(key, worker=key % 2) for key in range(1, 6)]
    call = reduce(table, members)
    fold_all(table, call, members[0].tag, worker=1)
    assert [member.busy for member in members] == [False, True, False, True, False]
    partial(table, call, 1, Group(SCHEMA, [], b"odd"))
    assert kinds(call) == [None] * 5
    fold_all(table, call, members[1].tag, worker=3)  # which has nobody
    assert call.answered == 3
    fold_all(table, call, members[1].tag, worker=0)
    assert table.advanced == [(call, 3, 10), (call, 0, 10), (call, 2, 10)]
    partial(table, call, 0, Group(SCHEMA, [], b"even"))
    assert kinds(call) == [OutcomeKind.RESULT] * 5
    assert call.states == [b"odd", b"even"]


@pytest.mark.parametrize("who", [0, 1, 2])
def test_who_failed_before_is_not_folded_by_a_tag(who: int) -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    tag = members[who].tag
    answer(table, members[who], tag, FAILURE)
    fold_all(table, call, tag)
    assert call.answered == 2
    assert not any(member.busy for member in members)
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    expected = [OutcomeKind.RESULT] * 3
    expected[who] = OutcomeKind.FAILURE
    assert kinds(call) == expected
    assert table.late == 0


@pytest.mark.parametrize("who", [0, 1, 2])
def test_who_ended_before_is_not_folded_by_a_tag(who: int) -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    tag = members[who].tag
    lose(table, members[who])
    fold_all(table, call, tag)
    assert call.answered == 2
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    expected = [OutcomeKind.RESULT] * 3
    expected[who] = OutcomeKind.LOST
    assert kinds(call) == expected


def test_the_next_instructions_of_those_folded_by_a_tag_are_sent() -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    tag = members[0].tag
    following = start(table, members[:2], [b"following"])
    again = reduce(table, members[1:2])
    take_sends(table)
    fold_all(table, call, tag)
    sent = take_sends(table)
    assert [(member, payload) for member, _, payload in sent] == [
        (members[0], b"following"),
        (members[1], b"following"),
    ]
    assert [member.tag for member in members] == [sent[0][1], sent[1][1], 0]
    assert len({tag, sent[0][1], sent[1][1]}) == 3
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    assert kinds(call) == [OutcomeKind.RESULT] * 3
    assert kinds(following) == [None, None]
    assert kinds(again) == [None]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_who_is_listed_as_folded_is_not_folded_again_by_a_tag(who: int, at_once: bool) -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    tag = members[who].tag
    following = start(table, members[who : who + 1], [b"following"])
    take_sends(table)
    if not at_once:
        fold(table, call, members[who])
    fold_all(table, call, tag, *(members[who : who + 1] if at_once else []))
    assert call.answered == 3
    assert [(member, payload) for member, _, payload in take_sends(table)] == [(members[who], b"following")]
    assert members[who].call is following
    assert [member.busy for member in members] == [index == who for index in range(3)]
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    assert kinds(call) == [OutcomeKind.RESULT] * 3
    assert kinds(following) == [None]
    assert table.late == 0


def test_those_who_were_sent_it_later_are_not_folded_by_the_tag_of_the_others() -> None:
    table, members = CallTable(), make_members(3)
    before = start(table, members[1:2])
    call = reduce(table, members)
    tag = members[0].tag
    answer(table, members[1], members[1].tag, RESULT)
    assert kinds(before) == [OutcomeKind.RESULT]
    fold_all(table, call, tag)
    assert [member.busy for member in members] == [False, True, False]
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    assert kinds(call) == [None] * 3
    fold_all(table, call, members[1].tag)
    assert call.answered == 3
    partial(table, call, 0, Group(SCHEMA, [], b"later"))
    assert kinds(call) == [OutcomeKind.RESULT] * 3
    assert call.states == [b"state", b"later"]


def test_a_tag_that_nobody_works_on_folds_nobody() -> None:
    table, members = CallTable(first_tag=7), make_members(2)
    call, other = reduce(table, members), start(table, members)
    fold_all(table, call, 6)
    assert call.answered == 0
    fold_all(table, call, 7)
    fold_all(table, call, 7)
    assert call.answered == 2
    assert [member.call for member in members] == [other, other]
    fold_all(table, call, members[0].tag)  # that of another call
    assert call.answered == 2
    assert [member.call for member in members] == [other, other]


def test_a_quorum_may_be_reached_by_those_folded_by_a_tag() -> None:
    table = CallTable()
    members = [make_member(1, worker=0), make_member(2, worker=0), make_member(3, worker=1)]
    call = reduce(table, members, quorum=2)
    fold_all(table, call, members[0].tag)
    assert table.closes == [(0, call), (1, call)]
    partial(table, call, 0, Group(SCHEMA, [], b"state"), closed=True)
    partial(table, call, 1, closed=True)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.RESULT, OutcomeKind.CANCELLED]


def test_those_folded_by_a_tag_are_lost_with_their_worker_until_the_partial_is_there() -> None:
    table, members = CallTable(), make_members(2)
    call = reduce(table, members)
    fold_all(table, call, members[0].tag)
    for member in members:
        lose(table, member)
    assert kinds(call) == [None, None]
    table.worker_lost(0)
    assert kinds(call) == [OutcomeKind.LOST] * 2


def test_what_is_worked_out_of_a_roster_is_the_same_after_a_call() -> None:
    table = CallTable()
    roster = Roster([make_member(key, worker=key % 2) for key in range(6)])
    shares = {worker: (list(indices), list(members)) for worker, (indices, members) in roster.shares.items()}
    for _ in range(2):
        call = reduce(table, roster)
        fold(table, call, roster[2])
        for worker in (0, 1):
            fold_all(table, call, roster[0].tag or roster[1].tag, worker=worker)
        others = Group(OTHER_SCHEMA, [roster[4].session], b"other")
        partial(table, call, 0, Group(SCHEMA, [], b"state"), others)
        partial(table, call, 1, Group(SCHEMA, [], None))
        lost = OutcomeKind.LOST
        assert kinds(call) == [OutcomeKind.RESULT, lost, OutcomeKind.RESULT, lost, OutcomeKind.FAILURE, lost]
        assert roster.shares == shares


def test_what_a_worker_had_folded_when_it_ended_is_lost() -> None:
    table = CallTable()
    members = [make_member(1, worker=0), make_member(2, worker=0), make_member(3, worker=1)]
    call = reduce(table, members)
    fold(table, call, members[0])
    fold(table, call, members[2])
    lose(table, members[0])  # folded: its own end costs nothing
    lose(table, members[1])
    assert kinds(call) == [None, OutcomeKind.LOST, None]
    table.worker_lost(0)
    assert kinds(call) == [OutcomeKind.LOST, OutcomeKind.LOST, None]
    partial(table, call, 1, Group(SCHEMA, [], b"state"))
    assert kinds(call) == [OutcomeKind.LOST, OutcomeKind.LOST, OutcomeKind.RESULT]
    assert call.states == [b"state"]


def test_results_that_have_other_tensors_than_most_are_failures() -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    fold(table, call, *members)
    groups = [Group(OTHER_SCHEMA, [members[1].session], b"other"), Group(SCHEMA, [1, 3], b"state")]
    partial(table, call, 0, *groups)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.FAILURE, OutcomeKind.RESULT]
    assert call.states == [b"state"]


def test_how_tensors_differ_is_worked_out_once_for_all_who_sent_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There may be thousands of tensors, and as many participants, for all of whom others wait meanwhile."""
    decoded = mock.Mock(wraps=decode_schema)
    monkeypatch.setattr("manager.core.calls.decode_schema", decoded)
    table, members = CallTable(), make_members(100)
    call = reduce(table, members)
    fold(table, call, *members)
    kinds_of = {SCHEMA: members[:50], OTHER_SCHEMA: members[50:80], encode_schema(()): members[80:]}
    groups = [Group(kind, [m.session for m in those], b"state") for kind, those in kinds_of.items()]
    partial(table, call, 0, *groups)
    texts = [
        stream_pb2.ParticipantMessage.FromString(cast(bytes, answer)).failure.text
        for _, answer in cast(list[Answer], call.outcomes)
    ]
    assert (texts[0], texts[49]) == ("", "")
    assert set(texts[50:80]) == {"tensor 'w' has shape (3,) where most have (2,)"}
    assert set(texts[80:]) == {"tensor 'w' is missing"}
    assert decoded.call_count <= 2 * len(groups)


def test_who_does_not_answer_with_a_result_is_told_of_one_by_one() -> None:
    table, members = CallTable(), make_members(2)
    call = reduce(table, members)
    answer(table, members[0], members[0].tag, FAILURE)
    assert call.outcomes == [(OutcomeKind.FAILURE, FAILURE), None]
    fold(table, call, members[1])
    partial(table, call, 0, Group(SCHEMA, [], b"state"))
    assert kinds(call) == [OutcomeKind.FAILURE, OutcomeKind.RESULT]


def test_a_partial_with_an_error_makes_failures_of_those_who_were_folded() -> None:
    table = CallTable()
    members = [make_member(1, worker=0), make_member(2, worker=0), make_member(3, worker=1)]
    call = reduce(table, members)
    fold(table, call, members[0])
    partial(table, call, 0, error="the reducer failed")
    assert kinds(call) == [OutcomeKind.FAILURE, None, None]
    told = stream_pb2.ParticipantMessage.FromString(cast(bytes, cast(Answer, call.outcomes[0])[1]))
    assert told.failure.text == "the reducer failed"
    fold(table, call, members[1], part=2)
    fold(table, call, members[2])
    partial(table, call, 1, Group(SCHEMA, [], b"one"))
    partial(table, call, 0, Group(SCHEMA, [], b"zero"), part=2)
    assert kinds(call) == [OutcomeKind.FAILURE, OutcomeKind.RESULT, OutcomeKind.RESULT]
    assert call.states == [b"one", b"zero"]
    assert table.counters[OutcomeKind.FAILURE] == 1
    assert table.finished == [call]


def test_a_call_of_which_nothing_but_errors_comes_has_no_states() -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    fold_all(table, call, members[0].tag)
    partial(table, call, 0, error="the reducer failed")
    assert kinds(call) == [OutcomeKind.FAILURE] * 3
    assert list(call.states) == []
    assert (call.answered, call.failed) == (0, 3)
    assert table.finished == [call]


def test_an_error_may_be_what_a_call_that_was_given_up_is_told_last() -> None:
    table, members = CallTable(), make_members(2)
    call = reduce(table, members)
    fold(table, call, members[0])
    table.give_up(call, OutcomeKind.TIMED_OUT)
    partial(table, call, 0, closed=True, error="the reducer failed")
    assert kinds(call) == [OutcomeKind.FAILURE, OutcomeKind.TIMED_OUT]
    assert [member.busy for member in members] == [False, True]
    assert table.finished == [call]


def test_a_partial_covers_those_of_its_own_part_alone() -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members)
    fold(table, call, members[0], part=1)
    fold(table, call, members[1], part=2)
    partial(table, call, 0, Group(SCHEMA, [], b"first"), part=1)
    lose(table, members[2])
    assert kinds(call) == [None, None, OutcomeKind.LOST]
    partial(table, call, 0, Group(SCHEMA, [], b"second"), part=2)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.RESULT, OutcomeKind.LOST]
    assert call.states == [b"first", b"second"]


def test_progress_is_exact_once_a_call_has_ended() -> None:
    table, members = CallTable(), make_members(4)
    call = reduce(table, members)
    fold(table, call, *members[:3])
    assert (call.answered, call.failed) == (3, 0)
    lose(table, members[3])
    partial(table, call, 0, Group(SCHEMA, [], b"state"), Group(OTHER_SCHEMA, [members[1].session], b"other"))
    assert (call.answered, call.failed) == (2, 2)


def test_a_reducing_call_that_is_given_up_ends_with_the_last_partials() -> None:
    table = CallTable()
    members = [make_member(1, worker=0), make_member(2, worker=0), make_member(3, worker=4)]
    call = reduce(table, members)
    fold(table, call, members[0])
    table.give_up(call, OutcomeKind.TIMED_OUT)
    assert table.closes == [(0, call), (4, call)]
    assert kinds(call) == [None] * 3
    partial(table, call, 0, Group(SCHEMA, [], b"state"), closed=True)
    assert table.finished == []
    partial(table, call, 4, closed=True)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.TIMED_OUT, OutcomeKind.TIMED_OUT]
    assert call.states == [b"state"]
    assert [member.busy for member in members] == [False, True, True]
    answer(table, members[1], members[1].tag, EMPTY)
    assert table.late == 1
    assert table.finished == [call]


def test_a_quorum_of_folded_results_gives_the_rest_up() -> None:
    table, members = CallTable(), make_members(3)
    call = reduce(table, members, quorum=2)
    fold(table, call, members[0])
    assert table.closes == []
    fold(table, call, members[2])
    assert table.closes == [(0, call)]
    partial(table, call, 0, Group(SCHEMA, [], b"state"), closed=True)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.CANCELLED, OutcomeKind.RESULT]


def test_no_reducing_call_outlives_the_table() -> None:
    table, members = CallTable(), make_members(2)
    folded, given_up = reduce(table, members[:1]), reduce(table, members[1:])
    fold(table, folded, members[0])
    table.give_up(given_up, OutcomeKind.CANCELLED)
    for member in members:
        lose(table, member)
    table.close()
    assert kinds(folded) == kinds(given_up) == [OutcomeKind.LOST]
    assert len(table) == 0


# Deadlines


def test_a_call_times_out_at_its_deadline() -> None:
    table, members = CallTable(), make_members(2)
    call = start(table, members, deadline=5.0)
    answer(table, members[0], members[0].tag, RESULT)
    assert table.next_deadline == 5.0
    table.expire(4.999)
    assert kinds(call) == [OutcomeKind.RESULT, None]
    table.expire(5.0)
    assert kinds(call) == [OutcomeKind.RESULT, OutcomeKind.TIMED_OUT]
    assert table.next_deadline is None


def test_the_next_deadline_is_that_of_a_call_that_runs() -> None:
    table, members = CallTable(), make_members(2)
    start(table, members[:1], deadline=1.0)
    start(table, members[1:], deadline=2.0)
    answer(table, members[0], members[0].tag, RESULT)
    assert table.next_deadline == 2.0


def test_a_deadline_that_is_no_number_is_refused() -> None:
    # It would compare false with everything: at the top of the heap it would keep every other call from
    # timing out.
    table, members = CallTable(), make_members(2)
    with pytest.raises(ValueError, match="deadline"):
        start(table, members[:1], deadline=math.nan)
    assert len(table) == 0
    assert table.sends == []


def test_an_infinite_deadline_never_comes() -> None:
    table, members = CallTable(), make_members(2)
    forever, soon = start(table, members[:1], deadline=math.inf), start(table, members[1:], deadline=1.0)
    table.expire(1e300)
    assert kinds(forever) == [None]
    assert kinds(soon) == [OutcomeKind.TIMED_OUT]


def test_short_calls_with_long_deadlines_do_not_pile_up() -> None:
    table, members = CallTable(), make_members(10)
    start(table, members[:1], deadline=1e9)
    for number in range(5_000):
        member = members[1 + number % 9]
        start(table, [member], deadline=1e6 + number)
        answer(table, member, member.tag, RESULT)
        table.sends.clear()
        table.finished.clear()
    assert len(table._deadlines) < 100
    assert len(table) == 1


# Moves


def come_back(table: CallTable, member: Member, *, worker: int, session: int) -> None:
    member.seat(make_member(session, worker=worker))
    table.returned(member)


def test_what_is_asked_of_a_moving_member_waits_until_it_is_back() -> None:
    table, (member,) = CallTable(), make_members(1)
    table.moved(member)
    first, second = start(table, [member], [b"first"]), start(table, [member], [b"second"])
    assert table.sends == []
    come_back(table, member, worker=1, session=9)
    ((sent_to, tag, payload),) = take_sends(table)
    assert (sent_to, payload) == (member, b"first")
    answer(table, member, tag, RESULT)
    assert kinds(first) == [OutcomeKind.RESULT]
    assert [payload for _, _, payload in take_sends(table)] == [b"second"]
    assert kinds(second) == [None]


def test_what_crossed_a_move_is_sent_again_before_what_waited() -> None:
    table, (member,) = CallTable(), make_members(1)
    crossing, waiting = start(table, [member], [b"crossing"]), start(table, [member], [b"waiting"])
    ((_, old_tag, _),) = take_sends(table)
    table.moved(member)
    assert table.sends == []
    assert kinds(crossing) == kinds(waiting) == [None]
    come_back(table, member, worker=1, session=9)
    ((_, tag, payload),) = take_sends(table)
    assert payload == b"crossing"
    assert tag != old_tag
    answer(table, member, old_tag, RESULT)
    assert table.late == 1, "nobody can answer the instruction that was never given"
    assert kinds(crossing) == [None]


def test_what_crossed_and_was_given_up_is_not_sent_again() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    table.give_up(call, OutcomeKind.CANCELLED)
    table.sends.clear()
    table.moved(member)
    come_back(table, member, worker=1, session=9)
    assert table.sends == []
    assert not member.busy


def test_a_call_to_a_moving_member_can_be_given_up_or_time_out() -> None:
    table, (member,) = CallTable(), make_members(1, accepts_cancel=True)
    crossing, waiting = start(table, [member]), start(table, [member], deadline=5.0)
    table.sends.clear()
    table.moved(member)
    table.give_up(crossing, OutcomeKind.CANCELLED)
    table.expire(5.0)
    assert kinds(crossing) == [OutcomeKind.CANCELLED]
    assert kinds(waiting) == [OutcomeKind.TIMED_OUT]
    come_back(table, member, worker=1, session=9)
    assert table.sends == []
    assert table.cancels == [], "it is told to cancel what it never got"


def test_a_member_that_does_not_come_back_loses_what_waited_for_it() -> None:
    table, (member,) = CallTable(), make_members(1)
    crossing, waiting = start(table, [member]), start(table, [member])
    table.moved(member)
    member.gone = True
    table.lost(member)
    assert kinds(crossing) == kinds(waiting) == [OutcomeKind.LOST]
    assert not member.busy


def test_who_comes_back_at_work_on_something_else_gets_nothing_until_that_is_done() -> None:
    table, (member,) = CallTable(), make_members(1)
    table.moved(member)
    call = start(table, [member])
    member.seat(make_member(9, worker=1))
    table.returned(member, 77)
    assert table.sends == []
    answer(table, member, 77, RESULT)
    assert table.late == 1
    assert kinds(call) == [None]
    assert [sent_to for sent_to, _, _ in take_sends(table)] == [member]


def test_a_reducing_call_that_ends_while_its_instruction_crosses_ends_for_the_moved_member_too() -> None:
    table, members = CallTable(), make_members(2)
    call = reduce(table, members)
    fold(table, call, members[0])
    table.give_up(call, OutcomeKind.TIMED_OUT)
    table.moved(members[1])
    assert kinds(call) == [None, OutcomeKind.TIMED_OUT]
    assert not members[1].queue


def test_all_who_answered_are_found_on_the_worker_to_which_they_have_moved() -> None:
    """The worker says "all of this broadcast", of a member that the call's roster has on another worker."""
    table, (stays, moves) = CallTable(), make_members(2)
    call = reduce(table, [stays, moves])
    assert cast(Roster, call.members).shares.keys() == {0}, "worked out when the broadcast is sent"
    table.sends.clear()
    table.moved(moves)
    come_back(table, moves, worker=1, session=9)
    ((_, tag, _),) = take_sends(table)
    waiting = start(table, [moves], [b"next"])
    table.folded(1, Folded(call.id, 1, [], 10, tag), {9: moves})
    assert [payload for _, _, payload in take_sends(table)] == [b"next"]
    table.partial(1, Partial(call.id, 1, [Group(SCHEMA, [], b"one")], closed=False))
    table.folded(0, Folded(call.id, 1, [stays.session], 10, 0), {stays.session: stays})
    table.partial(0, Partial(call.id, 1, [Group(SCHEMA, [], b"the other")], closed=False))
    assert kinds(call) == [OutcomeKind.RESULT] * 2
    assert sorted(bytes(view_of(state)) for state in call.states) == [b"one", b"the other"]
    assert kinds(waiting) == [None]


def test_a_partial_names_who_has_moved_since_by_its_old_session() -> None:
    table, (moves, *others) = CallTable(), make_members(3)
    call = reduce(table, [moves, *others])
    there = {member.session: member for member in others}
    old = moves.session
    table.folded(0, Folded(call.id, 1, [old], 10, 0), {old: moves, **there})
    for worker, session in ((1, 9), (0, 10), (1, 11)):  # there and back again
        table.moved(moves)
        come_back(table, moves, worker=worker, session=session)
    table.folded(0, Folded(call.id, 1, list(there), 10, 0), there)
    groups = [Group(SCHEMA, [], b"of the others"), Group(OTHER_SCHEMA, [old], b"of who moved")]
    table.partial(0, Partial(call.id, 1, groups, closed=False))
    assert call.states == [b"of the others"]
    assert kinds(call) == [OutcomeKind.FAILURE, OutcomeKind.RESULT, OutcomeKind.RESULT]
    assert table._sessions == {}, "something was kept of a finished call"


def test_a_cohort_is_sent_to_where_its_members_are_now() -> None:
    table, members = CallTable(), make_members(3)
    roster = Roster(members)
    before = start(table, roster)
    assert set(cast(Roster, before.members).shares) == {0}
    for member, tag, _ in take_sends(table):
        answer(table, member, tag, RESULT)
    table.moved(members[1])
    come_back(table, members[1], worker=4, session=9)
    after = start(table, roster)
    assert cast(Roster, after.members).shares == {
        0: ([0, 2], [members[0], members[2]]),
        4: ([1], [members[1]]),
    }
    assert cast(Roster, before.members).shares.keys() == {0}, "a call keeps the roster that it began with"
