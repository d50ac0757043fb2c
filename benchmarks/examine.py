"""The servers that examine the load generator: every answer of it is known beforehand.

Decides what is said to a participant and what has to come back, for each of its ways to answer. Who runs them
with which options is check_loadgen.py's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np

from benchmarks.baselines.bare_echo import SERVICE
from benchmarks.measure import Report
from protos import stream_pb2
from protos.chunks import CHUNK_SIZE, FIRST_SIZE, WHOLE_SIZE, Assembler, Pieces, in_memory, read_chunk
from protos.envelope import Kind, kind_of
from protos.tensors import to_arrays

Context = grpc.aio.ServicerContext[bytes, bytes]

FRAME = 16384
WINDOW = 65535
SIZES = [0, 1, 100, FRAME - 20, FRAME, WINDOW, WINDOW + 1, 1_000_000, 5 * WHOLE_SIZE, 5 * WHOLE_SIZE + 77]
# A Result has a few bytes around its payload: one of these is exactly at the limit between whole and chunked.
SIZES += [WHOLE_SIZE - overhead for overhead in range(12)]


class Examiner:
    """Serves one conversation per participant, and counts what was as it should be."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """For as many servers."""
        return [_handler(self._connect)]

    def is_over(self, load: Report, participants: int) -> bool:
        """Whether nothing more is to be expected of a load generator that has counted this."""
        return bool(load["left"] + load["lost"] >= participants)

    async def converse(self, talk: Talk) -> None:
        raise NotImplementedError

    async def _connect(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        talk = Talk(context)
        await self.converse(talk)
        reconnect = stream_pb2.Reconnect(delay_seconds=3600, address="elsewhere.example:1")
        await talk.write(stream_pb2.ServerMessage(reconnect=reconnect))
        self.check("leave", (await talk.read()).HasField("leave"))
        end: Any = await context.read()
        self.check("end of stream", end is grpc.aio.EOF)

    def check(self, what: str, right: bool) -> None:
        (self.passed if right else self.failed)[what] += 1

    def is_fine(self, participants: int) -> bool:
        return bool(self.passed) and not self.failed and set(self.passed.values()) == {participants}


def _handler(connect: Callable[[AsyncIterator[bytes], Context], Awaitable[None]]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE, {"Connect": grpc.stream_stream_rpc_method_handler(connect)}
    )


class Talk:
    """What is said to one participant, and what it answers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.pieces: list[int] = []
        """Bytes of the message in each chunk of the last answer; of one that came whole, its size."""

    async def write(self, message: stream_pb2.ServerMessage) -> None:
        for piece in Pieces(message.SerializeToString(), stream_pb2.ServerMessage):
            await self._context.write(piece)

    async def read(self) -> stream_pb2.ParticipantMessage:
        assembler = Assembler(in_memory)
        self.pieces = []
        data: Any = await self._context.read()
        while data is not grpc.aio.EOF and kind_of(data) is Kind.CHUNK:
            total, piece = read_chunk(data)
            self.pieces.append(len(piece))
            whole = assembler.add(total, piece)
            data = await self._context.read() if whole is None else whole
        if data is grpc.aio.EOF:
            return stream_pb2.ParticipantMessage()
        self.pieces = self.pieces or [len(data)]
        return stream_pb2.ParticipantMessage.FromString(data)

    def cut_as_agreed(self) -> bool:
        """Whether the last answer came whole if it is small, and else in chunks of the agreed size."""
        size = sum(self.pieces)
        if size <= WHOLE_SIZE:
            return self.pieces == [size]
        first, *full, last = self.pieces
        return first == FIRST_SIZE and set(full) == {CHUNK_SIZE} and 0 < last <= CHUNK_SIZE


class Echoes(Examiner):
    """Of --echo: whatever goes down comes up again."""

    async def converse(self, talk: Talk) -> None:
        first = await talk.read()
        self.check("hello", first.hello.participant_id.startswith("check-"))
        self.check("no cancel", not first.hello.accepts_cancel)
        for size in SIZES:
            payload = os.urandom(size)
            instruction = stream_pb2.Instruction(
                name="x" * (size % 300),
                config={"k": stream_pb2.Scalar(int_value=-4)},
                tensors=[stream_pb2.Tensor(name="t", shape=[3], data=b"abc")],
                payload=payload,
            )
            await talk.write(stream_pb2.ServerMessage(instruction=instruction))
            answer = await talk.read()
            self.check(f"{size} bytes", answer.result.payload == payload)
            self.check(f"{size} bytes cut", talk.cut_as_agreed())
        await talk.write(stream_pb2.ServerMessage())
        self.check("empty message", (await talk.read()).HasField("result"))
        await talk.write(stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()))


class Averages(Examiner):
    """Of --tensor-bytes: a result that can be averaged, whatever goes down and however large."""

    def __init__(self, tensor_bytes: int, instruction_size: int) -> None:
        super().__init__()
        self._tensor_bytes = tensor_bytes
        instruction = stream_pb2.Instruction(name="fit", payload=bytes(instruction_size))
        self._message = stream_pb2.ServerMessage(instruction=instruction)

    async def converse(self, talk: Talk) -> None:
        self.check("anonymous", (await talk.read()).WhichOneof("kind") is None)
        for _ in range(2):
            await talk.write(self._message)
            result = (await talk.read()).result
            array = to_arrays(result.tensors)["w"]
            self.check("tensor", array.dtype == np.float32 and array.shape == (self._tensor_bytes // 4,))
            self.check("ones", bool((array == 1).all()))
            self.check("weight", result.weight == 1)
            self.check("metrics", dict(result.metrics) == {"loss": stream_pb2.Scalar(float_value=0.5)})
            self.check("cut", talk.cut_as_agreed())

    def is_fine(self, participants: int) -> bool:
        twice = {"tensor", "ones", "weight", "metrics", "cut"}
        for what in twice & set(self.passed):
            self.passed[what] //= 2
        return super().is_fine(participants)


class Cancels(Examiner):
    """Of --accept-cancel: it stops thinking at once, and the next answer takes its whole time again."""

    def __init__(self, think: float) -> None:
        super().__init__()
        self._think = think

    async def converse(self, talk: Talk) -> None:
        first = await talk.read()
        self.check("accepts cancel", first.hello.accepts_cancel and not first.hello.participant_id)
        cancel = stream_pb2.ServerMessage(cancel=stream_pb2.Cancel())
        await talk.write(cancel)  # idle: to be ignored
        for pause in (0, 0.7 * self._think):
            await talk.write(stream_pb2.ServerMessage())
            await asyncio.sleep(pause)
            began = time.monotonic()
            await talk.write(cancel)
            failure = (await talk.read()).failure
            self.check(f"cancelled after {pause:g}", failure.code == stream_pb2.Failure.CANCELLED)
            self.check(f"at once after {pause:g}", time.monotonic() - began < 0.3 * self._think)
            # The timer of the instruction that was cancelled must not answer this one.
            began = time.monotonic()
            await talk.write(stream_pb2.ServerMessage())
            self.check(f"answered after {pause:g}", (await talk.read()).HasField("result"))
            self.check(f"in its time after {pause:g}", time.monotonic() - began > 0.9 * self._think)
        await talk.write(cancel)


class Pings(Examiner):
    """Of --ping-seconds: one that hears nothing asks, and stays."""

    def __init__(self, silence: float) -> None:
        super().__init__()
        self._silence = silence

    async def converse(self, talk: Talk) -> None:
        await talk.read()
        await asyncio.sleep(self._silence)
        await talk.write(stream_pb2.ServerMessage())
        self.check("answer", (await talk.read()).HasField("result"))


class Comebacks(Examiner):
    """Of --reconnect: after which ends it comes back, how soon, and to where."""

    SLACK = 0.4
    """Seconds that a busy machine may take beyond the longest wait."""

    def __init__(self) -> None:
        super().__init__()
        self._visits: Counter[str] = Counter()
        self._ended: dict[str, float] = {}
        self.elsewhere = ""
        """The second server's address."""

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        return [_handler(self._connect), _handler(self._connect_elsewhere)]

    def is_over(self, load: Report, participants: int) -> bool:
        return bool(load["given_up"] >= participants)

    def is_fine(self, participants: int) -> bool:
        return super().is_fine(participants) and len(self._visits) == participants

    async def _connect(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        await self._visit(Talk(context), context, elsewhere=False)

    async def _connect_elsewhere(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        await self._visit(Talk(context), context, elsewhere=True)

    async def _visit(self, talk: Talk, context: Context, *, elsewhere: bool) -> None:
        name = (await talk.read()).hello.participant_id
        now = time.monotonic()
        waited = now - self._ended.get(name, now)
        self._visits[name] += 1
        visit = self._visits[name]
        earliest, latest = {2: (0, 1), 3: (0, 2), 4: (0, 4), 5: (0, 1), 6: (0.5, 0.5), 7: (0, 1)}.get(
            visit, (0, 0)
        )
        self.check(f"in time for visit {visit}", earliest <= waited <= latest + self.SLACK)
        self.check(f"place of visit {visit}", elsewhere == (visit == 6))
        try:
            await self._end(visit, talk, context)
        finally:
            self._ended[name] = time.monotonic()

    async def _end(self, visit: int, talk: Talk, context: Context) -> None:
        if visit in (1, 6):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
        if visit == 2:
            await context.abort(grpc.StatusCode.CANCELLED, "too many")
        if visit == 4:  # brings a message: the next wait is short again
            await talk.write(stream_pb2.ServerMessage())
            self.check("answer", (await talk.read()).HasField("result"))
            await context.abort(grpc.StatusCode.INTERNAL, "trouble")
        if visit == 5:
            reconnect = stream_pb2.Reconnect(delay_seconds=0.5, address=self.elsewhere)
            await talk.write(stream_pb2.ServerMessage(reconnect=reconnect))
            self.check("leave", (await talk.read()).HasField("leave"))
            end: Any = await context.read()
            self.check("end of stream", end is grpc.aio.EOF)
        if visit == 7:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "somebody else has this id")
