"""An adopted process: its end is told once, and signals reach it and nobody else."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import ParamSpec

import pytest

from coordinator.workers.process import AdoptedProcess, SpawnedProcess, describe_exit

PROGRAM = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
print("up", flush=True)
sys.stdin.read()
"""

P = ParamSpec("P")

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert said(process) == "up"
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def in_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def open_files() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


class Ends:
    """Hears of the end of a process."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []
        self.told = asyncio.Event()

    def __call__(self, code: int | None) -> None:
        self.codes.append(code)
        self.told.set()

    async def once(self) -> None:
        async with asyncio.timeout(10):
            await self.told.wait()
        for _ in range(5):  # it would be told again in the next turns of the loop
            await asyncio.sleep(0)
        assert self.codes == [None]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
@in_a_loop
async def test_its_end_is_told_once_and_without_an_exit_code(
    child: subprocess.Popen[str], number: signal.Signals
) -> None:
    ends = Ends()
    process = AdoptedProcess(child.pid, ends)
    assert process.pid == child.pid
    assert ends.codes == []
    process.send_signal(number)
    await ends.once()
    process.join()
    assert child.wait() == -number


@in_a_loop
async def test_its_end_is_told_whoever_ends_it(child: subprocess.Popen[str]) -> None:
    ends = Ends()
    process = AdoptedProcess(child.pid, ends)
    child.communicate()
    await ends.once()
    process.join()


@in_a_loop
async def test_a_signal_reaches_it(child: subprocess.Popen[str]) -> None:
    ends = Ends()
    process = AdoptedProcess(child.pid, ends)
    process.send_signal(signal.SIGTERM)
    assert said(child) == "terminated"
    assert ends.codes == []
    child.kill()
    await ends.once()
    process.join()


@in_a_loop
async def test_a_signal_to_one_that_has_ended_does_nothing(child: subprocess.Popen[str]) -> None:
    ends = Ends()
    process = AdoptedProcess(child.pid, ends)
    child.kill()
    child.wait()
    process.send_signal(signal.SIGKILL)  # its pid may be somebody else's by now
    await ends.once()
    process.join()
    process.send_signal(signal.SIGKILL)


@in_a_loop
async def test_what_does_not_run_can_not_be_adopted(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    with pytest.raises(ProcessLookupError):
        AdoptedProcess(child.pid, Ends())


@in_a_loop
async def test_one_that_turns_out_to_be_another_is_not_adopted(child: subprocess.Popen[str]) -> None:
    before, held = open_files(), set[Path]()

    def is_it() -> bool:
        held.update(open_files())
        return False

    with pytest.raises(ProcessLookupError, match="another one by now"):
        AdoptedProcess(child.pid, Ends(), is_it)
    assert held > before, "whose pid it is was asked before the process was held"
    assert open_files() <= before


@in_a_loop
async def test_nothing_stays_open_of_it(child: subprocess.Popen[str]) -> None:
    before = open_files()
    ends = Ends()
    process = AdoptedProcess(child.pid, ends)
    child.kill()
    await ends.once()
    process.join()
    assert open_files() <= before


@in_a_loop
async def test_where_there_are_no_pidfds_nothing_is_adopted(
    child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(OSError, match="can't be adopted"):
        AdoptedProcess(child.pid, Ends())


@in_a_loop
async def test_one_that_nobody_can_watch_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    with pytest.raises(OSError, match="can't start new thread"):
        SpawnedProcess(["--help"], Ends())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "exit code unknown"),
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-200, "killed by signal 200"),
    ],
)
def test_an_exit_code_is_told_in_words(code: int | None, words: str) -> None:
    assert describe_exit(code) == words
