"""The limit for Python: grpc.aio on uvloop that answers every message at once and looks into none.

Decides nothing but the echo: whatever a participant says is answered with the same instruction. What a
server in Python does beyond that costs extra, so the others are measured against this one. It has nothing
that makes a coordinator: no pool, no proxies, no callers. Only chunked answers are looked into, to know where
they end.

    python -m benchmarks.baselines.bare_echo --seconds 10     # and the load generator beside it

Prints a JSON line when it listens and one when it stops (after ``--seconds`` or by SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from benchmarks.meter import Meter, say, say_listening
from protos import stream_pb2
from protos.chunks import MAX_FRAME_SIZE, Pieces, read_chunk
from protos.envelope import Kind, kind_of

SERVICE = "muster.stream.v1.ParticipantManager"

OPTIONS = [
    # A connect storm must not end streams, as it does at gRPC's defaults of 1,000 and 3,000.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
    ("grpc.max_receive_message_length", MAX_FRAME_SIZE),
    ("grpc.so_reuseport", 1),
]


class Echo:
    """Answers everything with the same instruction, and counts."""

    def __init__(self, instruction_size: int) -> None:
        instruction = stream_pb2.Instruction(name="echo", payload=bytes(instruction_size))
        message = stream_pb2.ServerMessage(instruction=instruction)
        self._pieces = list(Pieces(message.SerializeToString(), stream_pb2.ServerMessage))
        self.round_trips = 0
        self.begun = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        # Without serialisers bytes stay bytes.
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Connect": grpc.stream_stream_rpc_method_handler(self.connect)}
        )

    async def connect(
        self, _requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        read: Any = context.read
        missing = 0
        data = await read()
        self.begun.set()
        while data is not grpc.aio.EOF:
            for piece in self._pieces:
                await context.write(piece)
            data = await read()
            while data is not grpc.aio.EOF and kind_of(data) is Kind.CHUNK:
                total_size, chunk = read_chunk(data)
                missing = (total_size or missing) - len(chunk)
                if not missing:
                    break
                data = await read()
            self.round_trips += 1


async def serve(listen: str, instruction_size: int, warm_up: float, seconds: float) -> None:
    echo = Echo(instruction_size)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((echo.handler(),))
    port = server.add_insecure_port(listen)
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    say_listening(f"{listen.rpartition(':')[0]}:{port}")
    await _first(stop, echo.begun)
    await _first(stop, timeout=warm_up)
    meter = Meter(echo.round_trips)
    await _first(stop, timeout=seconds or None)
    say(meter.report(echo.round_trips))
    await server.stop(0)


async def _first(*events: asyncio.Event, timeout: float | None = None) -> None:
    """Waits until one of the events is set, or for so many seconds."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0: any free one")
    parser.add_argument("--instruction-size", type=int, default=100, help="bytes of payload")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=0, help="seconds counted; 0: until SIGTERM")
    args = parser.parse_args()
    uvloop.run(serve(args.listen, args.instruction_size, args.warm_up, args.seconds))


if __name__ == "__main__":
    main()
