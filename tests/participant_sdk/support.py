"""A coordinator that follows a script: the other end of the stream, for tests of the SDK.

It is a real grpc.aio server on a free port, in a thread with a loop of its own, so that blocking and asyncio
tests use it alike. Each new stream runs the next script; what a script asserts is raised when the block ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import grpc
import grpc.aio

from participant_sdk.base import BaseParticipant
from protos import messages, stream_pb2
from protos.chunks import Assembler, Pieces, in_memory

SERVICE = "muster.stream.v1.ParticipantManager"
PATIENCE = 10.0
"""Seconds after which a test gives up waiting for something that should have happened at once."""

Script = Callable[["Peer"], Awaitable[None]]

Make: TypeAlias = Callable[..., BaseParticipant]
"""Participant or aio.Participant."""

CANCEL = stream_pb2.ServerMessage(cancel=stream_pb2.Cancel())


def reconnect(delay: float, address: str = "") -> stream_pb2.ServerMessage:
    message = stream_pb2.Reconnect(delay_seconds=delay, address=address)
    return stream_pb2.ServerMessage(reconnect=message)


class Peer:
    """The server's end of one stream."""

    def __init__(self, frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._frames = frames
        self._context = context
        self.connection = context.peer()
        self.metadata = dict(context.invocation_metadata() or ())
        self.names = [name.decode() for name in context.auth_context().get("x509_common_name", ())]
        self.frames_received = 0

    async def receive(self) -> stream_pb2.ParticipantMessage:
        """The next whole message. Raises StopAsyncIteration at the end of the stream."""
        assembler = Assembler(in_memory)
        while True:
            frame = await self.receive_raw()
            message = stream_pb2.ParticipantMessage.FromString(frame)
            if message.WhichOneof("kind") != "chunk":
                assert not assembler.partial
                return message
            whole = assembler.add(message.chunk.total_size, message.chunk.data)
            if whole is not None:
                return stream_pb2.ParticipantMessage.FromString(whole)

    async def receive_raw(self) -> bytes:
        frame = await asyncio.wait_for(anext(self._frames), PATIENCE)
        self.frames_received += 1
        return frame

    async def send(self, message: stream_pb2.ServerMessage) -> None:
        for frame in Pieces(message.SerializeToString(), stream_pb2.ServerMessage):
            await self.send_raw(frame)

    async def send_raw(self, frame: bytes) -> None:
        await self._context.write(frame)

    async def ask(self, name: str = "train", **arguments: Any) -> stream_pb2.ParticipantMessage:
        """Sends an instruction and returns its answer."""
        await self.send(messages.instruction(name, **arguments))
        return await self.receive()

    async def end(self, code: grpc.StatusCode, text: str) -> None:
        await self._context.abort(code, text)

    async def expect_leave(self) -> stream_pb2.ParticipantMessage:
        """A leave, then the end of the stream."""
        message = await self.receive()
        assert message.WhichOneof("kind") == "leave", message
        await self.expect_end()
        return message

    async def expect_end(self) -> None:
        try:
            message = await self.receive()
        except StopAsyncIteration:
            return
        raise AssertionError(f"expected the end of the stream, not {message}")


class ScriptedCoordinator:
    """``with ScriptedCoordinator(first, second) as coordinator:``: streams run the scripts in this order.

    It speaks plaintext without credentials.
    """

    def __init__(
        self,
        *scripts: Script,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self.address = ""
        self._credentials = credentials
        self._interceptors = interceptors
        self._scripts = list(scripts)
        self._remaining = len(scripts)
        self._errors: list[BaseException] = []
        self._ready = threading.Event()
        self._all_done = threading.Event()
        if not scripts:
            self._all_done.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shutdown: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="scripted")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self.kill()
        if self._errors:
            raise self._errors[0]

    def wait(self) -> None:
        """Blocks until every script has ended."""
        if not self._all_done.wait(PATIENCE) and not self._errors:
            raise AssertionError(f"{self._remaining} scripts didn't run to their end")

    def kill(self) -> None:
        """Cuts every stream off, as a dying process does."""
        if self._thread.is_alive() and self._loop is not None and self._shutdown is not None:
            self._loop.call_soon_threadsafe(self._shutdown.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._shutdown = asyncio.Event()
        server = grpc.aio.server(interceptors=self._interceptors, options=[("grpc.so_reuseport", 0)])
        handler: Any = grpc.stream_stream_rpc_method_handler(self._connect)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Connect": handler}),)
        )
        if self._credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", self._credentials)
        await server.start()
        self.address = f"127.0.0.1:{port}"
        self._ready.set()
        await self._shutdown.wait()
        await server.stop(0)

    async def _connect(self, frames: Any, context: Any) -> None:
        if not self._scripts:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "there is no script for this stream")
        script = self._scripts.pop(0)
        try:
            await script(Peer(aiter(frames), context))
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:  # the participant cut the stream off, or the server is being killed
            raise
        except Exception as error:
            self._errors.append(error)
            self._all_done.set()
            raise
        finally:
            self._remaining -= 1
            if not self._remaining:
                self._all_done.set()


class Runs(Protocol):
    """Runs a participant to its end."""

    def __call__(self, participant: Any, address: str, **options: Any) -> None: ...


class Running:
    """Runs a participant in a thread of the test's; leaving the block stops it."""

    def __init__(self, run: Runs, participant: BaseParticipant, address: str) -> None:
        self.participant = participant
        self.error: BaseException | None = None

        def target() -> None:
            try:
                run(participant, address)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=target)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.participant.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


class Forever:
    """A script: takes the first message, and then waits until the stream is over."""

    def __init__(self) -> None:
        self.began = threading.Event()

    async def __call__(self, peer: Peer) -> None:
        await peer.receive()
        self.began.set()
        await asyncio.Event().wait()
