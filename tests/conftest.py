"""For all tests: nothing may be left behind, and how Hypothesis searches.

It searches without a deadline (a busy machine is no bug), and the same every time in CI.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from coordinator.settings import default_workers
from tests.support import collect_garbage, eventually

settings.register_profile("muster", deadline=None, max_examples=50)
settings.register_profile("muster-ci", parent=settings.get_profile("muster"), derandomize=True)
settings.load_profile("muster-ci" if os.environ.get("CI") else "muster")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Twice the CPUs, because tests wait half of their time, and one for those that only wait (``long``)."""
    return 2 * default_workers() + 1


@pytest.hookimpl(trylast=True)  # of those that were selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What mostly waits (``long``) comes first in two test processes, while others keep the CPUs busy.

    To begin with, each process gets as many tests as the others, in this order.
    """
    seconds = {
        item: float(mark.args[0]) for item in items if (mark := item.get_closest_marker("long")) is not None
    }
    one: list[pytest.Item] = []
    two: list[pytest.Item] = []
    for item in sorted(seconds, key=seconds.__getitem__, reverse=True):
        min(one, two, key=lambda half: sum(map(seconds.__getitem__, half))).append(item)
    others = [item for item in items if item not in seconds]
    size = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = one + others
    items[size:size] = two


def pytest_collection_finish() -> None:
    """What lives by now lives to the end: nobody who collects garbage has to look through it again."""
    collect_garbage()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests log may be no Unicode. Where they run in several processes it is sent all the same."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True, scope="session")
def temporary_directory_of_our_own() -> Iterator[None]:
    """What appears in it is ours, whatever else runs on the machine."""
    with tempfile.TemporaryDirectory(prefix="tests-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        patch.delenv("XDG_RUNTIME_DIR", raising=False)
        patch.setattr(tempfile, "tempdir", directory)
        yield


@pytest.fixture(autouse=True, scope="session")
def signals_as_in_a_terminal() -> None:
    """With nohup, or in the background of a shell, some are ignored, and processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _processes() -> list[psutil.Process]:
    """All that descend from this one. Most often there are none, and that the system tells at once."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return []
    return psutil.Process().children(recursive=True)


def _things() -> set[str]:
    """What a test may leave behind: child processes, threads, run directories."""
    children = (f"process {child.pid}" for child in _processes())
    threads = (
        f"thread {thread.name}"
        for thread in threading.enumerate()
        # gRPC's own and pyzmq's own, one per process, for ever:
        if "_poll_wrapper" not in thread.name and type(thread).__name__ != "GarbageCollectorThread"
    )
    directories = (f"directory {path}" for path in Path(tempfile.gettempdir()).glob("muster-*/*"))
    return {*children, *threads, *directories}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fails a test that leaves something behind. What a wider fixture holds was there before."""
    before = _things()
    yield
    left: set[str] = set()

    def clean() -> bool:
        nonlocal left
        left = _things() - before
        return not left

    try:
        eventually(clean)
    except AssertionError:
        pytest.fail(f"left behind: {', '.join(sorted(left))}")
