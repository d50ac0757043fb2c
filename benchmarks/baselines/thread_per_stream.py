"""The known design: one process, a synchronous gRPC server, one thread parked per participant.

What federated-learning servers in Python have long done, and what Muster is measured against: a bridge with
a condition variable per participant hands messages between the stream's handler thread and whoever calls
``ParticipantProxy.run``, and callers use a thread pool. It decides nothing else. Its weaknesses are the
design's own: one GIL, two thread switches per round trip, no chunks, no timeouts.

    python -m benchmarks.baselines.thread_per_stream --participants 200 --seconds 10

Prints a JSON line when it listens and one when it stops (after ``--seconds``, ``--rounds`` per participant,
or by SIGTERM). A thread pool in the same process drives the round trips, as a training script would.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto

import grpc

from benchmarks.meter import Meter, say, say_listening
from protos import stream_pb2, stream_pb2_grpc

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 1),
]


class State(Enum):
    IDLE = auto()
    INSTRUCTED = auto()  # the caller has left an instruction
    SENT = auto()  # the handler has taken it
    ANSWERED = auto()
    CLOSED = auto()


class StreamClosedError(Exception):
    """The participant is gone."""


class Bridge:
    """Hands one message at a time from a caller to the stream's thread, and the answer back."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._state = State.IDLE
        self._instruction: stream_pb2.ServerMessage | None = None
        self._answer: stream_pb2.ParticipantMessage | None = None

    def request(self, instruction: stream_pb2.ServerMessage) -> stream_pb2.ParticipantMessage:
        """The caller's side: blocks until the answer is there."""
        with self._condition:
            self._move(State.INSTRUCTED, State.IDLE)
            self._instruction = instruction
            self._wait_for(State.ANSWERED)
            self._move(State.IDLE, State.ANSWERED)
            answer, self._answer = self._answer, None
        assert answer is not None  # noqa: S101
        return answer

    def take(self) -> stream_pb2.ServerMessage:
        """The stream's side: blocks until there is an instruction."""
        with self._condition:
            self._wait_for(State.INSTRUCTED)
            self._move(State.SENT, State.INSTRUCTED)
            instruction, self._instruction = self._instruction, None
        assert instruction is not None  # noqa: S101
        return instruction

    def give(self, answer: stream_pb2.ParticipantMessage) -> None:
        with self._condition:
            self._answer = answer
            self._move(State.ANSWERED, State.SENT)

    def close(self) -> None:
        with self._condition:
            self._state = State.CLOSED
            self._condition.notify_all()

    def _move(self, to: State, expected: State) -> None:
        if self._state is State.CLOSED:
            raise StreamClosedError
        if self._state is not expected:
            raise RuntimeError(f"the bridge is {self._state.name}, not {expected.name}")
        self._state = to
        self._condition.notify_all()

    def _wait_for(self, state: State) -> None:
        self._condition.wait_for(lambda: self._state in (state, State.CLOSED))
        if self._state is State.CLOSED:
            raise StreamClosedError


class ParticipantProxy:
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def run(self, message: stream_pb2.ServerMessage) -> stream_pb2.ParticipantMessage:
        return self._bridge.request(message)


class ParticipantManager:
    """The participants that are there."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._proxies: dict[Bridge, ParticipantProxy] = {}

    def register(self, bridge: Bridge) -> None:
        with self._condition:
            self._proxies[bridge] = ParticipantProxy(bridge)
            self._condition.notify_all()

    def unregister(self, bridge: Bridge) -> None:
        with self._condition:
            self._proxies.pop(bridge, None)

    def get_participants(
        self, min_num_participants: int, timeout: float | None = None
    ) -> list[ParticipantProxy]:
        """Blocks until so many are there; returns all of them."""
        with self._condition:
            self._condition.wait_for(lambda: len(self._proxies) >= min_num_participants, timeout)
            return list(self._proxies.values())


class Servicer(stream_pb2_grpc.ParticipantManagerServicer):
    def __init__(self, manager: ParticipantManager) -> None:
        self._manager = manager

    def Connect(  # noqa: N802
        self, request_iterator: Iterator[stream_pb2.ParticipantMessage], context: grpc.ServicerContext
    ) -> Iterator[stream_pb2.ServerMessage]:
        """Occupies one thread of the server's pool for as long as the participant stays."""
        bridge = Bridge()
        context.add_callback(bridge.close)
        try:
            next(request_iterator)  # passes the initiative to the server
            self._manager.register(bridge)
            while True:
                yield bridge.take()
                bridge.give(next(request_iterator))
        except (StopIteration, StreamClosedError):
            return
        finally:
            self._manager.unregister(bridge)
            bridge.close()


class Driver:
    """Keeps every participant at work from a thread pool: whoever has answered is next in line again."""

    def __init__(self, proxies: list[ParticipantProxy], message: stream_pb2.ServerMessage) -> None:
        self._message = message
        self._line: queue.SimpleQueue[ParticipantProxy] = queue.SimpleQueue()
        for proxy in proxies:
            self._line.put(proxy)
        self._lock = threading.Lock()
        self.round_trips = 0
        self.limit: int | None = None
        self.over = threading.Event()

    def loop(self) -> None:
        while not self.over.is_set():
            try:
                proxy = self._line.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                proxy.run(self._message)
            except StreamClosedError:
                continue  # as if it had never been there
            self._line.put(proxy)
            with self._lock:
                self.round_trips += 1
                if self.limit is not None and self.round_trips >= self.limit:
                    self.over.set()


def serve(args: argparse.Namespace) -> None:
    manager = ParticipantManager()
    # All parked participants need a thread; with fewer the rest would wait in the pool's queue for ever.
    pool = ThreadPoolExecutor(max_workers=args.participants + 8)
    server = grpc.server(pool, options=OPTIONS)
    stream_pb2_grpc.add_ParticipantManagerServicer_to_server(Servicer(manager), server)
    port = server.add_insecure_port(args.listen)
    server.start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    say_listening(f"{args.listen.rpartition(':')[0]}:{port}")

    proxies: list[ParticipantProxy] = []
    while len(proxies) < args.participants and not stop.is_set():
        proxies = manager.get_participants(args.participants, timeout=0.2)
    instruction = stream_pb2.Instruction(name="echo", payload=bytes(args.instruction_size))
    driver = Driver(proxies, stream_pb2.ServerMessage(instruction=instruction))
    callers = [threading.Thread(target=driver.loop, daemon=True) for _ in range(args.callers)]
    for caller in callers:
        caller.start()
    stop.wait(args.warm_up)
    meter = Meter(driver.round_trips)
    if args.rounds:
        driver.limit = driver.round_trips + args.rounds * args.participants
    deadline = time.monotonic() + (args.seconds or math.inf)
    while not driver.over.is_set() and time.monotonic() < deadline and not stop.wait(0.02):
        pass
    say(meter.report(driver.round_trips))
    driver.over.set()
    server.stop(0).wait(2)
    # A handler may be parked for good, and the interpreter would wait for its thread.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0: any free one")
    parser.add_argument("--participants", type=int, default=200, help="starts when so many are there")
    parser.add_argument("--callers", type=int, default=32, help="threads that call proxy.run")
    parser.add_argument("--instruction-size", type=int, default=100, help="bytes of payload")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=0, help="seconds counted; 0: until SIGTERM")
    parser.add_argument("--rounds", type=int, default=0, help="instructions per participant; 0: no limit")
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
