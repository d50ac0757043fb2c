"""A process gives memory back once it has worked or many have left, and opens as many files as it may."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.settings import default_workers
from manager.usage import (
    NO_LIMIT,
    TRIM_CPU,
    TRIM_INTERVAL,
    TRIM_SESSIONS,
    Trimmer,
    allow_many_files,
    resident_bytes,
    trim,
)

resource = pytest.importorskip("resource")

NOW = 1000.0
LATER = NOW + TRIM_INTERVAL
WORKED = TRIM_CPU


def test_nothing_is_given_back_before_there_was_any_work() -> None:
    trimmer = Trimmer(NOW)
    assert not trimmer.due(NOW, 0.0, 0)
    assert not trimmer.due(LATER, 0.0, 0)
    assert not trimmer.due(LATER + 100 * TRIM_INTERVAL, WORKED / 2, 10)


def test_memory_is_given_back_by_and_by_while_there_is_work() -> None:
    trimmer = Trimmer(NOW)
    assert not trimmer.due(LATER - 0.01, 100 * WORKED, 10)
    assert trimmer.due(LATER, 100 * WORKED, 10)
    assert not trimmer.due(LATER + TRIM_INTERVAL - 0.01, 200 * WORKED, 10)
    assert trimmer.due(LATER + TRIM_INTERVAL, 200 * WORKED, 10)


def test_whoever_has_idled_since_the_last_time_has_nothing_to_give_back() -> None:
    trimmer = Trimmer(NOW)
    assert trimmer.due(LATER, 50.0, 10)
    assert not trimmer.due(LATER + 100 * TRIM_INTERVAL, 50.0 + WORKED / 2, 10)
    assert trimmer.due(LATER + 101 * TRIM_INTERVAL, 50.0 + 2 * WORKED, 10)


def test_when_many_have_left_it_is_given_back_at_once() -> None:
    trimmer = Trimmer(NOW)
    assert not trimmer.due(NOW, 0.0, 1000)
    assert not trimmer.due(NOW + 0.1, 0.0, 1001 - TRIM_SESSIONS)
    assert trimmer.due(NOW + 0.2, 0.0, 1000 - TRIM_SESSIONS)
    assert not trimmer.due(NOW + 0.3, 0.0, 1000 - TRIM_SESSIONS), "they are counted once"
    assert not trimmer.due(NOW + 0.4, 0.0, 1001 - 2 * TRIM_SESSIONS)


def test_those_who_leave_little_by_little_count_as_well() -> None:
    trimmer = Trimmer(NOW)
    due = [trimmer.due(NOW, 0.0, sessions) for sessions in range(1200, 0, -100)]
    assert [index for index, each in enumerate(due) if each] == [
        TRIM_SESSIONS // 100,
        2 * TRIM_SESSIONS // 100,
    ]


def test_whoever_comes_in_the_place_of_those_who_left_needs_their_memory() -> None:
    trimmer = Trimmer(NOW)
    fewer = 1001 - TRIM_SESSIONS
    assert not any(trimmer.due(NOW, 0.0, sessions) for sessions in [1000, fewer] * 10)


def test_after_many_have_left_the_interval_begins_anew() -> None:
    trimmer = Trimmer(NOW)
    trimmer.due(NOW, 0.0, TRIM_SESSIONS)
    assert trimmer.due(NOW + 5, 7.0, 0)
    assert not trimmer.due(NOW + TRIM_INTERVAL, 14.0, 0)
    assert trimmer.due(NOW + 5 + TRIM_INTERVAL, 14.0, 0)


@given(
    st.lists(
        st.tuples(st.floats(0, 2 * TRIM_INTERVAL), st.floats(0, 2 * TRIM_CPU), st.integers(0, 1200)),
        max_size=30,
    )
)
def test_it_is_given_back_for_a_reason_and_whenever_there_is_one(
    steps: list[tuple[float, float, int]],
) -> None:
    trimmer = Trimmer(NOW)
    now, cpu = last, last_cpu = NOW, 0.0
    seen = [0]
    for passed, used, sessions in steps:
        now, cpu = now + passed, cpu + used
        seen.append(sessions)
        worked = now - last >= TRIM_INTERVAL and cpu - last_cpu >= TRIM_CPU
        many_left = any(before - sessions >= TRIM_SESSIONS for before in seen)
        due = trimmer.due(now, cpu, sessions)
        assert due == (worked or many_left)
        if due:
            last, last_cpu, seen = now, cpu, [sessions]


class Cycle:
    """Something that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def no_automatic_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Libc:
    """A C library that takes note of what it is asked for."""

    def __init__(self) -> None:
        self.trimmed: list[int] = []

    def malloc_trim(self, keep: int) -> int:
        self.trimmed.append(keep)
        return 1


def test_garbage_is_collected_before_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch, no_automatic_collection: None
) -> None:
    libc = Libc()
    alive = weakref.ref(Cycle())
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    assert alive() is not None
    trim()
    assert alive() is None
    assert libc.trimmed == [0]


def other_libc(_name: None) -> Any:
    return object()


def no_libc(_name: None) -> Any:
    raise OSError("no such library")


@pytest.mark.parametrize("load", [other_libc, no_libc])
def test_where_there_is_no_glibc_only_garbage_is_collected(
    monkeypatch: pytest.MonkeyPatch, no_automatic_collection: None, load: Any
) -> None:
    alive = weakref.ref(Cycle())
    monkeypatch.setattr(ctypes, "CDLL", load)
    trim()
    assert alive() is None


def test_giving_memory_back_leaves_what_is_used() -> None:
    kept = [bytes([number % 251]) * 1000 for number in range(1000)]
    trim()
    assert kept == [bytes([number % 251]) * 1000 for number in range(1000)]
    assert resident_bytes() > len(kept) * 1000


@pytest.fixture
def few_files() -> Iterator[int]:
    """Fewer files than this process may open; gives how many that is."""
    fewer, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(fewer, 256) if fewer > 0 else 256, most))
    try:
        yield most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fewer, most))


def test_as_many_files_may_be_open_as_the_system_allows(few_files: int) -> None:
    assert allow_many_files() == (min(few_files, NO_LIMIT) if few_files > 0 else NO_LIMIT)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_files, few_files)
    assert allow_many_files() == (min(few_files, NO_LIMIT) if few_files > 0 else NO_LIMIT)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_files, few_files)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_system_that_does_not_allow_more_files_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise error("not allowed to raise it")

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    files = allow_many_files()
    assert files == (min(before[0], NO_LIMIT) if before[0] > 0 else NO_LIMIT)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_system_without_a_limit_counts_as_one_with_a_high_one(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert allow_many_files() == NO_LIMIT


@pytest.mark.skipif(sys.platform == "darwin", reason="NumPy may use another library there")
@pytest.mark.parametrize(("environment", "more"), [({}, False), ({"OMP_NUM_THREADS": "2"}, True)])
def test_numpy_starts_no_threads_unless_somebody_wants_them(environment: dict[str, str], more: bool) -> None:
    code = "\n".join(
        [
            "import psutil",
            "from manager.usage import leave_linear_algebra_single",
            "leave_linear_algebra_single()",
            "before = psutil.Process().num_threads()",
            "import numpy",
            "print(psutil.Process().num_threads() - before)",
        ]
    )
    others = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    started = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**others, **environment},
    )
    assert bool(int(started.stdout)) is (more and default_workers() > 1)
