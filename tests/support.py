"""What the tests that use real sockets and processes share.

``eventually`` waits for a condition. ``Devices`` are participants whose every move a test decides, on raw
gRPC and independent of the SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import grpc
import grpc.aio

from protos import messages, stream_pb2
from protos.chunks import Assembler, Pieces, in_memory

T = TypeVar("T")

CONNECT = "/muster.stream.v1.ParticipantManager/Connect"
PATIENCE = 20.0
"""Seconds that a test waits for what should happen at once; long, for machines under load."""


def collect_garbage() -> None:
    """All of it. What is left isn't looked at again by collections that follow, which are quick then."""
    gc.collect()
    gc.freeze()


def eventually(condition: Callable[[], T | None], timeout: float = PATIENCE, what: str = "") -> T:
    """Waits until the condition holds and returns its value; fails with the last value if it never does."""
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        last = waited > timeout  # this process may have been held up itself since the look before
        value = condition()
        if value:
            return value
        if last:
            raise AssertionError(f"{what or 'the condition'} did not come true in {timeout:g} s: {value!r}")
        time.sleep(min(max(0.01, waited / 20), 0.1))  # to look costs time, of others, too


def instruction(name: str, payload: bytes = b"") -> stream_pb2.ServerMessage:
    return stream_pb2.ServerMessage(instruction=stream_pb2.Instruction(name=name, payload=payload))


def tensors(
    arrays: Mapping[str, Any],
    weight: float = 1.0,
    metrics: Mapping[str, Any] | None = None,
    *,
    hold: bool = False,
) -> stream_pb2.ServerMessage:
    """Asks a Device for a result with these tensors, metrics and weight; with ``hold`` only once released."""
    asked = json.dumps({"weight": weight, "metrics": metrics or {}, "hold": hold}).encode()
    return messages.instruction("tensors", tensors=arrays, payload=asked)


class Device:
    """One participant. What it does is told by the name of the instruction:

    ``echo`` answers with its id and the payload; ``hold`` does so only once the test calls ``release``;
    ``tensors`` answers with the instruction's own tensors, and with weight and metrics as its payload says in
    JSON, after ``release`` if that says so (``tensors`` below makes the instruction); ``raw`` answers with
    the payload as its whole message; ``fail`` answers with a failure; ``empty`` with an empty message;
    ``die`` cuts the connection; ``garbage`` answers with bytes that are no protobuf.
    """

    def __init__(
        self,
        devices: Devices,
        address: str,
        hello: stream_pb2.ParticipantMessage | None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        self._devices = devices
        self._hello = hello
        self._released = asyncio.Event()
        self._turn_to_write = asyncio.Lock()
        self._answering: asyncio.Task[None] | None = None
        self.id = hello.hello.participant_id if hello is not None else ""
        self.received: Counter[bytes] = Counter()  # payloads
        self.holding = threading.Event()
        self.cancelled = threading.Event()
        self.reconnect: stream_pb2.Reconnect | None = None
        self.ended: tuple[grpc.StatusCode, str] | None = None
        options = [("grpc.use_local_subchannel_pool", 1)]
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        self._call: Any = self._channel.stream_stream(CONNECT)(metadata=metadata)
        self._task = asyncio.ensure_future(self._live())

    # For the test's thread

    def send(self, data: bytes) -> None:
        """Sends raw bytes, in turn or not."""
        self._devices.run(self._write(data))

    def release(self) -> None:
        self._devices.loop.call_soon_threadsafe(self._released.set)

    def leave(self) -> None:
        """Says goodbye and half-closes."""
        self._devices.run(self._leave())

    def cut(self) -> None:
        """Ends the connection without a word."""
        self._devices.run(self.close())

    # On the loop

    async def close(self) -> None:
        tasks = [self._task, *([self._answering] if self._answering is not None else [])]
        for task in tasks:
            task.cancel()
        self._call.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    async def _live(self) -> None:
        try:
            if self._hello is not None:  # in its turn: it may have joined before gRPC says that this is out
                await self._write(self._hello.SerializeToString())
            async for message in self._messages():
                kind = message.WhichOneof("kind")
                if kind == "reconnect":
                    self.reconnect = message.reconnect
                    await self._call.done_writing()
                elif kind == "cancel":
                    self.cancelled.set()
                else:
                    # Not awaited: a cancel may come while it holds its answer back.
                    self._answering = asyncio.ensure_future(self._answer(message.instruction))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        finally:
            with contextlib.suppress(BaseException):
                self.ended = (await self._call.code(), await self._call.details())

    async def _messages(self) -> AsyncIterator[stream_pb2.ServerMessage]:
        assembler = Assembler(in_memory)
        while True:
            data = await self._call.read()
            if data is grpc.aio.EOF:
                return
            message = stream_pb2.ServerMessage.FromString(data)
            if message.HasField("chunk"):
                whole = assembler.add(message.chunk.total_size, message.chunk.data)
                if whole is None:
                    continue
                message = stream_pb2.ServerMessage.FromString(whole)
            yield message

    async def _answer(self, received: stream_pb2.Instruction) -> None:
        self.received[received.payload] += 1
        match received.name:
            case "die":
                self._call.cancel()
                return
            case "garbage":
                await self._write(b"\x12\x03\xff\xff\xff")
                return
            case "empty":
                await self._write(b"")
                return
            case "fail":
                failure = stream_pb2.Failure(code=stream_pb2.Failure.HANDLER_ERROR, text="as asked")
                await self._write(stream_pb2.ParticipantMessage(failure=failure).SerializeToString())
                return
            case "raw":
                await self._write(received.payload)
                return
            case "tensors":
                asked = json.loads(received.payload)
                if asked["hold"]:
                    await self._hold()
                answer = messages.result(
                    tensors=received.tensors, metrics=asked["metrics"], weight=asked["weight"]
                )
                await self._write(answer.SerializeToString())
                return
            case "hold":
                await self._hold()
        result = stream_pb2.Result(status=self.id, payload=received.payload, weight=1.0)
        await self._write(stream_pb2.ParticipantMessage(result=result).SerializeToString())

    async def _hold(self) -> None:
        self.holding.set()
        await self._released.wait()
        self._released.clear()
        self.holding.clear()

    async def _write(self, data: bytes) -> None:
        async with self._turn_to_write:  # the next may be due before gRPC says that the last is out
            for piece in Pieces(data, stream_pb2.ParticipantMessage):
                await self._call.write(piece)

    async def _leave(self) -> None:
        message = stream_pb2.ParticipantMessage(leave=stream_pb2.Leave(reason="test"))
        await self._write(message.SerializeToString())  # behind what is being sent
        await self._call.done_writing()


class Devices:
    """Devices on an event loop in a thread of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="devices")
        self._thread.start()
        self._all: list[Device] = []

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def join(
        self, address: str, count: int = 1, *, prefix: str = "device", **attributes: str
    ) -> list[Device]:
        """Connects devices named ``prefix``-0 and so on."""
        return [
            self.one(
                address,
                stream_pb2.ParticipantMessage(
                    hello=stream_pb2.Hello(
                        participant_id=f"{prefix}-{number}", attributes=attributes, accepts_cancel=True
                    )
                ),
            )
            for number in range(count)
        ]

    def one(
        self,
        address: str,
        hello: stream_pb2.ParticipantMessage | None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> Device:
        """A device whose first message is ``hello``; with None it opens its stream and says nothing.

        With ``credentials`` it connects by TLS; ``token`` is one for the metadata.
        """

        async def make() -> Device:
            return Device(self, address, hello, credentials, token)

        device = self.run(make())
        self._all.append(device)
        return device

    def clear(self) -> None:
        """Cuts all connections."""

        async def close_all() -> None:
            await asyncio.gather(*(device.close() for device in self._all))

        self.run(close_all())
        self._all.clear()

    def close(self) -> None:
        self.clear()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
