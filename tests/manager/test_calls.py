"""How calls end, one case at a time. Over any sequence of events: test_pool_and_calls.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from manager.calls import Call, CallTable, OutcomeKind, Payload
from manager.members import Member
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


def take_sends(table: CallTable) -> list[tuple[Member, int, bytes]]:
    sends, table.sends = table.sends, []
    return sends


def start(
    table: CallTable,
    members: Sequence[Member],
    payloads: Sequence[bytes] = (b"go",),
    *,
    deadline: float | None = None,
    quorum: int | None = None,
) -> Call:
    return table.start(members, payloads, deadline=deadline, quorum=quorum)


def lose(table: CallTable, member: Member) -> None:
    member.gone = True
    table.lost(member)


# Sending


def test_one_instruction_goes_to_all() -> None:
    table, members = CallTable(), make_members(3)
    start(table, members, [b"same"])
    assert [(member, payload) for member, _, payload in table.sends] == [
        (member, b"same") for member in members
    ]


def test_each_gets_its_own_instruction() -> None:
    table, members = CallTable(), make_members(3)
    start(table, members, [b"a", b"b", b"c"])
    assert [payload for _, _, payload in table.sends] == [b"a", b"b", b"c"]


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
        table.answered(member, member.tag, RESULT)
    assert [tag for _, tag, _ in table.sends] == [(9 << 32) + 1, (9 << 32) + 2, (9 << 32) + 3]


def test_further_instructions_wait_their_turn_in_order() -> None:
    table, (member,) = CallTable(), make_members(1)
    calls = [start(table, [member], [b"%d" % number]) for number in range(3)]
    for number, call in enumerate(calls):
        ((_, tag, payload),) = take_sends(table)
        assert payload == b"%d" % number
        table.answered(member, tag, RESULT)
        assert kinds(call) == [OutcomeKind.RESULT]
    assert take_sends(table) == []
    assert table.finished == calls


def test_a_participant_named_twice_works_twice() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member, member], [b"a", b"b"])
    for payload in (b"a", b"b"):
        ((_, tag, sent),) = take_sends(table)
        assert sent == payload
        table.answered(member, tag, result(payload=payload).SerializeToString())
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
    assert [member for member, _, _ in table.sends] == [members[1]]
    everybody_gone = start(table, [members[0]])
    assert table.finished == [everybody_gone]


# Answers


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (RESULT, OutcomeKind.RESULT),
        (FAILURE, OutcomeKind.FAILURE),
        (memoryview(FAILURE), OutcomeKind.FAILURE),
        (memoryview(RESULT), OutcomeKind.RESULT),
        (EMPTY, OutcomeKind.RESULT),
        (memoryview(b""), OutcomeKind.RESULT),
    ],
)
def test_an_answer_is_a_result_or_a_failure(answer: Payload, kind: OutcomeKind) -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member])
    table.answered(member, member.tag, answer)
    assert call.outcomes == [(kind, answer)]
    assert table.counters[kind] == 1
    assert not member.busy


def test_an_answer_of_an_earlier_life_is_counted_and_dropped() -> None:
    table, (member,) = CallTable(first_tag=100), make_members(1)
    call = start(table, [member])
    table.answered(member, 7, RESULT)
    assert table.late == 1
    assert kinds(call) == [None]
    assert member.busy


@pytest.mark.parametrize("tag", [0, 1, 2])
def test_an_answer_that_nobody_asked_for_is_counted_and_dropped(tag: int) -> None:
    table, (member,) = CallTable(), make_members(1)
    table.answered(member, tag, RESULT)
    assert table.late == 1
    assert not member.busy
    assert table.sends == []


def test_the_same_answer_twice_counts_once() -> None:
    table, (member,) = CallTable(), make_members(1)
    first = start(table, [member])
    second = start(table, [member])
    tag = member.tag
    table.answered(member, tag, RESULT)
    table.answered(member, tag, RESULT)
    assert kinds(first) == [OutcomeKind.RESULT]
    assert kinds(second) == [None]
    assert table.late == 1


def test_outcomes_are_streamed_only_for_calls_that_want_it() -> None:
    table, members = CallTable(), make_members(2)
    table.start([members[0]], [b"go"])
    streaming = table.start([members[1]], [b"go"], waiter="me", stream=True)
    for member in members:
        table.answered(member, member.tag, RESULT)
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
    table.answered(member, first_tag, result(payload=b"late").SerializeToString())
    assert table.late == 1
    ((_, second_tag, _),) = take_sends(table)
    table.answered(member, second_tag, RESULT)
    assert second.outcomes == [(OutcomeKind.RESULT, RESULT)]
    assert kinds(first) == [kind]


def test_what_still_waits_in_line_is_never_sent() -> None:
    table, (member,) = CallTable(), make_members(1)
    start(table, [member], [b"first"])
    second = start(table, [member], [b"second"])
    third = start(table, [member], [b"third"])
    table.give_up(second, OutcomeKind.CANCELLED)
    take_sends(table)
    table.answered(member, member.tag, RESULT)
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
    table.answered(member, member.tag, RESULT)
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
    table.answered(members[2], members[2].tag, RESULT)
    table.answered(members[0], members[0].tag, FAILURE)
    assert call.pending == 2  # a failure does not count towards it
    table.answered(members[3], members[3].tag, RESULT)
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
        table.answered(member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT] * 2
    assert call.results == 2
    assert table.finished == [call]


def test_a_quorum_out_of_reach_ends_when_everybody_has_ended() -> None:
    table, members = CallTable(), make_members(3)
    call = start(table, members, quorum=3)
    lose(table, members[0])
    table.answered(members[1], members[1].tag, RESULT)
    assert table.finished == []
    table.answered(members[2], members[2].tag, RESULT)
    assert kinds(call) == [OutcomeKind.LOST, OutcomeKind.RESULT, OutcomeKind.RESULT]


def test_a_quorum_frees_the_place_in_line_of_the_same_participant() -> None:
    table, (member,) = CallTable(), make_members(1)
    call = start(table, [member, member], quorum=1)
    after = start(table, [member], [b"after"])
    take_sends(table)
    table.answered(member, member.tag, RESULT)
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
    table.answered(members[0], 1, RESULT)
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
    table.answered(member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT]


def test_the_work_of_an_earlier_life_is_waited_for() -> None:
    table, (member,) = CallTable(first_tag=100), make_members(1)
    table.found(member, 7)
    assert member.busy
    call = start(table, [member])
    assert table.sends == []
    table.answered(member, 7, RESULT)
    assert table.late == 1
    table.answered(member, member.tag, RESULT)
    assert kinds(call) == [OutcomeKind.RESULT]


def test_other_work_than_expected_loses_what_was_expected() -> None:
    table, (member,) = CallTable(), make_members(1)
    call, following = start(table, [member]), start(table, [member])
    take_sends(table)
    table.found(member, 77)
    assert kinds(call) == [OutcomeKind.LOST]
    assert take_sends(table) == []
    table.answered(member, 77, RESULT)
    assert len(take_sends(table)) == 1
    assert kinds(following) == [None]


# Deadlines


def test_a_call_times_out_at_its_deadline() -> None:
    table, members = CallTable(), make_members(2)
    call = start(table, members, deadline=5.0)
    table.answered(members[0], members[0].tag, RESULT)
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
    table.answered(members[0], members[0].tag, RESULT)
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
        table.answered(member, member.tag, RESULT)
        table.sends.clear()
        table.finished.clear()
    assert len(table._deadlines) < 100
    assert len(table) == 1
