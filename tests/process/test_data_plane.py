"""Large payloads, results one by one, and reducing in the workers, in all three modes."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from coordinator import Coordinator
from manager.api.cohort import Cohort
from manager.api.outcome import Progress, Reduced
from manager.reducing.batch import MAX_GROUPS
from manager.reducing.reducers import Contribution, Reducer
from manager.serving.folding import INLINE_SIZE
from protos import stream_pb2
from protos.messages import Plain, ScalarError, failure
from protos.messages import result as result_message
from protos.tensors import to_arrays
from tests.process.conftest import Echo, Served
from tests.process.reducers import REDUCERS
from tests.support import (
    PATIENCE,
    Device,
    Devices,
    eventually,
    instruction,
    tensors,
)

pytestmark = pytest.mark.usefixtures("coordinator")  # up before the first test, down after the last

MIB = 2**20


class Last(Reducer):
    """A reducer of our own, which nobody has allowed."""

    def fold(self, contribution: Contribution) -> None:
        raise AssertionError("it is never used")

    def state(self) -> Contribution:
        raise AssertionError("it is never used")

    def merge(self, state: Contribution) -> None:
        raise AssertionError("it is never used")

    def finish(self) -> Contribution:
        raise AssertionError("it is never used")


def _memfds() -> list[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            link = str(entry.readlink())
        except OSError:  # the directory's own
            continue
        if link.startswith("/memfd:muster"):
            links.append(link)
    return links


@pytest.fixture(autouse=True)
def no_shared_memory_is_left_open(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What is shared is closed with the last reference, or soon after it."""
    monkeypatch.setattr("manager.payloads.memory.REST_TIME", 0.1)
    if "served" in request.fixturenames:
        request.getfixturevalue("served")  # first: a connection has a sample of its own
    before = len(_memfds())
    yield

    def as_before() -> bool:
        if len(_memfds()) > before:
            gc.collect()
        return len(_memfds()) <= before

    eventually(as_before, what="no descriptors of shared memory left open")


def gather(served: Served, devices: Devices, count: int) -> tuple[list[Device], Cohort[Echo]]:
    """Devices, and the proxies that stand for them, in the same order."""
    joined = devices.join(served.address, count)
    cohort = served.manager.get_participants(count, timeout=PATIENCE)
    order = [device.id for device in joined]
    return joined, cohort._part(sorted(cohort, key=lambda proxy: order.index(proxy.id)))


def ids(proxies: Sequence[Echo]) -> list[str]:
    return sorted(proxy.id for proxy in proxies)


def reasons(reduced: Reduced[Echo]) -> dict[str, str]:
    return {proxy.id: failure.text for proxy, failure in reduced.failures.items()}


def late(served: Served) -> int:
    if hasattr(served.manager, "status"):
        return int(served.manager.status().counters.late)
    return served.manager._dispatcher.calls.late


# Reducing


def test_the_weighted_mean_is_numpys(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 9)
    random = np.random.default_rng(7)
    weights = random.integers(1, 100, 9).astype(float)
    ws = random.normal(size=(9, 20, 30)).astype(np.float32)
    bs = random.normal(size=(9, 5))
    losses = random.random(9)
    reduced = cohort.reduce(
        [
            tensors({"w": w, "b": b}, weight, {"loss": float(loss)})
            for w, b, weight, loss in zip(ws, bs, weights, losses, strict=True)
        ]
    )
    assert set(reduced.folded) == set(cohort)
    assert len(reduced) == 9
    assert reduced.weight == weights.sum()
    assert reduced.tensors["w"].dtype == np.float32
    np.testing.assert_allclose(
        reduced.tensors["w"], np.average(ws.astype(float), axis=0, weights=weights), rtol=1e-6
    )
    np.testing.assert_allclose(reduced.tensors["b"], np.average(bs, axis=0, weights=weights), rtol=1e-12)
    assert reduced.metrics["loss"] == pytest.approx(np.average(losses, weights=weights))


def test_one_instruction_for_all_is_reduced_too(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 6)
    reduced = cohort.reduce(tensors({"w": np.arange(4.0)}, 2.0))
    np.testing.assert_array_equal(reduced.tensors["w"], np.arange(4.0))
    assert reduced.weight == 12.0


def test_a_sum_of_integers_is_exact(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 6)
    values = [2**60 + 1, -(2**60), 2**53 + 1, 1, -7, 3]
    reduced = cohort.reduce([tensors({"n": np.array([v, v])}) for v in values], "sum")
    assert reduced.tensors["n"].tolist() == [sum(values)] * 2
    assert reduced.tensors["n"].dtype == np.int64


@pytest.mark.parametrize(("reducer", "expected"), [("min", 1.0), ("max", 4.0), ("mean", 2.5), ("sum", 10.0)])
def test_each_built_in_reducer_works(served: Served, devices: Devices, reducer: str, expected: float) -> None:
    _, cohort = gather(served, devices, 4)
    reduced = cohort.reduce([tensors({"x": np.array([v])}) for v in (1.0, 2.0, 3.0, 4.0)], reducer)
    assert reduced.tensors["x"].tolist() == [expected]


def test_options_reach_the_workers(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 3)
    messages = [tensors({"x": np.array([v], np.float32)}) for v in (1.0, np.nan, 2.0)]
    reduced = cohort.reduce(messages, "sum", dtype="float32", allow_nan=True)
    assert len(reduced.folded) == 3
    assert reduced.tensors["x"].dtype == np.float32
    assert np.isnan(reduced.tensors["x"]).all()


def test_what_does_not_fit_is_a_failure_and_no_part_of_the_answer(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 8)
    good = {"x": np.array([1.0, 2.0])}
    messages = [
        tensors(good),
        tensors(good),
        tensors(good),
        instruction("fail"),
        tensors({"x": np.array([1.0, 2.0, 3.0])}),
        tensors({"x": np.array([1.0, np.nan])}),
        tensors(good, weight=0.0),
        instruction("empty"),
    ]
    reduced = cohort.reduce(messages)
    assert ids(reduced.folded) == ["device-0", "device-1", "device-2"]
    assert reduced.weight == 3.0
    np.testing.assert_array_equal(reduced.tensors["x"], good["x"])
    why = reasons(reduced)
    assert why.keys() == {f"device-{number}" for number in range(3, 8)}
    assert why["device-3"] == "as asked"
    assert "shape (3,)" in why["device-4"]
    assert "x" in why["device-5"]
    assert "weight is 0" in why["device-6"]
    assert "empty" in why["device-7"]


def test_an_answer_that_is_no_protobuf_is_no_part_of_it(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 2)
    reduced = cohort.reduce([tensors({"x": np.ones(2)}), instruction("garbage")])
    assert ids(reduced.folded) == ["device-0"]
    assert "not a ParticipantMessage" in reasons(reduced)["device-1"]


def test_a_few_odd_results_do_not_make_a_failure_of_those_that_come_after_them(
    served: Served, devices: Devices
) -> None:
    """However many kinds of them there are: more than any worker keeps apart."""
    odd = 2 * (MAX_GROUPS + 1)
    joined, cohort = gather(served, devices, odd + 6)
    messages = [tensors({"x": np.ones(number + 3)}) for number in range(odd)]
    messages += [tensors({"x": np.ones(2)}, hold=True) for _ in range(6)]
    answered: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            cohort.reduce, messages, timeout=20, progress=lambda now: answered.append(now.answered)
        )
        assert all(device.holding.wait(PATIENCE) for device in joined[odd:])
        eventually(lambda: answered and answered[-1] == odd)
        for device in joined[odd:]:
            device.release()
        reduced = call.result(20)
    assert ids(reduced.folded) == [device.id for device in joined[odd:]]
    np.testing.assert_array_equal(reduced.tensors["x"], np.ones(2))
    assert len(reduced.failures) == odd
    assert all("its tensors" in text or "shape" in text for text in reasons(reduced).values())


def test_it_is_the_tensors_that_most_send_that_count_whoever_is_first(
    served: Served, devices: Devices
) -> None:
    joined, cohort = gather(served, devices, 5)
    few = {"y": np.ones(3)}
    many = {"x": np.ones(2)}
    messages = [tensors(few), tensors(few), *(tensors(many, hold=True) for _ in range(3))]
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(cohort.reduce, messages, timeout=20)
        assert all(device.holding.wait(PATIENCE) for device in joined[2:])
        for device in joined[2:]:
            device.release()
        reduced = call.result(20)
    assert ids(reduced.folded) == ["device-2", "device-3", "device-4"]
    assert reduced.tensors.keys() == {"x"}
    assert reasons(reduced).keys() == {"device-0", "device-1"}


def test_nobodys_results_reduce_to_nothing(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 2)
    reduced = cohort.reduce(instruction("fail"))
    assert (dict(reduced.tensors), dict(reduced.metrics), reduced.weight) == ({}, {}, 0.0)
    assert len(reduced.failures) == 2
    assert len(cohort[:0].reduce(tensors({"x": np.ones(1)}))) == 0


def test_a_device_that_dies_while_others_are_reduced_is_lost(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 3)
    reduced = cohort.reduce(
        [tensors({"x": np.ones(1)}), instruction("die"), tensors({"x": np.ones(1)})], "sum"
    )
    assert ids(reduced.lost) == ["device-1"]
    assert reduced.tensors["x"].tolist() == [2.0]


@pytest.mark.parametrize("size", [4, 5 * MIB], ids=["small", "large"])
def test_whoever_is_lost_after_its_result_counts_as_a_whole_or_not_at_all(
    served: Served, devices: Devices, size: int
) -> None:
    joined, cohort = gather(served, devices, 3)
    messages = [
        *(tensors({"x": np.full(size // 4, 2**n, np.int32)}) for n in range(2)),
        tensors({"x": np.full(size // 4, 4, np.int32)}, hold=True),
    ]
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(cohort.reduce, messages, "sum", 20)
        assert joined[2].holding.wait(PATIENCE)
        eventually(lambda: all(sum(device.received.values()) for device in joined))
        for device in joined[:2]:
            device.leave()
        eventually(lambda: not cohort[0].connected and not cohort[1].connected)
        joined[2].release()
        reduced = call.result(20)
    named = [2**n for n in range(3) if cohort[n] in reduced.folded]
    assert reduced.weight == len(named)
    assert reduced.tensors["x"][0] == sum(named)


def test_a_quorum_ends_a_reduction_early(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 4)
    messages = [tensors({"x": np.array([1 << n])}, hold=n == 3) for n in range(4)]
    reduced = cohort.reduce(messages, "sum", quorum=3)
    assert ids(reduced.folded) == ["device-0", "device-1", "device-2"]
    assert ids(reduced.cancelled) == ["device-3"]
    assert reduced.tensors["x"].tolist() == [7]
    joined[3].release()


def test_a_reduction_that_is_given_up_tells_participants_to_cancel(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 2)
    messages = [tensors({"x": np.ones(1)}, hold=n == 1) for n in range(2)]
    cohort.reduce(messages, quorum=1)
    assert joined[1].cancelled.wait(PATIENCE), "it accepts cancel, and was not told"
    joined[1].release()


def test_what_was_folded_at_the_deadline_counts_and_the_late_answer_is_counted_as_late(
    served: Served, devices: Devices, deadlines: threading.Event
) -> None:
    joined, cohort = gather(served, devices, 4)
    before = late(served)
    messages = [tensors({"x": np.array([1 << n])}, hold=n == 2) for n in range(4)]

    def progress(now: Progress) -> None:
        if now.answered == 3:
            deadlines.set()

    reduced = cohort.reduce(messages, "sum", timeout=0.2, progress=progress)
    assert ids(reduced.folded) == ["device-0", "device-1", "device-3"]
    assert ids(reduced.timed_out) == ["device-2"] == ids(reduced.stragglers)
    assert reduced.tensors["x"].tolist() == [11]
    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(cohort.reduce, tensors({"x": np.array([1])}), "sum")
        joined[2].release()
        assert len(following.result(PATIENCE).folded) == 4, "the straggler isn't idle again"
    assert late(served) == before + 1


def test_participants_that_are_busy_with_something_else_are_reduced_in_the_end(
    served: Served, devices: Devices
) -> None:
    joined, cohort = gather(served, devices, 4)
    with ThreadPoolExecutor(2) as threads:
        earlier = threads.submit(cohort[1].run, instruction("hold"))
        assert joined[1].holding.wait(PATIENCE)
        call = threads.submit(cohort.reduce, [tensors({"x": np.array([1 << n])}) for n in range(4)], "sum")
        eventually(lambda: all(sum(device.received.values()) == 1 for device in joined))
        joined[1].release()
        assert earlier.result(PATIENCE).HasField("result")
        reduced = call.result(PATIENCE)
    assert reduced.tensors["x"].tolist() == [15]
    assert len(reduced.folded) == 4


def test_two_reductions_and_a_run_at_once_do_not_mix(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 6)
    with ThreadPoolExecutor(3) as threads:
        ones = threads.submit(cohort.reduce, tensors({"x": np.array([1])}), "sum")
        run = threads.submit(cohort.run, instruction("echo", b"run"))
        tens = threads.submit(cohort.reduce, tensors({"x": np.array([10])}), "sum")
        assert ones.result(20).tensors["x"].tolist() == [6]
        assert tens.result(20).tensors["x"].tolist() == [60]
        assert {m.result.payload for m in run.result(20).results.values()} == {b"run"}


def test_a_reducer_or_an_option_that_does_not_exist_is_refused_at_once(
    served: Served, devices: Devices
) -> None:
    joined, cohort = gather(served, devices, 1)
    message = tensors({"x": np.ones(1)})
    with pytest.raises(ValueError, match="there is no reducer 'median'"):
        cohort.reduce(message, "median")
    with pytest.raises(ValueError, match="dtype must be"):
        cohort.reduce(message, dtype="int8")
    with pytest.raises(ValueError, match="no option 'speed'"):
        cohort.reduce(message, "sum", speed=3)
    with pytest.raises(ValueError, match="a quorum of 2 can't be reached"):
        cohort.reduce(message, quorum=2)
    with pytest.raises(ValueError, match="timeout"):
        cohort.reduce(message, timeout=-1.0)
    assert not joined[0].received


@pytest.mark.parametrize("trim", [None, [1, 2], 2**63], ids=["None", "list", "65 bits"])
def test_an_option_that_can_not_be_sent_is_refused_at_once_and_nobody_is_busy(
    served: Served, devices: Devices, trim: object
) -> None:
    joined, cohort = gather(served, devices, 6)
    message = tensors({"x": np.ones(1)})
    with pytest.raises(ScalarError, match="'trim'"):
        cohort.reduce(message, own("Trimmed"), PATIENCE, trim=cast(Plain, trim))
    assert not any(device.received for device in joined)
    with served.manager.lease(6, timeout=0):  # so all are idle
        reduced = cohort.reduce(message, own("Trimmed"), PATIENCE, trim=2)
    assert len(reduced.folded) == 6


def test_a_reducer_that_is_not_allowed_is_refused_before_anything_is_sent(
    served: Served, devices: Devices
) -> None:
    joined, cohort = gather(served, devices, 3)
    with pytest.raises(ValueError, match=r"--reducer tests.process.test_data_plane:Last, or reducers=\["):
        cohort.reduce(tensors({"x": np.ones(1)}), f"{__name__}:Last", timeout=PATIENCE)
    assert not any(device.received for device in joined)


def test_a_reducer_that_a_worker_does_not_allow_is_everybodys_failure_which_says_how_to_allow_it(
    served: Served, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a worker that has been adopted from a coordinator with other settings."""
    joined, cohort = gather(served, devices, 3)
    monkeypatch.setattr(cohort._backend, "reducers", [f"{__name__}:Last"])
    reduced = cohort.reduce(tensors({"x": np.ones(1)}), f"{__name__}:Last", timeout=PATIENCE)
    assert set(reduced.failures) == set(cohort), str(reduced)
    for text in reasons(reduced).values():
        assert "--reducer tests.process.test_data_plane:Last" in text
    assert not any(device.received for device in joined)
    assert cohort[0].echo(b"idle again", timeout=PATIENCE) == b"idle again"


def own(name: str) -> str:
    """The import path of a reducer of our own that the workers may use."""
    (path,) = [path for path in REDUCERS if path.endswith(f":{name}")]
    return path


def test_a_reducer_of_ones_own_works(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 5)
    messages = [tensors({"x": np.array([value])}) for value in (9.0, 1.0, 5.0, 100.0, 4.0)]
    reduced = cohort.reduce(messages, own("Median"), timeout=PATIENCE)
    assert len(reduced.folded) == 5, str(reduced)
    assert reduced.tensors["x"].tolist() == [5.0]


@pytest.mark.parametrize("reducer", ["Stateless", "Complex", "Nothing"])
def test_what_a_reducer_cannot_say_is_everybodys_failure_with_the_reason(
    served: Served, devices: Devices, reducer: str
) -> None:
    joined, cohort = gather(served, devices, 3)
    messages = [
        tensors({"x": np.ones(1)}),
        tensors({"x": np.ones(1)}),
        instruction("fail"),
    ]
    told: list[Progress] = []
    reduced = cohort.reduce(messages, own(reducer), timeout=PATIENCE, progress=told.append)
    assert set(reduced.failures) == set(cohort), str(reduced)
    assert dict(reduced.tensors) == {}
    assert (told[-1].answered, told[-1].failed) == (0, 3)
    why = reasons(reduced)
    assert why["device-2"] == "as asked"
    for text in (why["device-0"], why["device-1"]):
        assert text.startswith("the reducer failed: ")
        if reducer == "Stateless":
            assert "no idea" in text
    assert not any(device.ended for device in joined), "it is no fault of theirs"
    assert len(cohort.reduce(tensors({"x": np.ones(1)}), "sum", timeout=PATIENCE).folded) == 3


def test_what_a_reducer_fails_to_fold_in_is_a_failure_of_that_one_alone(
    served: Served, devices: Devices
) -> None:
    _, cohort = gather(served, devices, 3)
    messages = [tensors({"x": np.array([value])}) for value in (1.0, -1.0, 3.0)]
    reduced = cohort.reduce(messages, own("Picky"), timeout=PATIENCE)
    assert ids(reduced.folded) == ["device-0", "device-2"]
    assert "not positive" in reasons(reduced)["device-1"]
    assert reduced.tensors["x"].tolist() == [2.0]


def test_so_is_what_it_fails_to_fold_in_in_a_thread_of_its_own(devices: Devices) -> None:
    options: Any = {"log_level": "critical", "reducers": [own("Picky")]}
    with Coordinator(workers=1, listen="127.0.0.1:0", **options) as coordinator:
        devices.join(coordinator.listen, 2)
        cohort = coordinator.get_participants(2, timeout=PATIENCE)
        size = INLINE_SIZE // 8 + 1000  # it takes so long that the event loop doesn't wait for it
        messages = [tensors({"x": np.full(size, value)}) for value in (1.0, -1.0)]
        reduced = cohort.reduce(messages, own("Picky"), timeout=PATIENCE)
        assert list(reduced.folded) == [cohort[0]]
        assert "not positive" in reduced.failures[cohort[1]].text


def test_progress_is_told_in_the_calling_thread_and_ends_with_all(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 4)
    told: list[tuple[Progress, threading.Thread]] = []

    def progress(now: Progress) -> None:
        told.append((now, threading.current_thread()))
        if now.answered == 2 and not released:
            released.append(joined[3].release())  # type: ignore[func-returns-value]

    released: list[None] = []
    messages = [
        tensors({"x": np.ones(100)}),
        tensors({"x": np.ones(100)}),
        instruction("fail"),
        tensors({"x": np.ones(100)}, hold=True),
    ]
    reduced = cohort.reduce(messages, progress=progress, timeout=20)
    assert len(reduced.folded) == 3
    assert {thread for _, thread in told} == {threading.current_thread()}
    last = told[-1][0]
    assert (last.asked, last.answered, last.failed) == (4, 3, 1)
    assert last.bytes >= 3 * 800
    assert [now.answered for now, _ in told] == sorted(now.answered for now, _ in told)
    told.clear()
    outcome = cohort.run(instruction("echo", bytes(1000)), progress=progress)
    assert len(outcome.results) == 4
    assert (told[-1][0].answered, told[-1][0].failed) == (4, 0)
    assert told[-1][0].bytes >= 4000


# Results one by one


def test_each_result_is_handed_over_once_as_it_arrives(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 5)
    messages = [instruction("hold" if n == 4 else "fail" if n == 3 else "echo", b"%d" % n) for n in range(5)]
    with cohort.stream(messages, timeout=20) as answers:
        iterator = iter(answers)
        early = [next(iterator) for _ in range(3)]  # the one that is held doesn't hold these up
        assert ids([proxy for proxy, _ in early]) == ["device-0", "device-1", "device-2"]
        assert answers.progress.answered == 3
        assert joined[4].holding.wait(PATIENCE)
        joined[4].release()
        rest = list(iterator)
    assert [proxy.id for proxy, _ in rest] == ["device-4"]
    assert {message.result.payload for _, message in [*early, *rest]} == {b"0", b"1", b"2", b"4"}
    assert all(message.result.status == proxy.id for proxy, message in [*early, *rest])
    assert [proxy.id for proxy in answers.failures] == ["device-3"]
    assert len(answers.answered) == 4
    assert [answers.lost, answers.timed_out, answers.cancelled] == [[], [], []]


def test_leaving_the_block_early_gives_the_call_up(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 3)
    messages = [instruction("hold" if n == 2 else "echo") for n in range(3)]
    with cohort.stream(messages) as answers:
        first, _ = next(iter(answers))
        assert joined[2].holding.wait(PATIENCE)
    assert joined[2].cancelled.wait(PATIENCE), "it accepts cancel, and was not told"
    assert first in answers.answered
    named = [*answers.answered, *answers.cancelled]
    assert sorted(ids(named)) == ["device-0", "device-1", "device-2"]
    assert cohort[2] in answers.cancelled
    joined[2].release()
    assert cohort[2].echo(b"idle again", timeout=PATIENCE) == b"idle again"


def test_breaking_out_of_the_loop_gives_the_call_up(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 2)
    messages = [instruction("hold" if n == 1 else "echo") for n in range(2)]
    for proxy, _ in cohort.stream(messages):
        assert proxy.id == "device-0"
        assert joined[1].holding.wait(PATIENCE)
        break
    gc.collect()
    assert joined[1].cancelled.wait(PATIENCE)
    joined[1].release()


def test_an_exception_in_the_block_gives_the_call_up(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 1)

    def fails() -> None:
        with cohort.stream(instruction("hold")):
            assert joined[0].holding.wait(PATIENCE)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert joined[0].cancelled.wait(PATIENCE)
    joined[0].release()


def test_a_stream_ends_at_its_deadline_and_at_its_quorum(
    served: Served, devices: Devices, deadlines: threading.Event
) -> None:
    joined, cohort = gather(served, devices, 3)
    messages = [instruction("hold" if n == 2 else "echo") for n in range(3)]
    with cohort.stream(messages, timeout=0.2) as answers:
        iterator = iter(answers)
        assert len([next(iterator) for _ in range(2)]) == 2
        deadlines.set()
        assert not list(iterator)
    assert ids(answers.timed_out) == ["device-2"]
    joined[2].release()
    with cohort.stream(messages, quorum=2) as answers:
        assert len(list(answers)) == 2
    assert ids(answers.cancelled) == ["device-2"]
    joined[2].release()


def test_a_device_that_dies_is_lost_to_a_stream(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 2)
    with cohort.stream([instruction("echo"), instruction("die")], timeout=20) as answers:
        assert [proxy.id for proxy, _ in answers] == ["device-0"]
    assert ids(answers.lost) == ["device-1"]


# Large payloads


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB], ids=["3 MiB", "9 MiB"])
def test_large_payloads_pass_both_ways(served: Served, devices: Devices, size: int) -> None:
    _, cohort = gather(served, devices, 3)
    payload = np.random.default_rng(size).bytes(size)
    outcome = cohort.run(instruction("echo", payload), timeout=30)
    assert len(outcome.results) == 3
    assert all(message.result.payload == payload for message in outcome.results.values())
    with cohort.stream(instruction("echo", payload), timeout=30) as answers:
        assert [message.result.payload == payload for _, message in answers] == [True] * 3
    assert cohort[0].echo(payload, timeout=30) == payload
    arrays = {"x": np.frombuffer(payload, np.uint8).view(np.int32).reshape(-1, 1024)}
    reduced = cohort.reduce([tensors(arrays, n + 1.0) for n in range(3)], "sum", timeout=30)
    assert len(reduced.folded) == 3, str(reduced)
    assert np.array_equal(reduced.tensors["x"], 3 * arrays["x"].astype(np.int64))


def test_results_outlive_what_they_came_from(served: Served, devices: Devices) -> None:
    _, cohort = gather(served, devices, 2)
    arrays = {"x": np.arange(MIB, dtype=np.float32)}
    outcome = cohort.run(tensors(arrays), timeout=30)
    reduced = cohort.reduce(tensors(arrays), timeout=30)
    messages = [outcome.results[proxy] for proxy in cohort]
    total = reduced.tensors["x"]
    del outcome, reduced
    gc.collect()
    for message in messages:
        np.testing.assert_array_equal(to_arrays(message.result.tensors)["x"], arrays["x"])
    np.testing.assert_array_equal(total, arrays["x"])


def test_a_given_up_upload_costs_the_next_call_nothing(served: Served, devices: Devices) -> None:
    joined, cohort = gather(served, devices, 2)
    arrays = {"x": np.ones(2 * MIB)}
    messages = [tensors(arrays), tensors(arrays, hold=True)]
    reduced = cohort.reduce(messages, "sum", quorum=1, timeout=30)
    assert ids(reduced.folded) == ["device-0"]
    joined[1].release()  # 16 MiB, late
    assert cohort[1].echo(b"next", timeout=20) == b"next"
    again = cohort.reduce(tensors({"x": np.ones(3)}), "sum", timeout=20)
    assert again.tensors["x"].tolist() == [2.0] * 3


# What participants may send, if in an unusual way


def _in_one_chunk(message: stream_pb2.ParticipantMessage) -> bytes:
    data = message.SerializeToString()
    chunk = stream_pb2.Chunk(total_size=len(data), data=data)
    return stream_pb2.ParticipantMessage(chunk=chunk).SerializeToString()


@pytest.mark.parametrize("size", [10, 100_000, 300_000])
def test_an_answer_may_come_in_chunks_though_it_is_small(served: Served, devices: Devices, size: int) -> None:
    _, cohort = gather(served, devices, 2)
    raw = instruction("raw", _in_one_chunk(result_message(payload=bytes(size))))
    outcome = cohort.run([raw, instruction("echo")], timeout=PATIENCE)
    assert len(outcome.results) == 2, str(outcome)
    assert len(outcome.results[cohort[0]].result.payload) == size
    raw = instruction("raw", _in_one_chunk(result_message(tensors={"x": np.ones(size // 8)}, weight=1.0)))
    assert len(cohort.reduce(raw, timeout=PATIENCE).folded) == 2


@pytest.mark.parametrize("in_chunks", [False, True], ids=["whole", "in a chunk"])
@pytest.mark.parametrize("size", [10, 60_000, 300_000])
def test_a_failure_is_a_failure_however_large_and_however_it_comes(
    served: Served, devices: Devices, size: int, in_chunks: bool
) -> None:
    _, cohort = gather(served, devices, 2)
    failed = failure(stream_pb2.Failure.HANDLER_ERROR, "x" * size)
    message = instruction("raw", _in_one_chunk(failed) if in_chunks else failed.SerializeToString())
    outcome = cohort.run(message, timeout=PATIENCE)
    assert len(outcome.failures) == 2, str(outcome)
    reduced = cohort.reduce(message, timeout=PATIENCE)
    assert len(reduced.failures) == 2, str(reduced)
    for found in [*outcome.failures.values(), *reduced.failures.values()]:
        if size < 64_000:
            assert found.text == "x" * size
        else:  # that is no text for people any more
            assert "not a valid ParticipantMessage" in found.text


# A worker that dies


def test_what_a_killed_worker_had_folded_is_lost_and_the_others_sum_is_right(devices: Devices) -> None:
    with Coordinator(workers=2, listen="127.0.0.1:0", log_level="critical") as coordinator:
        joined = devices.join(coordinator.listen, 30)  # so many that both workers have some
        cohort = coordinator.get_participants(30, timeout=20)
        by_id = {device.id: device for device in joined}
        victim = cohort[0].worker
        doomed = {proxy for proxy in cohort if proxy.worker == victim}
        assert 1 < len(doomed) < 29
        held = {next(proxy for proxy in cohort if proxy.worker == worker) for worker in (0, 1)}
        messages: Any = [
            tensors({"x": np.array([1 << number])}, hold=proxy in held) for number, proxy in enumerate(cohort)
        ]
        told: list[Progress] = []
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(cohort.reduce, messages, "sum", 20, progress=told.append)
            assert all(by_id[proxy.id].holding.wait(20) for proxy in held)
            eventually(lambda: told and told[-1].answered == 28)  # folded, but in no partial yet
            os.kill(coordinator.status().workers[victim].pid, signal.SIGKILL)
            eventually(lambda: not any(proxy.connected for proxy in doomed))
            for proxy in held - doomed:
                by_id[proxy.id].release()
            reduced = call.result(20)
        assert set(reduced.lost) == doomed
        assert set(reduced.folded) == set(cohort) - doomed
        expected = sum(1 << number for number, proxy in enumerate(cohort) if proxy not in doomed)
        assert reduced.tensors["x"].tolist() == [expected]
