"""Memory that is used again never changes under whoever still reads it."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.payloads.blobs import SHARE_SIZE, Blob, open_shared
from manager.payloads.memory import MOST_RESTING, REST_TIME, Memory, can_tell
from protos.frames import Shared
from tests.support import PATIENCE, collect_garbage

pytestmark = pytest.mark.skipif(not can_tell(), reason="this system doesn't know who reads memory")

SIZE = 300_000


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Subject(Memory):
    def __init__(self, most: int = MOST_RESTING) -> None:
        self.clock = Clock()
        super().__init__(most, self.clock)

    def end(self) -> None:
        gc.collect()
        self.clock.now += REST_TIME
        self.forget()
        assert self.resting == 0
        assert not self._sizes, "a piece was never given back"


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Of which all has been given back at the end."""
    collect_garbage()
    before = open_descriptors()
    memory = Subject(getattr(request, "param", MOST_RESTING))
    yield memory
    memory.end()
    assert open_descriptors() == before


def shared(memory: Memory, content: bytes) -> Blob:
    blob = memory.share(content)
    assert isinstance(blob, Blob)
    return blob


def opened(blob: Blob) -> Blob:
    """As another process would."""
    return open_shared(os.getpid(), Shared(blob.descriptor, len(blob)))


def test_a_piece_that_nobody_reads_is_used_again(memory: Subject) -> None:
    blob = shared(memory, b"a" * SIZE)
    descriptor = blob.descriptor
    assert memory.resting == 0
    del blob
    assert memory.resting >= SIZE
    again = shared(memory, b"b" * (SIZE - 1))
    assert again.descriptor == descriptor
    assert memory.resting == 0
    assert bytes(again.view()) == b"b" * (SIZE - 1)
    assert again.head() == b"b" * 16


@pytest.mark.parametrize("mapped", [False, True], ids=["opened", "mapped"])
def test_one_that_another_reads_is_not(memory: Subject, mapped: bool) -> None:
    blob = shared(memory, b"a" * SIZE)
    reader = opened(blob)
    if mapped:
        reader.settle()
        assert reader.descriptor == -1
    del blob
    other = shared(memory, b"b" * SIZE)
    assert bytes(reader.view()) == b"a" * SIZE
    first, second = os.fstat(other.descriptor).st_ino, memory.resting
    del reader, other
    assert memory.resting == 2 * second
    assert os.fstat(shared(memory, b"c" * SIZE).descriptor).st_ino != first, "the older one is free by now"


def test_nor_one_that_another_process_reads(memory: Subject) -> None:
    blob = shared(memory, b"a" * SIZE)
    script = f"import mmap, os; f = os.open('/proc/{os.getpid()}/fd/{blob.descriptor}', os.O_RDONLY); "
    script += f"m = mmap.mmap(f, {SIZE}, access=mmap.ACCESS_READ); os.close(f); print(flush=True); input(); "
    script += "print(m[:] == b'a' * len(m))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        descriptor = blob.descriptor
        del blob
        other = shared(memory, b"b" * SIZE)
        assert other.descriptor != descriptor
        assert reader.communicate(b"\n")[0] == b"True\n"
    again = shared(memory, b"c" * SIZE)
    assert again.descriptor == descriptor, "whoever read it is gone"


FORKED = f"""
import os, sys
from manager.payloads.memory import Memory
memory = Memory()
blob = memory.share(b"a" * {SIZE})
del blob
assert memory.resting
(asked, ask), (done, do) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.read(asked, 1)
    blob = memory.share(b"c" * {SIZE})
    again = memory.share(b"c" * {SIZE})
    del blob
    assert memory.resting  # its own
    os.write(do, b"x")
    os._exit(0)
blob = memory.share(b"b" * {SIZE})
assert not memory.resting, "it isn't used again"
os.write(ask, b"x")
os.read(done, 1)
os.waitpid(child, 0)
assert bytes(blob.view()) == b"b" * {SIZE}, bytes(blob.view()[:1])
"""


def test_a_process_that_was_forked_has_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


def test_nor_one_that_this_process_still_has_a_view_of(memory: Subject) -> None:
    blob = shared(memory, b"a" * SIZE)
    view = blob.view()
    blob.settle()  # it rests, as far as the memory knows
    assert memory.resting >= SIZE
    del blob
    other = shared(memory, b"b" * SIZE)
    assert bytes(view) == b"a" * SIZE
    assert bytes(other.view()) == b"b" * SIZE


def test_what_nobody_needs_is_let_go_of_after_a_while(memory: Subject) -> None:
    descriptors = open_descriptors()
    blobs = [shared(memory, bytes(SIZE)) for _ in range(3)]
    del blobs[0]
    memory.clock.now += REST_TIME / 2
    blobs.clear()
    memory.clock.now += REST_TIME / 2
    memory.forget()
    assert open_descriptors() == descriptors + 2
    memory.clock.now += REST_TIME / 2
    memory.forget()
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("memory", [3 * SIZE], indirect=True)
def test_no_more_than_so_much_is_kept_and_nothing_large(memory: Subject) -> None:
    descriptors = open_descriptors()
    blobs = [shared(memory, bytes(SIZE)) for _ in range(10)]
    blobs.clear()
    assert SIZE <= memory.resting <= 3 * SIZE
    assert open_descriptors() <= descriptors + 2
    large = shared(memory, bytes(8 * 1024**2))
    rests = memory.resting
    del large
    assert memory.resting == rests


def test_without_room_to_keep_it_everything_is_as_new_and_sealed() -> None:
    memory = Memory(0)
    blob = shared(memory, b"a" * SIZE)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(blob.descriptor, b"X", 0)
    assert bytes(blob.view()) == b"a" * SIZE
    assert memory.resting == 0


def test_nobody_can_shorten_it(memory: Subject) -> None:
    blob = shared(memory, bytes(SIZE))
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(blob.descriptor, 3)


def test_small_ones_and_those_that_are_shared_stay_what_they_are(memory: Subject) -> None:
    assert memory.share(b"small") == b"small"
    blob = Blob.of(bytes(SIZE))
    assert memory.share(blob) is blob


def test_several_threads_at_once_get_different_pieces(memory: Subject) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(50):
            content = bytes([number, turn]) * SHARE_SIZE
            reader = opened(shared(memory, content))
            if bytes(reader.view()) != content:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Interrupting:
    """A lock in which something else happens once, in the thread that has just got it."""

    def __init__(self, lock: threading.Lock, then: Callable[[], object]) -> None:
        self._lock = lock
        self._then: Callable[[], object] | None = then

    def acquire(self, blocking: bool = True) -> bool:
        got = self._lock.acquire(blocking)
        if got and self._then is not None:
            then, self._then = self._then, None
            then()
        return got

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("meanwhile", ["take", "give back", "forget"])
def test_a_garbage_collection_may_give_it_back_in_the_thread_that_has_the_lock(meanwhile: str) -> None:
    collect_garbage()
    memory = Subject()
    kept = [shared(memory, b"a" * SIZE)]
    cycle: list[Any] = [shared(memory, b"b" * SIZE)]
    cycle.append(cycle)
    del cycle
    steps: dict[str, Callable[[], object]] = {
        "take": lambda: kept.append(shared(memory, b"c" * SIZE)),
        "give back": kept.clear,
        "forget": memory.forget,
    }
    before = memory.resting
    memory._lock = Interrupting(memory._lock, gc.collect)  # type: ignore[assignment]
    thread = threading.Thread(target=steps[meanwhile], daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits for itself"
    kept.clear()
    assert memory.resting >= before + 2 * SIZE
    memory.end()


def test_what_rests_is_not_lost_while_no_file_can_be_opened(memory: Subject) -> None:
    blobs = [shared(memory, bytes(SIZE)) for _ in range(3)]
    descriptors = {blob.descriptor for blob in blobs}
    blobs.clear()
    rests = memory.resting
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        payloads = [memory.share(bytes(SIZE)) for _ in range(5)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not any(isinstance(payload, Blob) for payload in payloads)
    assert memory.resting == rests
    blobs = [shared(memory, bytes(SIZE)) for _ in range(3)]
    assert {blob.descriptor for blob in blobs} == descriptors


steps = st.lists(
    st.tuples(st.sampled_from(["share", "drop", "read", "view", "settle", "forget"]), st.integers(0, 10**6)),
    max_size=60,
)


@settings(max_examples=30)
@given(steps)
def test_whatever_is_kept_by_whomever_stays_what_it_was(what: list[tuple[str, int]]) -> None:
    memory = Subject(most=6 * SHARE_SIZE)
    follow(memory, what)
    memory.end()


def follow(memory: Subject, what: list[tuple[str, int]]) -> None:
    blobs: list[tuple[Blob, bytes]] = []
    kept: list[tuple[Blob | memoryview, bytes]] = []
    for step, number in what:
        if step == "share":
            content = number.to_bytes(4, "big") * (SHARE_SIZE // (4 - number % 3))
            blobs.append((shared(memory, content), content))
        elif step == "forget":
            memory.clock.now += number % 10
            memory.forget()
        elif step == "drop" and kept:
            del kept[number % len(kept)]
        elif blobs:
            blob, content = blobs.pop(number % len(blobs))
            if step == "read":
                kept.append((opened(blob), content))
            elif step == "view":
                kept.append((blob.view(), content))
            elif step == "settle":
                blob.settle()
                kept.append((blob, content))
            del blob
        for reader, expected in kept:
            assert bytes(reader.view() if isinstance(reader, Blob) else reader) == expected
