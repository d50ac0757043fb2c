"""Is the load generator right? What it echoes is compared with what it was sent.

Decides which messages are tried: sizes around the limits of HTTP/2 frames, flow-control windows, gRPC
messages and chunks, and each kind of ServerMessage. The server is grpc.aio, so what is checked is that the
hand-made HTTP/2 and protobuf of loadgen/ are those of everyone else. To be run after a change there.

    python -m benchmarks.check_loadgen
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from benchmarks.baselines.bare_echo import OPTIONS, SERVICE
from benchmarks.measure import Bench, Report, build_loadgen, counts
from protos import stream_pb2
from protos.envelope import CHUNK_SIZE, Assembler, Kind, kind_of, split

FRAME = 16384
WINDOW = 65535
SIZES = [0, 1, 100, FRAME - 20, FRAME, WINDOW, WINDOW + 1, 1_000_000, 5 * CHUNK_SIZE, 5 * CHUNK_SIZE + 77]
# A Result has a few bytes around its payload: one of these is exactly at the limit between whole and chunked.
SIZES += [CHUNK_SIZE - overhead for overhead in range(12)]


class Examiner:
    """Serves one conversation per participant in which every answer is known beforehand."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Connect": grpc.stream_stream_rpc_method_handler(self.connect)}
        )

    async def connect(
        self, _requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        first = await self._read(context)
        self._check("hello", first.hello.participant_id.startswith("check-"))
        for size in SIZES:
            payload = os.urandom(size)
            instruction = stream_pb2.Instruction(
                name="x" * (size % 300),
                config={"k": stream_pb2.Scalar(int_value=-4)},
                tensors=[stream_pb2.Tensor(name="t", shape=[3], data=b"abc")],
                payload=payload,
            )
            await self._write(context, stream_pb2.ServerMessage(instruction=instruction))
            answer = await self._read(context)
            self._check(f"{size} bytes", answer.result.payload == payload)
        await self._write(context, stream_pb2.ServerMessage())
        self._check("empty message", (await self._read(context)).HasField("result"))
        await self._write(context, stream_pb2.ServerMessage(cancel=stream_pb2.Cancel()))
        reconnect = stream_pb2.Reconnect(delay_seconds=3600, address="elsewhere.example:1")
        await self._write(context, stream_pb2.ServerMessage(reconnect=reconnect))
        self._check("leave", (await self._read(context)).HasField("leave"))
        end: Any = await context.read()
        self._check("end of stream", end is grpc.aio.EOF)

    def _check(self, what: str, right: bool) -> None:
        (self.passed if right else self.failed)[what] += 1

    async def _write(
        self, context: grpc.aio.ServicerContext[bytes, bytes], message: stream_pb2.ServerMessage
    ) -> None:
        for piece in split(message.SerializeToString(), stream_pb2.ServerMessage):
            await context.write(piece)

    async def _read(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> stream_pb2.ParticipantMessage:
        assembler = Assembler()
        data: Any = await context.read()
        while data is not grpc.aio.EOF and kind_of(data) is Kind.CHUNK:
            whole = assembler.add(stream_pb2.ParticipantMessage.FromString(data).chunk)
            data = await context.read() if whole is None else whole
        return stream_pb2.ParticipantMessage.FromString(b"" if data is grpc.aio.EOF else data)


async def check(bench: Bench, participants: int, timeout: float, *options: object) -> tuple[Examiner, Report]:
    examiner = Examiner()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((examiner.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    load = ["--echo", "--id-prefix", "check-", *options]
    address = f"127.0.0.1:{port}"
    loadgen = await asyncio.to_thread(bench.loadgen, address, participants, *load)
    deadline = asyncio.get_running_loop().time() + timeout
    while (now := await asyncio.to_thread(counts, loadgen))["left"] + now["lost"] < participants:
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.1)
    await server.stop(0)
    return examiner, now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each of the checks")
    args = parser.parse_args()
    build_loadgen()
    wrong = False
    variants = [[], ["--window", WINDOW], ["--think-ms", 2, "--think-exponential", "--source-addresses", 3]]
    for options in variants:
        with Bench(limit=args.timeout + 30) as bench:
            examiner, end = asyncio.run(check(bench, args.participants, args.timeout, *options))
        right = [what for what, times in examiner.passed.items() if times == args.participants]
        fine = len(right) == len(SIZES) + 4 and end["left"] == args.participants and not examiner.failed
        wrong |= not fine
        print(f"{' '.join(map(str, options)) or 'no options'}: {'right' if fine else 'WRONG'}")
        if not fine:
            print(f"  passed {dict(examiner.passed)}\n  failed {dict(examiner.failed)}\n  {end}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
