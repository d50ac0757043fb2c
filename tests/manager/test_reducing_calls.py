"""The promises of DESIGN for calls whose results are folded where they arrive: the table of calls together
with the workers' batches, over any sequence of events.

The machine plays what lies between: the coordinator's links.py, the links (in order per direction, but as
late as they like), manager/worker.py around the real ``Folding``, whose event loop and thread it plays, too,
and all participants. Each result has a power of two as its weight, so that the weight of an answer tells
whose results are in it.

Participants are told to reconnect whenever they aren't at work, and come back on any worker, as late as they
like: the news of that may even be older than the news of their move.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manager.core.call import Answer, Call, OutcomeKind
from manager.core.calls import CallTable
from manager.core.members import Member
from manager.core.pool import Pool
from manager.core.roster import Roster
from manager.link.reports import Reports
from manager.payloads.blobs import Payload, view_of
from manager.reducing.batch import Batch
from manager.reducing.reducers import decode, make_reducer
from manager.reducing.shares import Folded, Group, Partial, Reduction
from manager.serving.folding import Folding
from manager.serving.incoming import checked
from manager.serving.stream import Stream
from protos import link_pb2, stream_pb2
from protos.envelope import Kind
from protos.messages import failure, result

INLINE_SIZE = 100
"""Bytes up to which this test has results folded, and partials made, at once rather than in the thread."""

WIDE = 16
"""Elements of a tensor that is large here: in int64 more than INLINE_SIZE, in int8 less."""

RETURN_TIME = 6.0
"""Seconds in which a participant that was moved is expected back here."""

Tensors = dict[str, npt.NDArray[Any]]


def tensors_of(kind: str, index: int) -> Tensors:
    """What the participant at this place of a call sends. The kinds differ in what is done in the thread:
    with "grows" only the partial, with "padded" only the folding, with "large" both.
    """
    one = np.array(2**index, np.int64)
    match kind:
        case "small" | "padded":
            return {"x": one}
        case "grows":
            return {"x": np.full(WIDE, index + 1, np.int8)}
        case "large":
            return {"x": np.full(WIDE, 2**index, np.int64)}
        case "other name":
            return {"y": one}
        case _:
            return {"x": one, "y": one}


KINDS = ["small", "padded", "grows", "large", "other name", "one more"]
SAME_TENSORS = {"padded": "small"}


def result_of(kind: str, index: int) -> bytes:
    message = result(
        tensors=tensors_of(kind, index),
        weight=float(2**index),
        payload=bytes(2 * INLINE_SIZE) if kind == "padded" else b"",
    )
    return message.SerializeToString()


FAILURE = failure(stream_pb2.Failure.HANDLER_ERROR, "as asked").SerializeToString()
NO_RESULT = b"\x12\x03\xff\xff\xff"


class Work:
    """Something for the thread: the asyncio.Future that Folding gets for it."""

    def __init__(self, do: Callable[[], Any], loop: Loop) -> None:
        self._do = do
        self._loop = loop
        self._callbacks: list[Callable[[Any], None]] = []
        self._error: Exception | None = None
        self._result: Any = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def carry_out(self) -> None:
        try:
            self._result = self._do()
        except Exception as error:
            self._error = error
        for callback in self._callbacks:
            self._loop.call_soon(callback, self)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class Timer:
    def __init__(self, fire: Callable[[], None]) -> None:
        self.fire = fire
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop and the thread beside it, both of which go on when they are told to."""

    def __init__(self) -> None:
        self.turns = 0
        self.ready: deque[Callable[[], Any]] = deque()
        self.timers: list[Timer] = []
        self.works: deque[Work] = deque()

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self.ready.append(lambda: callback(*args))

    def call_later(self, _delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        self.timers.append(Timer(lambda: callback(*args)))
        return self.timers[-1]

    def run_in_executor(self, _executor: object, do: Callable[..., Any], *args: Any) -> Work:
        self.works.append(Work(lambda: do(*args), self))
        return self.works[-1]

    def turn(self) -> None:
        self.turns += 1
        for _ in range(len(self.ready)):
            self.ready.popleft()()

    def fire(self) -> None:
        timer = self.timers.pop(0)
        if not timer.cancelled:
            timer.fire()


@dataclass(eq=False)
class Device:
    """A participant and its stream: of a manager.serving.stream.Stream what Folding and the worker use."""

    id: int  # of the session: each incarnation of a worker counts from 1
    participant: str
    accepts_cancel: bool
    tag: int = 0
    batch: Batch | None = None
    folding: Batch | None = None
    over: link_pb2.EndReason.ValueType | None = None
    busy: bool = False
    number: int = 0  # of the call that it works on
    since: int = 0  # in which turn of the worker's loop it was instructed

    @property
    def stream(self) -> Stream:
        return cast(Stream, self)


@dataclass
class Orders:
    instructs: list[tuple[int, int, Payload]] = field(default_factory=list)
    broadcasts: list[tuple[int, Payload, list[int], Call]] = field(default_factory=list)
    cancels: list[tuple[int, int]] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.instructs or self.broadcasts or self.cancels or self.closes or self.ends)


@dataclass
class Hello:
    devices: list[tuple[Device, int]]  # and the tag that each works on


class Welcome:
    pass


Given = Counter[tuple[Member, int]]
"""How often each member's participant, on whatever worker, got the instruction of the call of this number."""


class Worker:
    """One incarnation of a worker process, and its link. Does what manager/worker.py does."""

    def __init__(self, index: int, welcomed: bool, given: Given) -> None:
        self.index = index
        self.loop = Loop()
        with mock.patch("asyncio.get_running_loop", return_value=self.loop):
            self.folding = Folding(self)
        self.reports = Reports()
        self.devices: dict[int, Device] = {}
        self.sessions = 0
        self.given = given
        self.welcomed = welcomed
        self.up: deque[tuple[link_pb2.Report, list[Payload]] | Hello] = deque()
        self.down: deque[Orders | Welcome] = deque()
        # The coordinator's:
        self.members: dict[int, Member] = {}
        self.open = welcomed
        self._flushing = False
        if not welcomed:
            self.greet()

    # From participants

    def join(self, participant: str, accepts_cancel: bool) -> None:
        self.sessions += 1
        device = self.devices[self.sessions] = Device(self.sessions, participant, accepts_cancel)
        self.reports.joined(self.join_of(device))
        self._schedule_flush()

    def join_of(self, device: Device, tag: int = 0) -> link_pb2.Join:
        return link_pb2.Join(
            session=device.id,
            participant_id=device.participant,
            accepts_cancel=device.accepts_cancel,
            tag=tag,
        )

    def answer(self, device: Device, answer: bytes, kind: Kind) -> None:
        assert device.busy
        device.busy = False
        if device.batch is None:
            self.not_folded(device.stream, checked(answer, kind))
        else:
            self.folding.answered(device.stream, answer, kind)

    def move(self, device: Device) -> None:
        """It is told to reconnect, and its session is over at once: what comes for it now is ignored."""
        assert not device.busy
        self.end(device, link_pb2.MOVED)

    def end(self, device: Device, reason: link_pb2.EndReason.ValueType = link_pb2.LOST) -> None:
        del self.devices[device.id]
        device.over = reason
        if self.folding.ended(device.stream):
            self.ended_late(device.stream)

    # From batches: Folding's sink

    def not_folded(self, stream: Stream, answer: Payload) -> None:
        self.reports.answered(stream.id, stream.tag, answer)
        self._schedule_flush()

    def folded(self, folded: Folded) -> None:
        self.reports.folded(folded)
        self._schedule_flush()

    def partial(self, partial: Partial) -> None:
        self.reports.partial(partial)
        self._schedule_flush()

    def free(self, stream: Stream) -> None:
        pass

    def ended_late(self, stream: Stream) -> None:
        assert stream.over is not None
        self.reports.ended(stream.id, stream.over)
        self._schedule_flush()

    # The link

    def _schedule_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.welcomed and self.reports:
            self.up.append(self.reports.take())

    def greet(self) -> None:
        """Begins a new handshake. What it has reported, and the coordinator hasn't heard, is lost."""
        self.welcomed = False
        self.reports.clear()
        self.folding.forget()
        self.up.clear()
        self.up.append(
            Hello([(device, device.tag if device.busy else 0) for device in self.devices.values()])
        )

    def received(self) -> None:
        message = self.down.popleft()
        if isinstance(message, Welcome):
            self.welcomed = True
            self._schedule_flush()
        elif self.welcomed:
            self._obey(message)

    def _obey(self, orders: Orders) -> None:
        for session, tag, payload in orders.instructs:
            if (device := self.devices.get(session)) is not None:
                self._instruct(device, tag, payload)
        for tag, payload, sessions, call in orders.broadcasts:
            assert call.reduction is not None
            batch = self.folding.batch(call.id, call.reduction)
            for session in sessions:
                if (device := self.devices.get(session)) is not None:
                    self._instruct(device, tag, payload)
                    self.folding.instructed(batch, device.stream)
            self.folding.sent(
                batch,
                tag,
                all_there=all(session in self.devices for session in sessions),
                hurry=call.quorum is not None,
            )
        for session, tag in orders.cancels:
            if (device := self.devices.get(session)) is not None:
                assert device.accepts_cancel
                assert not device.busy or device.tag >= tag
        for call_id in orders.closes:
            self.folding.close(call_id)
        for session in orders.ends:
            if (device := self.devices.get(session)) is not None:
                self.end(device)

    def _instruct(self, device: Device, tag: int, payload: Payload) -> None:
        assert not device.busy, "it was sent a second instruction while one is in flight"
        device.busy = True
        device.tag = tag
        device.number = int(bytes(view_of(payload)))
        key = self.members[device.id], device.number
        self.given[key] += 1
        assert self.given[key] == 1, "it was given an instruction twice"
        device.since = self.loop.turns


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch("manager.serving.folding.INLINE_SIZE", INLINE_SIZE)
        self.patch.start()
        self.table = CallTable(first_tag=1_000)
        self.pool = Pool(random.Random(0))
        self.pool.return_time, self.pool.returns_per_second = RETURN_TIME, math.inf
        self.workers: list[Worker] = []
        self.swift = self.together = self.calm = self.mixed = False
        self.kind = "small"
        self.now = 0.0
        self.keys = 0
        self.participants = 0
        self.away: list[str] = []  # participants that have been told to reconnect, and haven't yet
        self.rosters: list[Roster] = []
        self.given: Given = Counter()
        # What must be so:
        self.members: list[Member] = []  # all that ever were
        self.calls: list[Call] = []
        self.deadlines: dict[Call, float] = {}
        self.given_up: dict[Call, set[OutcomeKind]] = {}
        self.sent: dict[tuple[int, int], str] = {}  # what kind of result, by call and index
        self.written: dict[tuple[int, int], Answer] = {}
        self.excused: set[tuple[int, int]] = set()  # outcomes that are LOST for a reason
        self.replaced: set[Member] = (
            set()
        )  # out of the pool, but their worker has not said yet that they ended
        self.settled: list[tuple[Call, int]] = []
        self.advanced: dict[Call, int] = {}
        self.finished: list[Call] = []
        self.heard = 0  # answers that have reached the table
        self.folded: set[tuple[int, int]] = set()  # which the table knows to be folded

    @initialize(
        workers=st.integers(2, 3),
        there=st.integers(0, 4),
        links=st.sampled_from(["slow", "swift", "together"]),
        calm=st.booleans(),
        kind=st.sampled_from(KINDS[:4]),
        mixed=st.booleans(),
    )
    def begin(self, workers: int, there: int, links: str, calm: bool, kind: str, mixed: bool) -> None:
        """``there`` participants are at each worker. ``links``: whether messages take their time, or are
        there at once, or several events may even happen in one turn of an event loop. ``calm``: nobody
        fails, ends or gives up. ``kind``: of most results; with ``mixed`` every third has other tensors.
        """
        self.swift = links == "swift"
        self.together = links == "together"
        self.calm = calm
        self.kind = kind
        self.mixed = mixed
        self.workers = [Worker(index, welcomed=True, given=self.given) for index in range(workers)]
        for worker in self.workers:
            for _ in range(there):
                self.add(worker, accepts_cancel=False)
        self.let_everything_arrive()

    # The coordinator: what links.py does

    def carry_out(self, going: Member | None = None) -> None:
        """``going`` has just left its worker, which ignores what is sent to it now."""
        table = self.table
        orders = [Orders() for _ in self.workers]
        sends, table.sends = table.sends, []
        for tag, payload, members, call, _ in sends:
            for member in members:
                assert not member.moving, "something was sent to a member that is moving"
                there = self.workers[member.worker].members.get(member.session)
                assert member.gone or member is going or there is member, (
                    "something was sent where the member isn't"
                )
            if len(members) == 1 and call is None:
                orders[members[0].worker].instructs.append((members[0].session, tag, payload))
                continue
            roster = members if isinstance(members, Roster) else Roster(members)
            for index, (_, theirs) in roster.shares.items():
                if index not in roster.prepared:
                    roster.prepared[index] = [member.session for member in theirs]
                sessions = roster.prepared[index]
                if call is None:
                    orders[index].instructs += [(session, tag, payload) for session in sessions]
                else:
                    orders[index].broadcasts.append((tag, payload, sessions, call))
        cancels, table.cancels = table.cancels, []
        for member, tag in cancels:
            assert member.accepts_cancel
            orders[member.worker].cancels.append((member.session, tag))
        closes, table.closes = table.closes, []
        for index, call in closes:
            orders[index].closes.append(call.id)
        for worker in self.workers:
            if orders[worker.index] and worker.open:
                worker.down.append(orders[worker.index])
        settled, table.settled = table.settled, []
        self.settled += settled
        advanced, table.advanced = table.advanced, []
        for call, count, _ in advanced:
            self.advanced[call] = self.advanced.get(call, 0) + count
        finished, table.finished = table.finished, []
        for call in finished:
            self.finished.append(call)
            if call.reduction is not None:
                self.check_sum(call)

    def report(self, worker: Worker, report: link_pb2.Report, payloads: list[Payload]) -> None:
        members = worker.members
        for join in report.joins:
            self.join_pool(worker, join)
        answers = list(
            zip(map(members.get, report.answer_sessions), report.answer_tags, payloads, strict=False)
        )
        self.heard += sum(member is not None for member, _, _ in answers)
        self.table.answered(answers)
        for folded in report.folded:
            for member in [members[session] for session in folded.sessions if session in members]:
                self.heard += 1
                if member.call is not None and member.call.id == folded.batch:
                    self.folded.add((folded.batch, member.index))
            if folded.tag:
                for member in members.values():
                    if member.tag == folded.tag:
                        assert member.call is not None
                        assert member.call.id == folded.batch
                        self.heard += 1
                        self.folded.add((folded.batch, member.index))
            self.table.folded(
                worker.index,
                Folded(folded.batch, folded.part, folded.sessions, folded.bytes, folded.tag),
                members,
            )
        for partial in report.partials:
            groups = [
                Group(group.schema, group.sessions, payloads[group.payload]) for group in partial.groups
            ]
            self.table.partial(
                worker.index,
                Partial(partial.batch, partial.part, groups, partial.closed, partial.error, partial.given_up),
            )
        for session, reason in zip(report.end_sessions, report.end_reasons, strict=True):
            if session in members:
                member = members.pop(session)
                self.moved(member) if reason == link_pb2.MOVED else self.lose(member)

    def join_pool(self, worker: Worker, join: link_pb2.Join) -> Member:
        self.keys += 1
        newcomer = Member(
            self.keys, join.participant_id, {}, worker.index, join.session, accepts_cancel=join.accepts_cancel
        )
        member = self.pool.back(newcomer)
        if member is not None:
            self.table.returned(member, join.tag)
        else:
            member = newcomer
            self.members.append(member)
            replaced = self.pool.join(member)
            if replaced is not None:
                self.end_session(replaced)
                self.pool.leave(replaced)
                self.replaced.add(replaced)
            if join.tag:
                self.table.found(member, join.tag)
        worker.members[join.session] = member
        return member

    def end_session(self, member: Member) -> None:
        worker = self.workers[member.worker]
        if worker.open:
            worker.down.append(Orders(ends=[member.session]))

    def moved(self, member: Member) -> None:
        if member.gone:  # it has been heard of again already
            self.lose(member)
            return
        self.carry_out(going=member)
        self.pool.move(member, self.now)
        self.table.moved(member)

    def lose(self, member: Member) -> None:
        self.pool.leave(member)
        self.replaced.discard(member)
        with self.excuse():
            self.table.lost(member)

    @contextlib.contextmanager
    def excuse(self) -> Iterator[None]:
        """Only here may somebody be lost."""
        before = self.lost()
        yield
        self.excused |= self.lost() - before

    def lost(self) -> set[tuple[int, int]]:
        return {
            (call.id, index)
            for call in self.calls
            for index, outcome in enumerate(call.outcomes)
            if outcome is not None and outcome[0] is OutcomeKind.LOST
        }

    def adopt(self, worker: Worker, hello: Hello) -> None:
        self.carry_out()
        worker.down.clear()  # it is deaf to what was sent before the welcome
        worker.open = True
        worker.down.append(Welcome())
        with self.excuse():
            self.table.worker_lost(worker.index)
        said = {device.id: (device, tag) for device, tag in hello.devices}
        for session, member in list(worker.members.items()):
            if session not in said:
                del worker.members[session]
                self.lose(member)
        for session, (device, tag) in said.items():
            if session in worker.members:
                member = worker.members[session]
                with self.excuse():
                    self.table.found(member, tag)
            else:
                member = self.join_pool(worker, worker.join_of(device, tag))
            if member.gone:
                self.end_session(member)

    # What comes after each event

    def ready(self) -> None:
        """Lets the event loops come to rest, unless more is to happen in one turn."""
        if self.together:
            return
        self.rest()
        while self.swift and any(worker.up or worker.down for worker in self.workers):
            self.deliver()

    def rest(self) -> None:
        self.carry_out()
        for worker in self.workers:
            while worker.loop.ready:
                worker.loop.turn()

    def deliver(self) -> None:
        for worker in self.workers:
            while worker.down:
                worker.received()
        self.rest()
        for worker in self.workers:
            while worker.up:
                self.hear(worker)
        self.rest()

    def workers_where(self, condition: Callable[[Worker], object]) -> st.SearchStrategy[Worker]:
        return st.sampled_from([worker for worker in self.workers if condition(worker)])

    @precondition(lambda self: self.together)
    @rule()
    def a_turn_of_the_coordinator(self) -> None:
        self.carry_out()

    @precondition(lambda self: self.together and any(worker.loop.ready for worker in self.workers))
    @rule(data=st.data())
    def a_turn_of_a_worker(self, data: st.DataObject) -> None:
        data.draw(self.workers_where(lambda worker: worker.loop.ready)).loop.turn()

    # The links

    @precondition(lambda self: any(worker.up for worker in self.workers))
    @rule(data=st.data())
    def the_coordinator_hears(self, data: st.DataObject) -> None:
        self.hear(data.draw(self.workers_where(lambda worker: worker.up)))
        self.ready()

    def hear(self, worker: Worker) -> None:
        message = worker.up.popleft()
        if isinstance(message, Hello):
            self.adopt(worker, message)
        else:
            self.report(worker, *message)

    @precondition(lambda self: any(worker.down for worker in self.workers))
    @rule(data=st.data())
    def a_worker_hears(self, data: st.DataObject) -> None:
        data.draw(self.workers_where(lambda worker: worker.down)).received()
        self.ready()

    @precondition(lambda self: not self.calm and any(worker.welcomed for worker in self.workers))
    @rule(data=st.data())
    def a_worker_makes_a_new_handshake(self, data: st.DataObject) -> None:
        data.draw(self.workers_where(lambda worker: worker.welcomed)).greet()
        self.ready()

    @precondition(lambda self: not self.calm)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.workers[worker.index] = Worker(worker.index, welcomed=False, given=self.given)
        self.away += [device.participant for device in worker.devices.values()]
        for member in worker.members.values():
            self.lose(member)
        with self.excuse():
            self.table.worker_lost(worker.index)
        self.ready()

    @precondition(lambda self: any(worker.up or worker.down for worker in self.workers))
    @rule()
    def messages_arrive(self) -> None:
        """All that are on their way; what threads and timers hold back stays there."""
        self.deliver()

    # Threads and timers of the workers

    @precondition(lambda self: any(worker.loop.works for worker in self.workers))
    @rule(data=st.data())
    def a_thread_gets_something_done(self, data: st.DataObject) -> None:
        data.draw(self.workers_where(lambda worker: worker.loop.works)).loop.works.popleft().carry_out()
        self.ready()

    @precondition(lambda self: any(worker.loop.timers for worker in self.workers))
    @rule(data=st.data())
    def it_is_time_for_a_report(self, data: st.DataObject) -> None:
        data.draw(self.workers_where(lambda worker: worker.loop.timers)).loop.fire()
        self.ready()

    # Participants

    @rule(data=st.data(), accepts_cancel=st.booleans(), count=st.integers(1, 3))
    def join(self, data: st.DataObject, accepts_cancel: bool, count: int) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        for _ in range(count):
            self.add(worker, accepts_cancel)
        self.ready()

    def add(self, worker: Worker, accepts_cancel: bool) -> None:
        self.participants += 1
        worker.join(f"p{self.participants}", accepts_cancel)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), count=st.integers(1, 3))
    def some_are_told_to_reconnect(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if idle := self.idle():
                self.tell_to_reconnect(*data.draw(st.sampled_from(idle)))
        self.ready()

    def tell_to_reconnect(self, worker: Worker, device: Device) -> None:
        self.away.append(device.participant)
        worker.move(device)

    @precondition(lambda self: self.away)
    @rule(data=st.data(), accepts_cancel=st.booleans(), count=st.integers(1, 3))
    def some_come_back(self, data: st.DataObject, accepts_cancel: bool, count: int) -> None:
        self.bring_back(self.away[:count], data, accepts_cancel)

    @precondition(lambda self: self.away)
    @rule(data=st.data(), accepts_cancel=st.booleans())
    def all_come_back(self, data: st.DataObject, accepts_cancel: bool) -> None:
        self.deliver()
        self.bring_back(self.away, data, accepts_cancel)

    def bring_back(self, some: list[str], data: st.DataObject, accepts_cancel: bool) -> None:
        for participant in list(some):
            self.away.remove(participant)
            data.draw(st.sampled_from(self.workers)).join(participant, accepts_cancel)
        self.ready()

    @precondition(lambda self: not self.calm and self.participants)
    @rule(data=st.data(), accepts_cancel=st.booleans())
    def one_joins_under_the_name_of_another(self, data: st.DataObject, accepts_cancel: bool) -> None:
        participant = f"p{data.draw(st.integers(1, self.participants))}"
        data.draw(st.sampled_from(self.workers)).join(participant, accepts_cancel)
        self.ready()

    def idle(self) -> list[tuple[Worker, Device]]:
        return [
            (worker, device)
            for worker in self.workers
            for device in worker.devices.values()
            if not device.busy
        ]

    def at_work(self) -> list[tuple[Worker, Device]]:
        """Who may answer: not in the very turn in which they were instructed."""
        return [
            (worker, device)
            for worker in self.workers
            for device in worker.devices.values()
            if device.busy and (device.since < worker.loop.turns or not self.together)
        ]

    @precondition(lambda self: self.at_work())
    @rule(data=st.data(), count=st.integers(1, 3))
    def give_the_usual_result(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if at_work := self.at_work():
                worker, device = data.draw(st.sampled_from(at_work))
                self.give_result(worker, device)
        self.ready()

    @precondition(lambda self: self.at_work() or self.away)
    @rule(data=st.data())
    def all_is_done(self, data: st.DataObject) -> None:
        """Everybody is back and has answered: an end, and a beginning."""
        self.let_everything_arrive()
        while self.at_work() or self.away:
            self.bring_back(self.away, data, accepts_cancel=True)
            for worker, device in self.at_work():
                self.give_result(worker, device)
            self.let_everything_arrive()

    @precondition(lambda self: self.at_work())
    @rule(data=st.data(), kind=st.sampled_from(["", "small", "other name"]))
    def answer_and_be_told_to_reconnect(self, data: st.DataObject, kind: str) -> None:
        """What it answered may be in no partial yet."""
        worker, device = data.draw(st.sampled_from(self.at_work()))
        self.give_result(worker, device, "" if self.calm else kind)
        self.tell_to_reconnect(worker, device)
        self.ready()

    @precondition(lambda self: self.at_work())
    @rule(order=st.randoms(use_true_random=False))
    def all_give_the_usual_result(self, order: random.Random) -> None:
        at_work = self.at_work()
        order.shuffle(at_work)
        for worker, device in at_work:
            self.give_result(worker, device)
        self.ready()

    @precondition(lambda self: not self.calm and self.at_work())
    @rule(data=st.data(), kind=st.sampled_from(KINDS))
    def give_some_result(self, data: st.DataObject, kind: str) -> None:
        worker, device = data.draw(st.sampled_from(self.at_work()))
        self.give_result(worker, device, kind)
        self.ready()

    @precondition(lambda self: not self.calm and self.at_work())
    @rule(data=st.data(), answer=st.sampled_from([FAILURE, NO_RESULT, b""]))
    def fail(self, data: st.DataObject, answer: bytes) -> None:
        worker, device = data.draw(st.sampled_from(self.at_work()))
        kind = Kind.FAILURE if answer == FAILURE else Kind.RESULT if answer else Kind.EMPTY
        worker.answer(device, answer, kind)
        self.ready()

    def give_result(self, worker: Worker, device: Device, kind: str = "") -> None:
        call = self.calls[device.number]
        index = list(call.members).index(worker.members[device.id])
        if not kind:
            kind = "one more" if self.mixed and index % 3 == 0 else self.kind
        self.sent[call.id, index] = SAME_TENSORS.get(kind, kind)
        worker.answer(device, result_of(kind, index), Kind.RESULT)

    @precondition(lambda self: not self.calm and any(worker.devices for worker in self.workers))
    @rule(data=st.data())
    def a_stream_ends(self, data: st.DataObject) -> None:
        worker = data.draw(self.workers_where(lambda worker: worker.devices))
        worker.end(worker.devices[data.draw(st.sampled_from(sorted(worker.devices)))])
        self.ready()

    # Callers

    @precondition(lambda self: self.members)
    @rule(
        data=st.data(),
        reducing=st.sampled_from([True, True, True, False]),
        one_for_all=st.booleans(),
        quorum=st.sampled_from([None, None, None, 1, 2, 3]),
        timeout=st.sampled_from([None, None, 2.0, 5.0]),
        stream=st.booleans(),
        again=st.booleans(),
        crossing=st.sampled_from([0, 0, 1, 2]),
    )
    def call(
        self,
        data: st.DataObject,
        reducing: bool,
        one_for_all: bool,
        quorum: int | None,
        timeout: float | None,
        stream: bool,
        again: bool,
        crossing: int,
    ) -> None:
        """``crossing``: how many are told to reconnect while the instruction is on its way."""
        latest = [member for member in self.members if self.calm or not member.gone][-8:] or self.members
        some = st.lists(st.sampled_from(latest), max_size=6, unique=True)
        members: Sequence[Member] = data.draw(st.just(latest) | some)
        if again and self.rosters:
            members = self.rosters[-1]
        else:
            members = Roster(members)
            self.rosters.append(members)
        number = len(self.calls)
        payloads = [b"%d" % number] * (1 if one_for_all else len(members))
        deadline = None if timeout is None or self.calm else self.now + timeout
        call = self.table.start(
            members,
            payloads,
            deadline=deadline,
            quorum=quorum,
            stream=stream,
            reduction=Reduction("sum") if reducing else None,
        )
        with self.excuse():  # who was gone before
            self.calls.append(call)
        self.given_up[call] = set()
        if deadline is not None:
            self.deadlines[call] = deadline
        for _ in range(crossing):
            if idle := [each for each in self.idle() if each[0].members.get(each[1].id) in members]:
                self.tell_to_reconnect(*data.draw(st.sampled_from(idle)))
        self.ready()

    @precondition(lambda self: not self.calm and any(call.pending for call in self.calls))
    @rule(data=st.data(), kind=st.sampled_from([OutcomeKind.TIMED_OUT, OutcomeKind.CANCELLED]))
    def give_up(self, data: st.DataObject, kind: OutcomeKind) -> None:
        call = data.draw(st.sampled_from([call for call in self.calls if call.pending]))
        self.given_up[call].add(kind)
        self.table.give_up(call, kind)
        self.ready()

    @precondition(lambda self: self.deadlines or (self.pool.moving and not self.calm))
    @rule(seconds=st.integers(1, 4))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        for call, deadline in self.deadlines.items():
            if deadline <= self.now and call.pending:
                self.given_up[call].add(OutcomeKind.TIMED_OUT)
        self.table.expire(self.now)
        for member in self.pool.missing(self.now):
            self.lose(member)
        self.ready()

    # What must always be so

    def check_sum(self, call: Call) -> None:
        """Nobody is folded in without being named, nor named without being folded in."""
        named = [i for i, end in enumerate(call.outcomes) if end is not None and end[0] is OutcomeKind.RESULT]
        answer = make_reducer("sum", {}, [])
        for state in call.states:
            answer.merge(decode(view_of(state)))
        reduced = answer.finish()
        assert named == bits(int(reduced.weight)), "who is named isn't who is folded in"
        kinds = {self.sent[call.id, index] for index in named}
        assert len(kinds) <= 1, "unlike tensors were added up"
        expected = [tensors_of(kinds.copy().pop(), index) for index in named]
        assert reduced.tensors.keys() == (expected[0].keys() if expected else set())
        for name, total in reduced.tensors.items():
            assert total.dtype == np.int64
            assert np.array_equal(total, np.sum([one[name] for one in expected], axis=0, dtype=np.int64))
        self.check_quorum(call, named)

    def check_quorum(self, call: Call, named: list[int]) -> None:
        cancelled = [end for end in call.outcomes if end is not None and end[0] is OutcomeKind.CANCELLED]
        if call.quorum is None or self.given_up[call] or not cancelled:
            return
        # Whom it had counted for the quorum may yet have been lost, or be unlike most.
        counted = {index for index in range(len(call.members)) if (call.id, index) in self.folded}
        assert {*named} <= counted
        assert len(counted) >= call.quorum

    @invariant()
    def an_outcome_is_written_once_and_for_a_reason(self) -> None:
        for call in self.calls:
            for index, outcome in enumerate(call.outcomes):
                if outcome is None:
                    assert (call.id, index) not in self.written
                    continue
                assert self.written.setdefault((call.id, index), outcome) is outcome
                kind, answer = outcome
                if kind is OutcomeKind.LOST:
                    assert (call.id, index) in self.excused, "it was lost for no reason"
                if kind is OutcomeKind.TIMED_OUT:
                    assert kind in self.given_up[call]
                elif kind is OutcomeKind.CANCELLED:
                    assert kind in self.given_up[call] or call.quorum is not None
                if kind is OutcomeKind.FAILURE or (kind is OutcomeKind.RESULT and call.reduction is None):
                    stream_pb2.ParticipantMessage.FromString(cast(bytes, answer))
                else:
                    assert answer == b""
                if kind is OutcomeKind.RESULT and call.reduction is not None:
                    assert (call.id, index) in self.sent

    @invariant()
    def the_counters_add_up(self) -> None:
        counted = dict.fromkeys(OutcomeKind, 0)
        for kind, _ in self.written.values():
            counted[kind] += 1
        assert self.table.counters == counted
        # Each answer that was heard is an outcome, or waits to be one, or was late.
        used = len(self.folded) + sum(
            kind in (OutcomeKind.RESULT, OutcomeKind.FAILURE) and key not in self.folded
            for key, (kind, _) in self.written.items()
        )
        assert self.table.late == self.heard - used

    @invariant()
    def a_call_is_finished_once_and_only_when_nobody_is_pending(self) -> None:
        assert len(set(self.finished)) == len(self.finished)
        finished = {*self.finished, *self.table.finished}
        for call in self.calls:
            assert call.pending == call.outcomes.count(None)
            assert (call in finished) == (call.pending == 0)
            assert call.results == sum(o is not None and o[0] is OutcomeKind.RESULT for o in call.outcomes)
        assert len(self.table) == len(self.calls) - len(finished)

    @invariant()
    def outcomes_and_progress_are_told_once_each(self) -> None:
        told = [*self.settled, *self.table.settled]
        assert len({(call.id, index) for call, index in told}) == len(told)
        assert {(call.id, index) for call, index in told} == {
            (call.id, index)
            for call in self.calls
            if call.stream
            for index, outcome in enumerate(call.outcomes)
            if outcome is not None
        }
        for call in self.calls:
            if call.stream and call.reduction is not None:
                count = self.advanced.get(call, 0) + sum(n for c, n, _ in self.table.advanced if c is call)
                assert count == sum(call_id == call.id for call_id, _ in self.folded)

    @invariant()
    def a_member_works_on_one_instruction_at_most(self) -> None:
        for member in self.members:
            assert not member.queue or member.busy, "an idle member with instructions in line"
            over = member.gone and member not in self.replaced
            assert not (over and (member.queue or member.call is not None))
            if member.call is not None:
                assert member.call.members[member.index] is member
                assert member.call.outcomes[member.index] is None

    # When all is said

    def let_everything_arrive(self) -> None:
        def step() -> bool:
            self.carry_out()
            moved = False
            for worker in self.workers:
                loop = worker.loop
                while loop.ready or loop.works or loop.timers or worker.down:
                    moved = True
                    loop.turn()
                    if loop.works:
                        loop.works.popleft().carry_out()
                    elif loop.timers:
                        loop.fire()
                    elif worker.down:
                        worker.received()
                while worker.up:
                    moved = True
                    self.hear(worker)
            return moved or bool(self.table.sends or self.table.closes or self.table.cancels)

        while step():
            pass

    @precondition(lambda self: self.workers[0].loop.turns % 3 == 0)
    @rule()
    def everything_arrives(self) -> None:
        self.let_everything_arrive()
        there: set[Member] = set()
        for worker in self.workers:
            assert worker.members.keys() == worker.devices.keys()
            for session, device in worker.devices.items():
                member = worker.members[session]
                there.add(member)
                assert (member.worker, member.session) == (worker.index, session)
                assert member.participant_id == device.participant
                assert member.tag == (device.tag if device.busy else 0), "busy or idle, but not both agree"
            assert not worker.folding._yielding
        for call in self.calls:
            waited_for = [
                index
                for index, member in enumerate(call.members)
                if (member.call is call and member.index == index) or (call, index) in (member.queue or ())
            ]
            assert bool(call.pending) == bool(waited_for), "it waits for nobody"
            moving = {member for member in self.members if member.moving and not member.gone}
            assert {call.members[index] for index in waited_for} <= there | moving
            assert moving == {*self.pool.missing(float("inf"))}
            if call.quorum is not None and call.results >= call.quorum:
                assert call.pending == 0
            if self.given_up[call]:
                assert call.pending == 0, "it was given up long ago"

    def teardown(self) -> None:
        try:
            if self.workers:
                self.everything_arrives()
                for worker in self.workers:
                    for device in list(worker.devices.values()):
                        worker.end(device)
                self.let_everything_arrive()
                for member in self.pool.missing(float("inf")):
                    self.lose(member)
                self.let_everything_arrive()
                self.check_the_end()
        finally:
            self.patch.stop()

    def check_the_end(self) -> None:
        self.an_outcome_is_written_once_and_for_a_reason()
        self.the_counters_add_up()
        self.a_call_is_finished_once_and_only_when_nobody_is_pending()
        self.outcomes_and_progress_are_told_once_each()
        self.a_member_works_on_one_instruction_at_most()
        assert len(self.table) == 0
        assert len(self.finished) == len(self.calls)
        assert not any(member.busy or member.queue for member in self.members)
        assert not self.table._reducing
        assert self.table.next_deadline is None
        for worker in self.workers:
            assert not worker.members
            assert not worker.folding._batches, "a batch was left behind"


def bits(number: int) -> list[int]:
    return [position for position in range(number.bit_length()) if number >> position & 1]


TestReducingCalls = Machine.TestCase
TestReducingCalls.settings = settings(max_examples=80, stateful_step_count=40)
