"""One stream to a coordinator, as whole messages: the asyncio shell around a gRPC call.

Joins and splits chunks (protos.chunks), turns the stream's end into an error (status.py; protos.tls has a
look where there was no connection), and says goodbye. Whose turn it is to speak is decided elsewhere: by the
user of a Connection, or by lifecycle.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from participant_sdk.address import host_and_port
from participant_sdk.channel import CONNECT, _channel
from participant_sdk.credentials import Credentials
from participant_sdk.errors import ConnectionClosed, ParticipantError, ProtocolError
from participant_sdk.status import error_of, needs_diagnosis
from protos import stream_pb2
from protos.chunks import Assembler, Pieces, in_memory, in_one_buffer, read_chunk
from protos.ending import Ending
from protos.envelope import MalformedMessageError
from protos.sliced import ReceivedMessage
from protos.tls import diagnose

LEAVE_TIMEOUT: Final = 3.0
"""Seconds that a goodbye may take before the stream is cut off."""

_CHUNK: Final = bytes([stream_pb2.ServerMessage.CHUNK_FIELD_NUMBER << 3 | 2])
"""What a chunk begins with (PROTOCOL.md A.2)."""

_GRPC_ERRORS: Final = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)

T = TypeVar("T")


class Stream:
    """Opens at once; a coordinator that can't be reached shows in the first read or write.

    Reading and writing may go on at the same time. Both may be cancelled without harm: the message is read or
    written to its end all the same, and the next call goes on from there.

    With ``slicing``, a message that comes in chunks keeps its bulk in the memory that it is received in; else
    it is parsed.
    """

    def __init__(self, address: str, credentials: Credentials, *, slicing: bool) -> None:
        """Reads the credentials' files. Raises CredentialsError if they can't be used."""
        self.address = address
        self._credentials = credentials
        self._shown = credentials.metadata(address)
        self._channel = _channel(address, credentials.for_channel())
        # None once it is closed: gRPC closes the TCP connection only when nobody has the call any more, and
        # who has this stream depends on tracebacks, hence on the garbage collector.
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = self._channel.stream_stream(CONNECT)(
            metadata=self._shown
        )
        self._verdict = Ending(self._call)
        self._assembler: Assembler[bytes | memoryview] = Assembler(in_one_buffer if slicing else in_memory)
        self._turn_to_read = asyncio.Lock()
        self._turn_to_write = asyncio.Lock()
        self._reading: asyncio.Task[ReceivedMessage] | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Lock()
        self._error: ParticipantError | None = None
        self._closed = False

    async def connected(self) -> None:
        """Waits until there is a connection. Raises the ParticipantError that says why there won't be one."""
        try:
            await self._open_call().wait_for_connection()
        except (*_GRPC_ERRORS, asyncio.CancelledError) as error:
            raise await self._end(error) from None

    async def read(self) -> ReceivedMessage:
        """The next message, which nobody else gets. Raises a ParticipantError once there will be none."""
        async with self._turn_to_read:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
            # gRPC cancels the whole call when a read is cancelled, hence the task, which the next one finds.
            await asyncio.wait([self._reading])
            reading, self._reading = self._reading, None
            return self._result(reading)

    async def write(self, data: bytes | memoryview) -> None:
        """Sends a serialised ParticipantMessage; returns when it is handed to the network.

        Raises a ParticipantError if the stream has ended.
        """
        writing = self.send(data)
        await asyncio.wait([writing])
        self._result(writing)

    def send(self, data: bytes | memoryview) -> asyncio.Task[None]:
        """The same without waiting. Messages go out one after the other, in the order of the calls."""
        writing = asyncio.create_task(self._write(data))
        self._writing.add(writing)
        writing.add_done_callback(self._written)
        return writing

    async def leave(self, reason: str | None = "") -> None:
        """Says goodbye, waits for the coordinator to end the stream, and closes it; LEAVE_TIMEOUT at most.

        ``reason`` None: the goodbye has been said.
        """
        try:
            with contextlib.suppress(ParticipantError):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    if reason is not None:
                        leave = stream_pb2.Leave(reason=reason)
                        await self.write(stream_pb2.ParticipantMessage(leave=leave).SerializeToString())
                    await self._drain()
        except TimeoutError:
            pass
        finally:
            await self.close()

    async def close(self) -> None:
        """Cuts the stream off, if it hasn't ended, and frees the connection."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()
        tasks = [*self._writing, *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._call = None
        async with self._turn_to_read:  # all who waited for theirs have learnt of it
            await self._channel.close()

    def _open_call(self) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        if self._call is None:
            raise self._over()
        return self._call

    def _result(self, task: asyncio.Task[T]) -> T:
        """Of a task of our own that is done. That ``close`` cancelled it is no cancellation of who waited."""
        if task.cancelled() and self._closed:
            raise self._over()
        return task.result()

    def _over(self) -> ConnectionClosed:
        return ConnectionClosed(f"the stream to {self.address} is closed", "connect again to go on")

    async def _drain(self) -> None:
        """Half-closes, and drops what still arrives until the coordinator ends the stream."""
        with contextlib.suppress(*_GRPC_ERRORS):
            await self._open_call().done_writing()
        while True:
            await self.read()

    async def _read(self) -> ReceivedMessage:
        while True:
            if self._error is not None:
                raise self._error
            try:
                frame = await self._open_call().read()
            except (*_GRPC_ERRORS, asyncio.CancelledError) as error:
                raise await self._end(error) from None
            if not isinstance(frame, bytes):  # the end of the stream
                raise await self._end()
            message = self._whole(frame)
            if message is not None:
                return message

    def _whole(self, frame: bytes) -> ReceivedMessage | None:
        try:
            if frame.startswith(_CHUNK):
                data = self._assembler.add(*read_chunk(frame, stream_pb2.ServerMessage))
                if data is None:
                    return None
            elif self._assembler.partial:
                raise MalformedMessageError("another message came between two chunks")
            else:
                data = frame
            if isinstance(data, memoryview):
                message = ReceivedMessage.sliced(data)
            else:
                message = ReceivedMessage(stream_pb2.ServerMessage.FromString(data))
            if message.message.WhichOneof("kind") == "chunk":
                raise MalformedMessageError("chunks within chunks")
        except (MalformedMessageError, DecodeError) as error:
            self._error = ProtocolError(
                f"the coordinator at {self.address} sent what can't be read: {error}",
                "check that both sides speak the same version of the protocol",
            )
            raise self._error from error
        return message

    async def _write(self, data: bytes | memoryview) -> None:
        async with self._turn_to_write:
            for frame in Pieces(data, stream_pb2.ParticipantMessage):
                if self._error is not None:
                    raise self._error
                try:
                    await self._open_call().write(frame)
                except (*_GRPC_ERRORS, asyncio.CancelledError) as error:
                    raise await self._end(error) from None

    async def _end(self, error: BaseException | None = None) -> ParticipantError:
        """How the stream ended. Re-raises ``error`` if it is the cancellation of this task."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise error  # else it is how gRPC puts a call that the other side cancelled
        if error is not None:
            error.__traceback__ = None  # gRPC's frames have the call
        if self._closed:
            return self._over()
        async with self._ending:  # a reader and a writer find out at the same time
            if self._error is None:
                why = await self._find_out_why()
                self._error = self._error or why
        return self._error

    async def _find_out_why(self) -> ParticipantError:
        code, details = await self._verdict.wait()
        diagnosis = None
        if needs_diagnosis(code, details) and (where := host_and_port(self.address)) is not None:
            diagnosis = await diagnose(*where, self._credentials.tls)
        renewed = code is grpc.StatusCode.UNAUTHENTICATED and self._credentials.renewed(self._shown)
        return error_of(code, details, self.address, diagnosis=diagnosis, renewed=renewed)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where the writer was cancelled and nobody else looks
