"""The promises of DESIGN over any sequence of events: one outcome each, one lease each, callers in order.

The machine plays the dispatcher and all participants. What it knows by itself (who works on what, who has
leased whom, who is on the way to another worker) is compared with the pool and the table of calls after every
step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manager.core.call import Answer, Call, OutcomeKind
from manager.core.calls import CallTable
from manager.core.members import MOVING, Member
from manager.core.pool import SOON, Pool, Request
from manager.core.roster import Roster
from manager.payloads.blobs import view_of
from protos import stream_pb2
from protos.envelope import Kind
from tests.manager.support import make_member

IDS = ["a", "b", "c", "d", ""]  # "": one of its own
WHERE: list[dict[str, str]] = [{}, {"region": "eu"}, {"region": "us"}, {"region": "eu", "device": "phone"}]
TIMEOUTS = st.none() | st.integers(0, 6).map(float)
KINDS = st.sampled_from([Kind.RESULT, Kind.RESULT, Kind.FAILURE, None])
GIVEN_UP = st.sampled_from([OutcomeKind.TIMED_OUT, OutcomeKind.CANCELLED])

MAX_QUEUE = 3
"""Instructions that may wait for a participant here."""

RETURN_TIME, RETURN_TIME_ANEW = 5.0, 8.0
"""Seconds in which a participant that was moved is expected back here."""


def answer_to(payload: bytes, kind: Kind = Kind.RESULT) -> bytes:
    """What a participant says to an instruction: bytes that name it, behind the first byte of their kind."""
    return bytes([kind << 3 | 2]) + payload


def matches(member: Member, where: Mapping[str, str]) -> bool:
    return where.items() <= member.attributes.items()


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = ExitStack()
        self.patch.enter_context(mock.patch("manager.core.assignments.MAX_QUEUE", MAX_QUEUE))
        self.patch.enter_context(mock.patch("manager.core.pool.RETURN_TIME_ANEW", RETURN_TIME_ANEW))
        self.pool = Pool(random.Random(0))
        self.pool.return_time, self.pool.returns_per_second = RETURN_TIME, math.inf
        self.table = CallTable(first_tag=1_000)
        self.now = 0.0
        self.keys = 0
        self.request_ids = 0
        # What must be so:
        self.members: list[Member] = []  # all that ever were
        self.pooled: list[Member] = []
        self.replaced: list[Member] = []  # out of the pool, but their worker has not said yet that they ended
        self.moving: dict[Member, float] = {}  # told to reconnect; until when they are expected
        self.missed_from = 0.0  # nobody is missed before
        self.working: dict[Member, tuple[int, bytes]] = {}  # tag, payload
        self.tags: set[int] = set()
        self.answered_in_this_turn: set[tuple[Member, int]] = set()
        self.waiting: dict[int, Request] = {}
        self.leases: dict[int, set[Member]] = {}
        self.calls: list[Call] = []
        self.rosters: list[Roster] = []
        self.refused: set[tuple[int, int]] = set()  # by call and index: too many waited already
        self.deadlines: dict[int, float] = {}  # by call
        self.finished: list[Call] = []
        self.streamed: list[tuple[int, int]] = []
        self.written: dict[tuple[int, int], Answer] = {}
        self.late = 0
        self.most_running = 0

    # What the dispatcher does after events

    def carry_out(self) -> None:
        table = self.table
        sends, table.sends = table.sends, []
        for tag, payload, members, call, _ in sends:
            assert call is None, "no call here is a reducing one"
            assert tag not in self.tags, "two sends have the same tag"
            self.tags.add(tag)
            assert len(set(members)) == len(members) > 0
            for member in members:
                if member.gone and member not in self.replaced:
                    continue  # it left in the same turn: nobody to send it to, and its outcome is LOST
                assert member in self.pooled or member in self.replaced
                assert member not in self.working, "an instruction was sent to a member that is busy"
                assert member not in self.moving
                self.working[member] = (tag, bytes(view_of(payload)))
        cancels, table.cancels = table.cancels, []
        for member, tag in cancels:
            assert member.accepts_cancel
            crossed = (member, tag) in self.answered_in_this_turn
            assert member.gone or crossed or self.working[member][0] == tag
        self.answered_in_this_turn.clear()
        settled, table.settled = table.settled, []
        for call, index in settled:
            assert call.stream
            self.streamed.append((call.id, index))
        finished, table.finished = table.finished, []
        self.finished.extend(finished)
        self.serve()

    def serve(self) -> None:
        free = {member: member.lease is None for member in self.pooled}
        soon = [
            m for m, until in self.moving.items() if m.lease is None and self.now < until - RETURN_TIME + SOON
        ]
        waited_before = dict(self.waiting)
        granted: list[Request] = []
        for grant in self.pool.serve(self.now):
            request, members = grant.request, grant.members
            assert self.waiting.pop(request.id) is request
            assert len(set(members)) == len(members)
            assert sum(free[member] and matches(member, request.where) for member in free) >= request.minimum
            assert request.maximum is None or len(members) <= request.maximum
            for member in members:
                assert matches(member, request.where)
                if member in soon:
                    assert not request.exclusive, "one that moves was leased"
                    continue
                assert member in self.pooled, "who isn't there was given to somebody"
                assert free[member], "a leased member was given to somebody else"
                assert not request.exclusive or member not in self.working, "a busy member was leased"
            if not request.exclusive and request.maximum is None and request.minimum:
                present = [member for member in self.pooled if free[member]]
                assert set(members) == {m for m in [*present, *soon] if matches(m, request.where)}
            if request.exclusive:
                self.leases[request.id] = set(members)
                for member in members:
                    free[member] = False
            for earlier in waited_before.values():
                if earlier.id >= request.id:
                    break
                if earlier.id in self.waiting:
                    self.check_not_overtaken(earlier, request, members)
            granted.append(request)
        assert granted == sorted(granted, key=lambda request: request.id)
        if self.waiting:  # nothing holds back the first one but a lack of participants
            first = next(iter(self.waiting.values()))
            assert self.available(first) < first.minimum
        self.pool._changed = True  # so that it looks
        assert self.pool.serve(self.now) == []

    def check_not_overtaken(self, earlier: Request, later: Request, members: list[Member]) -> None:
        if later.exclusive:
            assert not any(matches(member, earlier.where) for member in members), "a lease overtook"
        elif not earlier.exclusive and earlier.where.items() <= later.where.items():
            assert later.minimum < earlier.minimum, "the later of two like requests was served first"

    def available(self, request: Request) -> int:
        return sum(
            member.lease is None
            and matches(member, request.where)
            and not (request.exclusive and member in self.working)
            for member in self.pooled
        )

    def leave_pool(self, member: Member) -> None:
        self.pool.leave(member)
        if self.moving.pop(member, None) is None:
            self.pooled.remove(member)
        for leased in self.leases.values():
            leased.discard(member)

    def end(self, member: Member) -> None:
        """Its worker says that its session has ended; or it has not come back."""
        if member in self.replaced:
            self.replaced.remove(member)
        else:
            self.leave_pool(member)
        self.table.lost(member)
        self.working.pop(member, None)

    @property
    def there(self) -> list[Member]:
        """Those whose session has not ended."""
        return self.pooled + self.replaced

    def pick(self, data: st.DataObject, members: list[Member]) -> Member:
        return data.draw(st.sampled_from(members))

    # Participants

    @initialize(count=st.integers(0, 3))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.join("", WHERE[0], accepts_cancel=True, worker=0)

    @rule(
        id=st.sampled_from(IDS),
        where=st.sampled_from(WHERE),
        accepts_cancel=st.booleans(),
        worker=st.integers(0, 2),
    )
    def join(self, id: str, where: dict[str, str], accepts_cancel: bool, worker: int) -> None:
        self.keys += 1
        newcomer = make_member(self.keys, id, where=where, accepts_cancel=accepts_cancel, worker=worker)
        expected = [other for other in self.moving if other.participant_id == newcomer.participant_id]
        assert self.pool.expects(newcomer.participant_id) == bool(expected)
        before = self.outcomes()
        member = self.pool.back(newcomer)
        assert member is (expected[0] if expected else None)
        if member is not None:
            self.be_back(member, newcomer)
            assert self.outcomes() == before, "somebody's return ended something"
        else:
            self.be_new(newcomer)
        self.carry_out()

    def be_back(self, member: Member, newcomer: Member) -> None:
        del self.moving[member]
        self.pooled.append(member)
        assert (member.worker, member.session) == (newcomer.worker, newcomer.session)
        assert (member.attributes, member.accepts_cancel) == (newcomer.attributes, newcomer.accepts_cancel)
        waiting = list(member.queue or ())
        self.table.returned(member)
        assert [send.members for send in self.table.sends] == ([(member,)] if waiting else [])
        assert [*([(member.call, member.index)] if member.call else []), *(member.queue or ())] == waiting

    def be_new(self, member: Member) -> None:
        older = [other for other in self.pooled if other.participant_id == member.participant_id]
        replaced = self.pool.join(member)
        assert replaced is (older[0] if older else None)
        self.members.append(member)
        self.pooled.append(member)
        if replaced is not None:
            before = replaced.tag, replaced.call, list(replaced.queue or ())
            self.leave_pool(replaced)
            self.replaced.append(replaced)  # its answer may be on its way
            assert (replaced.tag, replaced.call, list(replaced.queue or ())) == before

    def outcomes(self) -> list[list[Answer | None]]:
        return [list(call.outcomes) for call in self.calls]

    # Moves

    @precondition(lambda self: any(member not in self.working for member in self.pooled))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """An idle participant is told to reconnect."""
        self.tell_to_reconnect(self.pick(data, [m for m in self.pooled if m not in self.working]))

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def move_while_an_instruction_crosses(self, data: st.DataObject) -> None:
        """Its worker has told it to reconnect before the instruction came, which it therefore never got."""
        member = self.pick(data, list(self.working))
        del self.working[member]
        self.tell_to_reconnect(member)

    def tell_to_reconnect(self, member: Member) -> None:
        if member in self.replaced:
            self.end(member)
        else:
            before = self.outcomes()
            crossed = [(member.call, member.index)] if member.call else []
            waiting = [*crossed, *(member.queue or ())]
            self.moving[member] = self.now + RETURN_TIME
            self.pooled.remove(member)
            self.pool.move(member, self.now)
            self.table.moved(member)
            assert list(member.queue or ()) == waiting, "what crossed comes first, and all is in order"
            assert self.outcomes() == before, "somebody's move ended something"
        self.carry_out()

    @precondition(lambda self: self.moving)
    @rule(
        data=st.data(), where=st.sampled_from(WHERE), accepts_cancel=st.booleans(), worker=st.integers(0, 2)
    )
    def come_back(
        self, data: st.DataObject, where: dict[str, str], accepts_cancel: bool, worker: int
    ) -> None:
        id = self.pick(data, list(self.moving)).participant_id
        self.join(id, where, accepts_cancel, worker)

    @rule(room=st.integers(0, 4))
    def workers_have_room(self, room: int) -> None:
        self.pool.has_room(room, self.now)
        if room == 0:
            self.missed_from = math.inf
        elif self.missed_from == math.inf or room < len(self.pooled) + len(self.moving):
            self.missed_from = self.now + RETURN_TIME_ANEW

    @precondition(lambda self: self.moving)
    @rule()
    def expect_nobody_back(self) -> None:
        """As when the coordinator drains."""
        missing = self.pool.away
        assert missing == list(self.moving)
        for member in missing:
            self.end(member)
        self.carry_out()

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = self.pick(data, self.there)
        self.end(member)
        self.pool.leave(member)
        self.table.lost(member)
        self.carry_out()

    @precondition(lambda self: self.working)
    @rule(data=st.data(), kind=KINDS)
    def answer(self, data: st.DataObject, kind: Kind | None) -> None:
        self.give_answers([(self.pick(data, list(self.working)), kind)])
        self.carry_out()

    @precondition(lambda self: len(self.working) > 1)
    @rule(data=st.data(), kinds=st.lists(KINDS, min_size=2, max_size=4))
    def answer_in_one_report(self, data: st.DataObject, kinds: list[Kind | None]) -> None:
        members = data.draw(
            st.lists(
                st.sampled_from(list(self.working)),
                min_size=2,
                max_size=len(kinds),
                unique_by=lambda m: m.key,
            )
        )
        self.give_answers(list(zip(members, kinds, strict=False)))
        self.carry_out()

    @precondition(lambda self: len(self.working) > 1)
    @rule(data=st.data())
    def answer_and_leave_in_one_turn(self, data: st.DataObject) -> None:
        self.give_answers([(self.pick(data, list(self.working)), Kind.RESULT)])
        self.end(self.pick(data, self.there))
        self.carry_out()

    def give_answers(self, answers: list[tuple[Member, Kind | None]]) -> None:
        """These answer, in one report. The kind None stands for an answer that is gone."""
        reported: list[tuple[Member | None, int, bytes | None]] = [(None, 1, answer_to(b"of nobody"))]
        asked = []
        for member, kind in answers:
            tag, payload = self.working.pop(member)
            self.answered_in_this_turn.add((member, tag))
            reported.append((member, tag, None if kind is None else answer_to(payload, kind)))
            asked.append((member.call, member.index))
        self.table.answered(reported)
        given_up = set()  # by the quorum that an answer before it in the report has made full
        for (call, index), (_, _, answer) in zip(asked, reported[1:], strict=True):
            if call is None:
                self.late += 1
                continue
            outcome = call.outcomes[index]
            if call in given_up and outcome == (OutcomeKind.CANCELLED, b""):
                self.late += 1
                continue
            if answer is None:
                assert outcome == (OutcomeKind.LOST, b"")
            else:
                failed = answer[0] == Kind.FAILURE << 3 | 2
                assert outcome == (OutcomeKind.FAILURE if failed else OutcomeKind.RESULT, answer)
            if call.quorum is not None and call.results >= call.quorum:
                given_up.add(call)

    @precondition(lambda self: self.members)
    @rule(data=st.data(), tag=st.sampled_from([0, 1, 999, 2**63]) | st.integers(1_000, 1_040))
    def answer_what_was_not_asked(self, data: st.DataObject, tag: int) -> None:
        member = self.pick(data, self.members)
        if member in self.working and self.working[member][0] == tag:
            return
        self.table.answered([(member, tag, answer_to(b"stray"))])
        self.late += 1
        self.carry_out()

    @precondition(lambda self: self.there)
    @rule(data=st.data(), what=st.sampled_from(["nothing", "the same", "something else"]))
    def found(self, data: st.DataObject, what: str) -> None:
        member = self.pick(data, self.there)
        if what == "nothing":
            self.working.pop(member, None)
        elif what == "something else":
            self.working[member] = (self.keys + 1, b"of an earlier life")
        tag, _ = self.working.get(member, (0, b""))
        self.table.found(member, tag)
        self.carry_out()

    # Callers

    @rule(
        minimum=st.integers(0, 4),
        extra=st.none() | st.integers(0, 3),
        where=st.sampled_from(WHERE),
        exclusive=st.booleans(),
        timeout=TIMEOUTS,
    )
    def ask(
        self, minimum: int, extra: int | None, where: dict[str, str], exclusive: bool, timeout: float | None
    ) -> None:
        self.request_ids += 1
        deadline = None if timeout is None else self.now + timeout
        maximum = None if extra is None else minimum + extra
        request = Request(self.request_ids, minimum, maximum, where, self.now, deadline, exclusive)
        self.waiting[request.id] = request
        self.pool.ask(request)
        self.carry_out()

    @precondition(lambda self: self.request_ids)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        id = data.draw(st.integers(1, self.request_ids + 1))
        self.pool.abandon(id)
        self.waiting.pop(id, None)
        self.leases.pop(id, None)
        self.carry_out()

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.leases)))
        self.pool.release(id)
        del self.leases[id]
        self.carry_out()

    @precondition(lambda self: self.members)
    @rule(
        data=st.data(),
        one_for_all=st.booleans(),
        quorum=st.none() | st.integers(1, 4),
        timeout=TIMEOUTS,
        stream=st.booleans(),
        as_roster=st.sampled_from(["none", "new", "used before"]),
    )
    def call(
        self,
        data: st.DataObject,
        one_for_all: bool,
        quorum: int | None,
        timeout: float | None,
        stream: bool,
        as_roster: str,
    ) -> None:
        members: Sequence[Member] = data.draw(st.lists(st.sampled_from(self.members), max_size=5))
        if as_roster == "new":
            self.rosters.append(Roster(members))
        if as_roster != "none" and self.rosters:
            members = self.rosters[-1] if as_roster == "new" else data.draw(st.sampled_from(self.rosters))
        idle = [member for member in members if not member.busy and not member.gone]
        number = len(self.calls)
        payloads = [b"%d" % number] if one_for_all else [b"%d.%d" % (number, i) for i in range(len(members))]
        deadline = None if timeout is None else self.now + timeout
        call = self.table.start(
            members,
            payloads,
            deadline=deadline,
            quorum=quorum,
            stream=stream,
        )
        self.calls.append(call)
        assert list(call.members) == list(members)
        if isinstance(call.members, Roster) and one_for_all and len(members) > 1:
            self.check_roster(call.members)
        self.refused |= {
            (call.id, index)
            for index, outcome in enumerate(call.outcomes)
            if outcome is not None and outcome[0] is OutcomeKind.FAILURE
        }
        for index, member in enumerate(members):
            outcome = call.outcomes[index]
            assert (outcome == (OutcomeKind.LOST, b"")) == member.gone
            if (call.id, index) in self.refused:
                assert len(member.queue or ()) >= MAX_QUEUE
            else:
                assert len(member.queue or ()) <= MAX_QUEUE + 1  # and one that crossed its move
        if one_for_all and len(members) > 1:
            assert len(self.table.sends) == bool(idle), "a broadcast is one send at most"
            for send in self.table.sends:
                assert set(send.members) == set(idle)
                assert (send.members is call.members) == (idle == [*members] == [*dict.fromkeys(members)])
        if deadline is not None:
            self.deadlines[call.id] = deadline
        self.most_running = max(self.most_running, len(self.table))
        self.carry_out()

    def check_roster(self, roster: Roster) -> None:
        """Who is there must be found on the worker where it is, in a cohort that was used before, too."""
        for index, member in enumerate(roster):
            if member in self.pooled:
                indices, members = roster.shares[member.worker]
                assert members[indices.index(index)] is member

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), kind=GIVEN_UP)
    def give_up(self, data: st.DataObject, kind: OutcomeKind) -> None:
        call = data.draw(st.sampled_from(self.calls))
        before = list(call.outcomes)
        self.table.give_up(call, kind)
        assert call.outcomes == [outcome or (kind, b"") for outcome in before]
        self.carry_out()

    @rule(seconds=st.integers(1, 4))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.table.expire(self.now)
        missing = [
            member for member, until in self.moving.items() if max(until, self.missed_from) <= self.now
        ]
        assert self.pool.missing(self.now) == missing
        for member in missing:
            self.end(member)
        due = [r for r in self.waiting.values() if r.deadline is not None and r.deadline <= self.now]
        available = [self.available(request) for request in due]
        shortages = self.pool.expire(self.now)
        assert [shortage.request for shortage in shortages] == due
        assert [shortage.error().matching for shortage in shortages] == available
        for shortage in shortages:
            assert shortage.pooled == len(self.pooled)
            assert shortage.waited == self.now - shortage.request.asked_at
            del self.waiting[shortage.request.id]
        self.carry_out()

    # What must always be so

    @invariant()
    def an_outcome_is_written_once(self) -> None:
        for call in self.calls:
            for index, outcome in enumerate(call.outcomes):
                if outcome is not None:
                    assert self.written.setdefault((call.id, index), outcome) is outcome
                else:
                    assert (call.id, index) not in self.written
        counted = dict.fromkeys(OutcomeKind, 0)
        for kind, _ in self.written.values():
            counted[kind] += 1
        assert self.table.counters == counted
        assert self.table.late == self.late

    @invariant()
    def an_answer_is_to_the_instruction_of_its_call(self) -> None:
        for call in self.calls:
            for index, outcome in enumerate(call.outcomes):
                if outcome is None:
                    continue
                kind, answer = outcome
                payload = bytes(view_of(call.payloads[0 if len(call.payloads) == 1 else index]))
                if kind is OutcomeKind.RESULT:
                    assert answer == answer_to(payload)
                elif (call.id, index) in self.refused:
                    message = stream_pb2.ParticipantMessage.FromString(bytes(view_of(answer)))
                    assert message.failure.code == stream_pb2.Failure.RESOURCE_EXHAUSTED
                elif kind is OutcomeKind.FAILURE:
                    assert answer == answer_to(payload, Kind.FAILURE)
                else:
                    assert answer == b""

    @invariant()
    def a_call_is_finished_once_and_only_when_nobody_is_pending(self) -> None:
        assert len(set(self.finished)) == len(self.finished)
        for call in self.calls:
            assert call.pending == call.outcomes.count(None)
            assert (call in self.finished) == (call.pending == 0)
            assert call.results == sum(o is not None and o[0] is OutcomeKind.RESULT for o in call.outcomes)
            if call.quorum is not None and call.results >= call.quorum:
                assert call.pending == 0
            if call.id in self.deadlines and self.deadlines[call.id] < self.now:
                assert call.pending == 0
        assert len(self.table) == len(self.calls) - len(self.finished)

    @invariant()
    def streamed_outcomes_are_told_once_each(self) -> None:
        assert len(set(self.streamed)) == len(self.streamed)
        told = {
            (call.id, index)
            for call in self.calls
            if call.stream
            for index, outcome in enumerate(call.outcomes)
            if outcome is not None
        }
        assert set(self.streamed) == told

    @invariant()
    def a_member_works_on_one_instruction_at_most(self) -> None:
        pending: set[tuple[int, int]] = set()
        for member in self.members:
            assert member.busy == (member in self.working or member in self.moving)
            assert member.moving == (member in self.moving)
            if member in self.moving:
                assert member.tag == MOVING
                assert member.call is None
            elif member.busy:
                assert member.tag == self.working[member][0]
            assert not member.queue or member.busy, "an idle member with instructions in line"
            there = member in self.there or member in self.moving
            assert there or not member.busy, "one that has ended is at work"
            expected = [*([(member.call, member.index)] if member.call else []), *(member.queue or ())]
            for call, index in expected:
                assert call.members[index] is member
                assert call.outcomes[index] is None
                assert (call.id, index) not in pending
                pending.add((call.id, index))
        # Whoever has no outcome yet is being worked on, or in line: nothing hangs.
        assert len(pending) == sum(call.pending for call in self.calls)

    @invariant()
    def a_member_is_in_one_lease_at_most(self) -> None:
        holders = {member: id for id, members in self.leases.items() for member in members}
        assert len(holders) == sum(len(members) for members in self.leases.values()) == self.pool.leased
        for member in self.members:
            assert member.lease == holders.get(member)

    @invariant()
    def the_pool_holds_those_who_are_there(self) -> None:
        assert list(self.pool) == self.pooled
        assert len(self.pool) == len(self.pooled)
        assert self.pool.waiting == len(self.waiting)
        assert self.pool.moving == len(self.moving)
        for member in self.members:
            there = member in self.pooled or member in self.moving
            assert member.gone != there
            assert self.pool.get(member.key) is (member if there else None)

    @invariant()
    def the_next_deadline_is_the_earliest(self) -> None:
        running = [
            self.deadlines[call.id] for call in self.calls if call.pending and call.id in self.deadlines
        ]
        assert self.table.next_deadline == min(running, default=None)
        assert len(self.table._deadlines) <= 65 + 2 * self.most_running
        waiting = [r.deadline for r in self.waiting.values() if r.deadline is not None]
        back = [max(until, self.missed_from) for until in self.moving.values()]
        assert self.pool.next_deadline == min([*waiting, *back], default=None)

    def teardown(self) -> None:
        self.patch.close()
        for member in [*self.there, *self.moving]:
            self.end(member)
            self.carry_out()
        for id in range(self.request_ids + 1):
            self.pool.abandon(id)
        self.waiting.clear()
        self.leases.clear()
        self.carry_out()
        self.check_invariants_at_the_end()

    def check_invariants_at_the_end(self) -> None:
        invariants: list[Any] = [
            self.an_outcome_is_written_once,
            self.a_call_is_finished_once_and_only_when_nobody_is_pending,
            self.a_member_works_on_one_instruction_at_most,
            self.a_member_is_in_one_lease_at_most,
            self.the_pool_holds_those_who_are_there,
            self.the_next_deadline_is_the_earliest,
        ]
        for check in invariants:
            check()
        assert len(self.table) == 0
        assert len(self.finished) == len(self.calls)
        assert not any(member.busy or member.queue for member in self.members)
        assert len(self.pool) == self.pool.leased == self.pool.waiting == 0
        assert self.table.next_deadline is None
        assert len(self.table._deadlines) == 0
        assert self.pool._leases == {}
        assert [*self.pool._by_id, *self.pool._moving_by_id, *self.pool._moving] == []


TestPoolAndCalls = Machine.TestCase
TestPoolAndCalls.settings = settings(max_examples=100, stateful_step_count=40)
