"""One participant in an event loop: feeds lifecycle.py with events and carries its effects out.

Decides nothing but how: each stream is read by a task, each handler runs in work.py, and every event goes
through one queue, so that the lifecycle sees them one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine
from typing import Any

from participant_sdk.credentials import Credentials
from participant_sdk.errors import CredentialsError, ParticipantError
from participant_sdk.handlers import Handlers
from participant_sdk.lifecycle import (
    Abort,
    Answered,
    Connect,
    Due,
    Effect,
    Ended,
    Event,
    Finish,
    Leave,
    Lifecycle,
    Perform,
    Received,
    Send,
    Stop,
    Wait,
)
from participant_sdk.logs import log_of
from participant_sdk.stream import LEAVE_TIMEOUT, Stream
from participant_sdk.work import HandlerThread, Work
from protos import stream_pb2


class Runner:
    """Runs one participant once, from its first attempt to connect to its end."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        hello: stream_pb2.ParticipantMessage,
        handlers: Handlers,
        *,
        attempts: int | None = None,
    ) -> None:
        self._lifecycle = Lifecycle(address, random=random.SystemRandom().random, attempts=attempts)
        self._credentials = credentials
        self._hello = hello.SerializeToString()
        self._id = hello.hello.participant_id
        self._handlers = handlers
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._thread = HandlerThread(f"handlers of {self._id or 'a participant'}")
        self._work: Work | None = None
        self._stream: Stream | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._goodbye = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Leaves and ends. May be called in any thread, and by a signal handler."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing to stop
            self._loop.call_soon_threadsafe(self._events.put_nowait, Stop())

    async def run(self) -> None:
        """Returns after a stop; raises the ParticipantError that made it give up."""
        self._events.put_nowait(Due())
        finish: Finish | None = None
        try:
            while finish is None:
                finish = self._handle(await self._events.get())
            if finish.error is not None:
                raise finish.error
        finally:
            await self._clean_up(wait_for_thread=finish is not None)

    # A method of its own, so that no event, which may be of any size, lives until the next one comes.
    def _handle(self, event: Event | BaseException) -> Finish | None:
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Stop) and self._work is not None:
            name = self._work.name
            self._log(
                logging.INFO,
                f"stopping once the handler of {name!r} has returned; its answer is not sent any more",
            )
        for effect in self._lifecycle.handle(event, self._loop.time()):
            if isinstance(effect, Finish):
                return effect
            self._carry_out(effect)
        return None

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Connect(address):
                self._conversation = self._spawn(self._converse(address, self._conversation))
            case Perform(received):
                self._work = Work(received, self._handlers, self._thread, self._id)
                self._spawn(self._perform(self._work))
            case Abort() if self._work is not None:
                self._work.abort()
            case Send(data) if self._stream is not None:
                self._stream.send(data)  # if it fails, the reader of the stream learns why
            case Leave(reason):
                self._leave(reason)
            case Wait(seconds, why, unexpected):
                self._log(logging.WARNING if unexpected else logging.INFO, why)
                self._timer = self._loop.call_later(seconds, self._events.put_nowait, Due())

    async def _converse(self, address: str, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        try:
            stream = Stream(address, self._credentials, slicing=True)
        except CredentialsError as error:
            self._events.put_nowait(Ended(error))
            return
        connected = False
        try:
            await stream.connected()
            connected = True
            await stream.write(self._hello)
            self._stream = stream
            # Whether it is let in doesn't show before its first instruction (PROTOCOL.md A.0).
            self._log(logging.INFO, f"reached the coordinator at {address}")
            while True:
                self._events.put_nowait(Received(await stream.read()))
        except ParticipantError as error:
            self._stream = None
            self._events.put_nowait(Ended(error))
        except asyncio.CancelledError:
            if connected:  # the hello may have arrived
                await stream.leave(self._goodbye)
        finally:
            await stream.close()

    async def _perform(self, work: Work) -> None:
        data = await work.answer()
        self._work = None
        self._events.put_nowait(Answered(data))

    def _leave(self, reason: str) -> None:
        self._stream = None
        self._goodbye = reason
        conversation = self._conversation
        if conversation is not None and not conversation.cancelling():  # once: it is saying goodbye by then
            conversation.cancel()

    async def _clean_up(self, *, wait_for_thread: bool) -> None:
        """Leaves nothing behind but, if the run was cut short, a thread whose handler won't return."""
        if self._timer is not None:
            self._timer.cancel()
        self._leave("stopped")
        if self._work is not None:
            await self._work.wind_up(LEAVE_TIMEOUT)
        if self._conversation is not None:
            await asyncio.wait([self._conversation])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.close(wait=wait_for_thread)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.put_nowait(error)  # a bug: it must end the run, not vanish

    def _log(self, level: int, text: str) -> None:
        log_of(self._id, level, text)
