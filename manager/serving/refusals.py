"""Ends the streams of those who may not stay: says why, in a status and in the log, and counts.

Each gets its words as surely as HTTP/2 allows: a client whose message is cut off may see that error rather
than the one it is meant to see, so for a moment it is heard out. Who may not stay, others decide: gate.py,
servicer.py and session.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from manager.core.members import readable
from manager.logs import Sparingly
from manager.serving.refused import Cause, Refused
from manager.serving.stream import Stream, reconnect_message
from manager.serving.verdicts import LEAVE_TIMEOUT, Verdict

log = logging.getLogger("muster.servicer")

HEAR_OUT_TIME: Final = 1.0
MOST_HEARD_OUT: Final = 16
"""Seconds that a stranger gets for its first message, and how many get them at once: each message may take up
4 MiB. The others are cut off."""

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Refusals:
    """Those of one worker."""

    def __init__(self, refused: Refused) -> None:
        """Counts in ``refused``."""
        self._log = Sparingly(log)
        self._heard_out = 0
        self._refused = refused

    async def stranger(self, context: _Context, text: str) -> None:
        """For one who has not shown who it is. Nothing of it is kept."""
        self._note(Cause.CREDENTIALS, f"a participant at {readable(context.peer())}", text)
        await self._hear_out(context)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

    async def too_large(self, context: _Context, text: str) -> None:
        """For one whose call is larger than it may be before it has said anything."""
        self._note(Cause.MAX_METADATA, f"a participant at {readable(context.peer())}", text)
        await self._hear_out(context)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)

    async def _hear_out(self, context: _Context) -> None:
        if self._heard_out < MOST_HEARD_OUT:
            self._heard_out += 1
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEAR_OUT_TIME):
                        await context.read()
            finally:
                self._heard_out -= 1

    async def too_many(self, context: _Context, text: str, delay: float, *, wait: bool) -> None:
        """For one that there is no room for: it is to come back after ``delay`` seconds.

        Without ``wait`` it is cut off, and whether it reads that is its business.
        """
        text += f"; come back in {delay:.0f} s"
        peer = readable(context.peer())
        self._log.warning("no room", "ended the stream of a participant at %s: %s", peer, text)
        if not wait:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        await context.write(reconnect_message(delay))
        data: Any = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                while data is not grpc.aio.EOF:
                    data = await context.read()
                return
        await context.abort(grpc.StatusCode.UNAVAILABLE, text)

    async def cut_off(self, stream: Stream, context: _Context, verdict: Verdict) -> None:
        """For a stream that was let in, and has ended."""
        if verdict.cause is not None:
            self._note(verdict.cause, str(stream), verdict.text, verdict.code.name)
        await context.abort(verdict.code, verdict.text)

    def _note(self, cause: Cause, who: str, text: str, kind: str = "") -> None:
        self._refused[cause] += 1
        self._log.warning(cause + kind, "ended the stream of %s: %s", who, text)
