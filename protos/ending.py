"""How a call of grpc.aio has ended, as the other side put it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import grpc

VERDICT_TIMEOUT: Final = 1.0

_MASKED: Final = "Internal error from Core"

T = TypeVar("T")


class Ending:
    """The status of one call.

    A write that fails because the other side has ended the call overwrites the call's true status with an
    INTERNAL of gRPC's own, before anybody can await it. A callback of the call sees the true one in time.
    """

    def __init__(self, call: Any) -> None:
        self._status: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)

    async def wait(self) -> tuple[grpc.StatusCode, str]:
        """Status and text; of a call that has ended, or is about to."""
        try:
            async with asyncio.timeout(VERDICT_TIMEOUT):
                return await asyncio.shield(self._status)
        except TimeoutError:
            return grpc.StatusCode.UNAVAILABLE, "the stream broke"

    def _note(self, call: Any) -> None:
        if self._status.done():
            return
        details = _value_of(call.details()) or ""
        if details != _MASKED:
            self._status.set_result((_value_of(call.code()), details))


def _value_of(ready: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    ready.close()
    raise RuntimeError("the call has no status yet")
