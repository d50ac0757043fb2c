"""What callers' timeouts mean: they run from the moment of the call, however large the instruction is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from manager.api.cohort import AsyncCohort
from manager.api.proxy import AsyncParticipantProxy, Handle
from manager.payloads.blobs import SHARE_SIZE
from tests.manager.support import make_member
from tests.support import instruction


class Slow:
    """A backend that takes 3 s to keep an instruction, by its own clock, and gets no answers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timeouts: list[float | None] = []

    def keep(self, instruction: bytes) -> bytes:
        self.now += 3.0
        return instruction

    def start_call(self, members: Any, payloads: Any, timeout: float | None, quorum: Any) -> Any:
        self.timeouts.append(timeout)
        raise asyncio.CancelledError

    stream_call = start_call


@pytest.mark.parametrize(
    "call",
    [
        lambda cohort, timeout: cohort.run(instruction("echo", bytes(SHARE_SIZE)), timeout=timeout),
        lambda cohort, timeout: cohort[0].run(instruction("echo", bytes(SHARE_SIZE)), timeout=timeout),
    ],
    ids=["cohort", "proxy"],
)
def test_the_time_to_prepare_a_large_instruction_is_part_of_the_timeout(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Any, float | None], Coroutine[Any, Any, object]]
) -> None:
    backend = Slow()
    for module in ("core.backend", "api.cohort", "api.proxy"):
        monkeypatch.setattr(f"manager.{module}.time", SimpleNamespace(monotonic=lambda: backend.now))
    member: Any = make_member(1, "a")
    handle: Any = Handle(member, backend, None)  # type: ignore[arg-type]
    cohort: Any = AsyncCohort([AsyncParticipantProxy(handle)], backend)  # type: ignore[arg-type]
    for timeout in (10.0, 2.0, None):
        with pytest.raises(asyncio.CancelledError):
            call(cohort, timeout).send(None)
    assert backend.timeouts == [7.0, 0.0, None]
