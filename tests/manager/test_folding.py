"""What a batch's sink is told, and in what order, on a real event loop and with the real thread. Over any
sequence of events: test_reducing_calls.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from types import SimpleNamespace
from typing import Any, NamedTuple, ParamSpec, cast
from unittest import mock

import numpy as np
import pytest

from manager.payloads.blobs import Payload, view_of
from manager.reducing.batch import Batch
from manager.reducing.reducers import Contribution, Reducer, RefusedError, decode
from manager.reducing.shares import Folded, Partial, Reduction
from manager.serving.folding import Folding
from manager.serving.stream import Stream
from protos import link_pb2, stream_pb2
from protos.envelope import Kind
from protos.messages import failure, result

P = ParamSpec("P")

LARGE = 2_000
"""Bytes of a payload that makes a result large enough for the thread, in these tests."""


class Answered(NamedTuple):
    session: int
    answer: bytes


class Ended(NamedTuple):
    session: int


class Sink:
    """Takes note of what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Answered | Ended | Folded | Partial] = []

    def not_folded(self, stream: Stream, answer: Payload) -> None:
        self.told.append(Answered(stream.id, bytes(view_of(answer))))

    def folded(self, folded: Folded) -> None:
        self.told.append(folded)

    def partial(self, partial: Partial) -> None:
        self.told.append(partial)

    def free(self, stream: Stream) -> None:
        pass

    def ended_late(self, stream: Stream) -> None:
        self.told.append(Ended(stream.id))

    @property
    def partials(self) -> list[Partial]:
        return [each for each in self.told if isinstance(each, Partial)]


class Gate:
    """Holds up what is done in the thread."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


class Slow(Reducer):
    """Counts, as slowly as the test likes."""

    gate = Gate()

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def fold(self, contribution: Contribution) -> None:
        if "unfit" in contribution.tensors:
            self.gate.wait()
            raise RefusedError("it doesn't fit")
        if threading.current_thread() is not threading.main_thread():
            self.gate.wait()
        self.count += 1

    def state(self) -> Contribution:
        return Contribution({"x": np.array(self.count)}, {}, 0.0)

    def merge(self, state: Contribution) -> None:
        raise NotImplementedError

    def finish(self) -> Contribution:
        raise NotImplementedError


class Broken(Slow):
    """Can't say what it has come to."""

    def state(self) -> Contribution:
        raise RuntimeError("no idea")


class Complex(Slow):
    """Has a state of a kind that can't be sent."""

    def state(self) -> Contribution:
        return Contribution({"x": np.ones(1, np.complex128)}, {}, 0.0)


class LargeComplex(Slow):
    """The same, and so large that it is found out in the thread."""

    def state(self) -> Contribution:
        return Contribution({"x": np.ones(LARGE, np.complex128)}, {}, 0.0)


class OddMetric(Slow):
    """Has a metric that can't be sent."""

    def state(self) -> Contribution:
        return Contribution({}, cast(Any, {"x": [1, 2]}), 0.0)


class Listed(Slow):
    """Has a list where an array should be."""

    def state(self) -> Contribution:
        return Contribution(cast(Any, {"x": [1.0, 2.0]}), {}, 0.0)


class Nothing(Slow):
    """Has no state."""

    def state(self) -> Contribution:
        return cast(Contribution, None)


class Failing(Broken):
    """Can't fold anything in either."""

    def fold(self, contribution: Contribution) -> None:
        raise RuntimeError("no idea how")


def by_name(reducer: type[Reducer]) -> Reduction:
    return Reduction(f"{__name__}:{reducer.__name__}")


BROKEN: list[type[Reducer]] = [Broken, Complex, LargeComplex, OddMetric, Listed, Nothing]
ALLOWED = [by_name(Slow).reducer, by_name(Failing).reducer, *(by_name(reducer).reducer for reducer in BROKEN)]


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an asynchronous test in which nothing goes wrong unnoticed."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        errors: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
            async with asyncio.timeout(20):
                await test(*args, **kwargs)

        asyncio.run(main())
        assert errors == []

    return run


@pytest.fixture(autouse=True)
def in_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.serving.folding.INLINE_SIZE", LARGE)


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(Slow, "gate", gate)
    return gate


def stream(id: int) -> Stream:
    return cast(Stream, SimpleNamespace(id=id, batch=None, folding=None, over=None))


def begin(folding: Folding, reduction: Reduction, *streams: Stream, id: int = 7, tag: int = 40) -> Batch:
    batch = folding.batch(id, reduction)
    for each in streams:
        folding.instructed(batch, each)
    folding.sent(batch, tag, all_there=True, hurry=False)
    return batch


def answer(folding: Folding, stream: Stream, *, large: bool = False, name: str = "x") -> int:
    """Answers with a result; returns its size."""
    message = result(tensors={name: np.array([1.0])}, payload=bytes(LARGE) if large else b"")
    data = message.SerializeToString()
    folding.answered(stream, data, Kind.RESULT)
    return len(data)


def end(folding: Folding, sink: Sink, stream: Stream) -> None:
    stream.over = link_pb2.LOST
    if folding.ended(stream):
        sink.ended_late(stream)


def states(partial: Partial) -> list[int]:
    payloads = [group.state for group in partial.groups]
    return [int(decode(view_of(payload)).tensors["x"]) for payload in payloads if payload is not None]


# Partials


@on_a_loop
async def test_when_all_have_answered_it_is_said_and_then_what_it_has_come_to() -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    batch = begin(folding, by_name(Slow), first, second)
    size = answer(folding, first) + answer(folding, second)
    folded, partial = sink.told
    assert folded == Folded(7, batch.part, [], size, 40)
    assert isinstance(partial, Partial)
    assert (partial.batch, partial.part, partial.closed, partial.error) == (7, batch.part, False, "")
    assert states(partial) == [2]
    await folding.finish(1)


@on_a_loop
async def test_each_batch_of_an_id_is_a_part_of_its_own() -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    parts = []
    for number in range(3):
        each = stream(number)
        parts.append(begin(folding, by_name(Slow), each).part)
        answer(folding, each)
    assert len(set(parts)) == 3
    assert [partial.part for partial in sink.partials] == parts
    await folding.finish(1)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("reducer", BROKEN)
@on_a_loop
async def test_a_state_that_cannot_be_had_or_sent_is_an_error_with_its_reason(
    reducer: type[Reducer], closed: bool
) -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    batch = begin(folding, by_name(reducer), first, second)
    answer(folding, first)
    if closed:
        folding.close(7)
    else:
        answer(folding, second)
    while not sink.partials:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    folded, partial = sink.told
    assert isinstance(folded, Folded), "they have answered all the same"
    assert isinstance(partial, Partial)
    assert (partial.batch, partial.part, partial.groups, partial.closed) == (7, batch.part, [], closed)
    assert partial.error.startswith("the reducer failed: ")
    if reducer is Broken:
        assert "no idea" in partial.error
    third = stream(3)  # and the next batch is none the worse
    begin(folding, by_name(Slow), third, id=8)
    answer(folding, third)
    assert states(sink.partials[-1]) == [1]
    await folding.finish(1)


@on_a_loop
async def test_a_close_of_nothing_is_answered_at_once() -> None:
    sink = Sink()
    folding = Folding(sink)
    folding.close(9)
    assert sink.told == [Partial(9, 0, [], closed=True)]
    await folding.finish(1)


@pytest.mark.parametrize(
    "reduction", [Reduction("median"), Reduction("sum", {"speed": 1}), Reduction("os:system")]
)
@on_a_loop
async def test_a_reducer_that_cannot_be_is_refused_before_anybody_works_for_it(reduction: Reduction) -> None:
    sink = Sink()
    folding = Folding(sink)
    with pytest.raises(ValueError, match=reduction.reducer):
        folding.batch(7, reduction)
    folding.close(7)
    assert sink.told == [Partial(7, 0, [], closed=True)]
    await folding.finish(1)


def test_one_that_always_fails_is_logged_once_a_call(caplog: pytest.LogCaptureFixture) -> None:
    @on_a_loop
    async def calls() -> None:
        sink = Sink()
        folding = Folding(sink, ALLOWED)
        for id in (7, 8):
            streams = [stream(number) for number in range(5)]
            begin(folding, by_name(Failing), *streams, id=id)
            for each in streams:
                answer(folding, each)
        answers = [told for told in sink.told if isinstance(told, Answered)]
        assert len(answers) == 10
        assert all(b"no idea how" in told.answer for told in answers)
        await folding.finish(1)

    calls()
    assert [record.getMessage() for record in caplog.records] == ["a reducer failed"] * 2


@on_a_loop
async def test_one_that_there_is_no_memory_for_is_a_failure_and_the_others_count(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    begin(folding, by_name(Slow), first, second)
    gate.open()
    with monkeypatch.context() as patch:
        patch.setattr(
            "manager.reducing.arithmetic.read_result", mock.Mock(side_effect=MemoryError("no room"))
        )
        answer(folding, first, large=True)
        while not sink.told:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    refusal = failure(stream_pb2.Failure.UNSPECIFIED, "no room").SerializeToString()
    assert sink.told == [Answered(1, refusal)]
    assert first.folding is None
    answer(folding, second)
    assert [states(partial) for partial in sink.partials] == [[1]]
    await folding.finish(1)


# Streams that end


@pytest.mark.parametrize("name", ["x", "unfit"])
@on_a_loop
async def test_the_end_of_a_stream_is_told_after_what_became_of_its_answer(gate: Gate, name: str) -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    batch = begin(folding, by_name(Slow), first, second)
    size = answer(folding, first, large=True, name=name)
    assert await asyncio.to_thread(gate.reached.wait, 20)
    end(folding, sink, first)
    await asyncio.sleep(0)
    assert sink.told == []
    gate.open()
    while len(sink.told) < 2:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    refusal = failure(stream_pb2.Failure.UNSPECIFIED, "it doesn't fit").SerializeToString()
    became = Folded(7, batch.part, [1], size, 0) if name == "x" else Answered(1, refusal)
    assert sink.told == [became, Ended(1)]
    assert first.folding is None
    end(folding, sink, second)
    await asyncio.sleep(0)
    assert sink.told[2] == Ended(2)
    assert [states(partial) for partial in sink.partials] == ([[1]] if name == "x" else [])
    await folding.finish(1)
    assert sink.told.count(Ended(1)) == 1


@on_a_loop
async def test_the_last_stream_may_end_while_its_answer_is_folded_in(gate: Gate) -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    only = stream(1)
    batch = begin(folding, by_name(Slow), only)
    size = answer(folding, only, large=True)
    end(folding, sink, only)
    gate.open()
    await folding.finish(20)
    folded, partial, ended = sink.told
    assert folded == Folded(7, batch.part, [], size, 40)
    assert states(cast(Partial, partial)) == [1]
    assert ended == Ended(1)


@on_a_loop
async def test_what_small_answers_came_to_is_told_before_the_end_of_their_stream() -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    batch = begin(folding, by_name(Slow), first, second)
    size = answer(folding, first)
    assert sink.told == []
    end(folding, sink, first)
    assert sink.told == [Folded(7, batch.part, [1], size, 0), Ended(1)]
    end(folding, sink, second)
    await folding.finish(1)
    assert states(sink.partials[0]) == [1]


@on_a_loop
async def test_a_stream_that_ends_without_an_answer_lets_its_batch_end_after_it() -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    batch = begin(folding, by_name(Slow), first, second)
    size = answer(folding, first)
    end(folding, sink, second)
    await asyncio.sleep(0)
    *others, partial = sink.told
    assert others == [Folded(7, batch.part, [1], size, 0), Ended(2)]
    assert states(cast(Partial, partial)) == [1]
    await folding.finish(1)


@on_a_loop
async def test_a_stream_whose_forgotten_answer_is_still_folded_in_may_work_for_another_batch(
    gate: Gate,
) -> None:
    # Its end must wait for the second answer: it may have been folded in.
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    begin(folding, by_name(Slow), first)
    answer(folding, first, large=True)
    folding.forget()  # a new handshake: it is idle, and is sent the next instruction
    following = begin(folding, by_name(Slow), first, second, id=8, tag=41)
    size = answer(folding, first, large=True)
    end(folding, sink, first)
    gate.open()
    while Ended(1) not in sink.told:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    assert sink.told == [Folded(8, following.part, [1], size, 0), Ended(1)]
    end(folding, sink, second)
    await folding.finish(20)
    assert [states(partial) for partial in sink.partials] == [[1]]
    assert sink.told.count(Ended(1)) == 1


# Late answers


@on_a_loop
async def test_what_comes_after_a_close_is_late() -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    begin(folding, by_name(Slow), first, second)
    answer(folding, first)
    folding.close(7)
    assert [partial.closed for partial in sink.partials] == [True]
    answer(folding, second)
    assert sink.told[-1] == Answered(2, b"")
    assert len(sink.partials) == 1
    await folding.finish(1)


@on_a_loop
async def test_what_is_being_folded_in_when_it_is_closed_counts(gate: Gate) -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second = stream(1), stream(2)
    batch = begin(folding, by_name(Slow), first, second)
    size = answer(folding, first, large=True)
    folding.close(7)
    assert sink.told == []
    gate.open()
    await folding.finish(20)
    folded, partial = sink.told
    assert folded == Folded(7, batch.part, [1], size, 0)
    assert states(cast(Partial, partial)) == [1]
    assert cast(Partial, partial).closed


@on_a_loop
async def test_of_what_was_forgotten_nothing_is_told_but_ends(gate: Gate) -> None:
    sink = Sink()
    folding = Folding(sink, ALLOWED)
    first, second, third = stream(1), stream(2), stream(3)
    begin(folding, by_name(Slow), first, second, third)
    answer(folding, first)
    answer(folding, second, large=True)
    folding.forget()
    end(folding, sink, second)
    answer(folding, third)
    gate.open()
    await folding.finish(20)
    assert sink.told == [Answered(3, b""), Ended(2)]
